# SPDX-License-Identifier: Apache-2.0
"""Small files of a run: whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from muntin.data.dense_transforms import DetectionAugmentConfig, SegmentationAugmentConfig
from muntin.data.keypoint_transforms import KeypointAugmentConfig
from muntin.errors import ConfigError, RunError
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS
from muntin.heads.keypoint_rcnn import KEYPOINT_DETECTORS
from muntin.heads.pose_head import POSE_HEADS
from muntin.heads.semantic_head import MAP_HEADS
from muntin.recipes import RECIPES
from muntin.run_config import RunConfig
from muntin.run_files import (
    check_parts,
    find_results,
    read_json,
    read_split,
    rewrite_config,
    write_best,
    write_json,
)
from muntin.runs import Run, read_results
from muntin.zoo import model_config

# What schema 1 wrote for each head, word by word.
OLD: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("configs_schema_1.json").read_text()
)


def config() -> RunConfig:
    return RunConfig(
        task="classify", data="d", model_name="swin_tiny", model=model_config("swin_tiny")
    )


def test_config_round_trip():
    values = config().to_dict()
    assert values["schema"] == 2
    assert values["model"]["family"] == "swin"
    assert RunConfig.from_dict(values) == config()


def test_unknown_keys_are_refused():
    values = config().to_dict()
    values["train"]["epoch"] = 3
    with pytest.raises(ConfigError, match=r"'epoch'. Did you mean 'epochs'"):
        RunConfig.from_dict(values)
    with pytest.raises(ConfigError, match=r"x.json .* schema 2 .* schema 0"):
        RunConfig.from_dict({"schema": 0}, where="x.json")


HEADS = {
    "classify": (None, "classification"),
    "fcos": (DETECTORS["fcos_small"], "detection"),
    "faster_rcnn": (DETECTORS["cascade_rcnn_small"], "detection"),
    "mask_rcnn": (MASK_DETECTORS["mask_rcnn"], "detection"),
    "upernet": (MAP_HEADS["upernet"], "segmentation"),
    "vitpose": (POSE_HEADS["vitpose"], "keypoints"),
    "keypoint_rcnn": (KEYPOINT_DETECTORS["keypoint_rcnn"], "detection"),
}


@pytest.mark.parametrize("name", HEADS)
def test_old_files_are_read(name):
    head, kind = HEADS[name]
    old = RunConfig.from_dict(OLD[name])
    assert old.head == head
    assert old.augment == RECIPES[kind]["small-data"].augment
    assert old.data_config.strict
    new = old.to_dict()
    assert new["augment"]["kind"] == type(old.augment).kind
    assert head is None or new["head"]["kind"] == type(head).kind
    assert RunConfig.from_dict(json.loads(json.dumps(new))) == old


SHORT = {
    "semantic": (
        "upernet",
        {"flip": 0.5, "jitter": 0.3},
        SegmentationAugmentConfig(flip=0.5, jitter=0.3),
    ),
    "detect": (
        "fcos",
        {"scale": [0.5, 2], "flip": 0},
        DetectionAugmentConfig(scale=(0.5, 2.0), flip=0.0),
    ),
    "pose": ("vitpose", {"flip": 0.5, "jitter": 0.3}, KeypointAugmentConfig(flip=0.5, jitter=0.3)),
    "nothing": ("upernet", {}, SegmentationAugmentConfig()),
}


@pytest.mark.parametrize("case", SHORT)
def test_an_augmentation_is_that_of_its_task(case):
    name, values, augment = SHORT[case]
    assert RunConfig.from_dict({**OLD[name], "augment": values}).augment == augment
    new = RunConfig.from_dict(OLD[name]).to_dict()
    del new["augment"]
    assert type(RunConfig.from_dict(new).augment) is type(augment)


def test_wrong_augmentation_of_converted_runs_is_corrected():
    assert RunConfig.from_dict(OLD["converted"]).augment == DetectionAugmentConfig()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("schema", [1, 2])
def test_a_misspelt_key_is_named(name, schema):
    old = OLD[name] if schema == 1 else RunConfig.from_dict(OLD[name]).to_dict()
    augment = {key: value for key, value in old["augment"].items() if key != "jitter"}
    with pytest.raises(ConfigError, match=r"x.json 'jiter'. .*'jitter'"):
        RunConfig.from_dict({**old, "augment": {**augment, "jiter": 0.3}}, where="x.json")
    if not old["head"]:
        return
    key = next(key for key in old["head"] if key != "kind")
    head = {(f"{key}s" if name == key else name): value for name, value in old["head"].items()}
    with pytest.raises(ConfigError, match=rf"head in x.json '{key}s'. Did you mean '{key}'"):
        RunConfig.from_dict({**old, "head": head}, where="x.json")


def test_json(tmp_path):
    write_json(tmp_path / "in" / "a.json", {"a": [1, None]})
    assert read_json(tmp_path / "in" / "a.json") == {"a": [1, None]}
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a.json"]


def test_json_errors(tmp_path):
    with pytest.raises(RunError, match=r"a\.json, got none"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(RunError, match=r"a\.json .*a list"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(RunError, match=r"b.json could not"):
        write_json(tmp_path / "b.json", {})
    assert not list(tmp_path.glob("*.partial"))


def folder(path: Path, **preprocessing: Any) -> Path:
    """A run folder whose weights are no weights."""
    write_json(path / "config.json", config().to_dict())
    write_json(path / "classes.json", {"names": ["ash", "oak"]})
    pre = {"img_size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, **preprocessing}
    write_json(path / "preprocessing.json", pre)
    write_best(path, lambda file: file.write_bytes(b"weights") and None, 2, {"best_threshold": 0.3})
    return path


EDITS = {
    "config.json": lambda v: v["model"].update(norm_eps=1e-3),
    "classes.json": lambda v: v["names"].reverse(),
    "preprocessing.json": lambda v: v.update(crop_fraction=0.9),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_part_is_refused_until_its_owner_says_so(tmp_path, name):
    run = folder(tmp_path)
    values = read_json(run / name)
    (run / name).write_text(json.dumps(values))  # the layout is free
    assert Run.open(run).classes.names == ("ash", "oak")
    EDITS[name](values)
    write_json(run / name, values)
    with pytest.raises(RunError, match=rf"{name}.*results\.json"):
        Run.open(run)
    results = read_json(run / "results.json")
    del results["checksums"]
    write_json(run / "results.json", results)
    assert read_results(Run.open(run)).score_threshold == 0.3


def test_other_weights_are_refused(tmp_path):
    run = folder(tmp_path)
    assert find_results(run, verify=True) is not None
    (run / "weights.safetensors").write_bytes(b"Weights")
    with pytest.raises(RunError, match=r"weights\.safetensors"):
        find_results(run, verify=True)
    with pytest.raises(RunError, match=r"weights\.safetensors"):
        Run.open(run).load_network()


def test_a_config_for_a_longer_run_keeps_the_words_of_its_model(tmp_path):
    run = folder(tmp_path)
    values = read_json(run / "config.json")
    longer = json.loads(json.dumps(values))
    longer["train"]["epochs"] = 7
    longer["model"]["new_field"] = 1  # of a later version
    rewrite_config(run, longer)
    assert Run.open(run).config.train.epochs == 7
    check_parts(run)


BROKEN = {
    "config.json": ['{"a":' * 10**5, '{"schema": 2, "model": {"family": ["swin"]}}'],
    "classes.json": [
        *("[" * 10**5, '{"names": []}', '{"names": {"a": 1}}', '{"names": 1e999}'),
        '{"names": ["a", "b"], "encoding": {"kind": "index", "values": [0]}}',
        '{"names": ["a"], "skeleton": {"names": ["x"], "edges": [[0, 1]]}}',
        '{"names": ["a"], "skeleton": {"names": ["x"], "sigmas": [0]}}',
    ],
    "preprocessing.json": ["null", '{"a": ' + "9" * 5000 + "}"],
}


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, ts in BROKEN.items() for t in ts])
def test_a_broken_part_is_one_error(tmp_path, name, text):
    run = folder(tmp_path)
    (run / name).write_text(text)
    with pytest.raises(RunError, match=name):
        Run.open(run)


@pytest.mark.parametrize(("field", "value"), [
    ("mean", [float("nan")] * 3), ("mean", [1e300] * 3), ("mean", [10**400] * 3),
    ("std", [0, 1, 1]), ("std", [1e-320] * 3), ("scale", float("nan")), ("scale", 1e300),
    ("img_size", [10**9] * 2), ("img_size", [30_000] * 2), ("img_size", [10**400, 1]),
])  # fmt: skip
def test_impossible_preprocessing(tmp_path, field, value):
    run = folder(tmp_path)
    write_json(run / "preprocessing.json", {**read_json(run / "preprocessing.json"), field: value})
    with pytest.raises(RunError, match=rf"{field}|preprocessing\.json"):
        Run.open(run)


@pytest.mark.parametrize(("field", "value"), [
    ("depths", [10**9, 2, 2, 2]), ("depths", [2] * 600), ("embed_dim", 3 * 2**20),
    ("patch_size", 10**9),
    ("mlp_ratio", float("nan")), ("mlp_ratio", 1e300), ("mlp_ratio", -4.0), ("norm_eps", -1.0),
    ("drop_rate", 2.0), ("embed_dim", 10**400), ("window_size", 10**9), ("in_chans", 10**9),
])  # fmt: skip
def test_impossible_models(field, value):
    values = config().to_dict()
    values["model"][field] = value
    with pytest.raises(ConfigError, match=field):
        RunConfig.from_dict(values)


def test_a_model_far_larger_than_its_weights_is_not_built(tmp_path):
    run = folder(tmp_path)
    values = read_json(run / "config.json")
    values["model"].update(embed_dim=3 * 2**13, num_heads=[3, 6, 12, 24])
    (run / "results.json").unlink()
    write_json(run / "config.json", values)
    with pytest.raises(ConfigError, match=r"config\.json.*MUNTIN_MAX_MEMORY"):
        Run.open(run).load_network()


@pytest.mark.parametrize("text", ["{}", '{"train": 5}', '{"train": ["a", 1], "val": ["b", 2]}'])
def test_broken_splits(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(RunError, match=r"split\.json"):
        read_split(tmp_path)
