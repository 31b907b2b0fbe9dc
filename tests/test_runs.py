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
from muntin.run_files import read_json, write_json
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
