# SPDX-License-Identifier: Apache-2.0
"""Runs with added classes: trained, resumed, repeated, extended again, scored and exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import muntin
from muntin.commands import app
from muntin.errors import ConfigError, DataError, RunError
from muntin.exporting.run_export import export
from muntin.run_config import ExtendConfig
from muntin.runs import Run
from muntin.samples import Listing, MaskEncoding
from muntin.synthetic.datasets import write_coco, write_maps
from muntin.synthetic.scenes import CLASS_NAMES
from muntin.training.extension import extend_listings
from tests.detectors import train_dense, train_detector
from tests.small import image, train_small, write_images

HOW = {"quiet": True, "pictures": False, "device": "cpu", "precision": "fp32"}
FAST = {"epochs": 1, "batch_size": 4, "settings": {"machine.workers": 0}, **HOW}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A run of ash and birch, images of birch, cedar and date, and the run with all four."""
    root = tmp_path_factory.mktemp("extended")
    images = write_images(root / "a", classes=("ash", "birch"))
    before = train_small(images, root / "before", epochs=1).path
    data = write_images(root / "b", classes=("birch", "cedar", "date"))
    return (
        before,
        data,
        muntin.train("classify", data, extend=before, out=root / "after", **FAST).path,
    )


def logits_of(run: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return Run.open(run).load_network()(images)


def test_old_scores_stay_and_the_origin_is_recorded(runs):
    before, _, after = runs
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(logits_of(before, images), logits_of(after, images)[:, :2])
    run = Run.open(after)
    assert run.classes.names == ("ash", "birch", "cedar", "date")
    assert run.preprocessing == Run.open(before).preprocessing
    assert run.config.extend.run == str(before)
    assert run.config.extend.classes == ("ash", "birch")
    assert run.config.weights == str(before)
    assert run.config.train.freeze == -1


def test_it_is_scored_predicted_and_resumed(runs, tmp_path):
    _, data, after = runs
    other = write_images(tmp_path / "other", each=2, classes=("ash", "date"))
    assert muntin.evaluate(after, other, pictures=False)["num_images"] == 4
    (label,) = muntin.load(after)(data / "cedar" / "0.png")
    assert len(label.scores) == 4
    kept = Run.open(after).config.extend
    longer = muntin.train("classify", data, out=after, epochs=2, resume=True, **HOW)
    assert longer.epochs == 2
    assert Run.open(after).config.extend == kept


def test_it_is_extended_again(runs, tmp_path):
    before, _, after = runs
    data = write_images(tmp_path / "c", classes=("ash", "elm"))
    again = muntin.train("classify", data, extend=after, out=tmp_path / "run", **FAST).path
    assert Run.open(again).config.extend.counts == (2, 2)
    images = torch.randn(2, 3, 16, 16)
    found = logits_of(again, images)
    assert found.shape == (2, 5)
    assert torch.equal(found[:, :4], logits_of(after, images))
    assert torch.equal(found[:, :2], logits_of(before, images))


def test_it_is_repeated_from_its_config_with_the_same_weights_only(runs, tmp_path):
    before, data, after = runs
    config = after / "config.json"
    one = muntin.train("classify", data, config=config, epochs=1, out=tmp_path / "one", **HOW).path
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(logits_of(one, images)[:, :2], logits_of(before, images))
    values = json.loads(config.read_text())
    values["extend"]["checksum"] = "0" * 64
    (tmp_path / "changed.json").write_text(json.dumps(values))
    with pytest.raises(RunError, match="checksum"):
        muntin.train(
            "classify", data, config=tmp_path / "changed.json", out=tmp_path / "two", **HOW
        )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"model": "swin_tiny"}, "model"),
        ({"weights": "none"}, "weights"),
        ({"img_size": 32}, "img_size"),
        ({"settings": {"head.channels": "8"}}, "head.channels"),
        ({"settings": {"data.range": "0,9"}}, "data.range"),
        ({"settings": {"train.class_weights": "true"}}, "train.class_weights"),
    ],
)
def test_what_the_origin_decides_is_refused(runs, tmp_path, options, named):
    before, data, _ = runs
    with pytest.raises(ConfigError, match=named):
        muntin.train("classify", data, extend=before, out=tmp_path / "run", **{**HOW, **options})


def test_other_tasks_and_known_classes_are_refused(runs, tmp_path):
    before, _, _ = runs
    data = write_images(tmp_path / "same", classes=("ash", "birch"))
    with pytest.raises(DataError, match="ash"):
        muntin.train("classify", data, extend=before, out=tmp_path / "run", **HOW)
    with pytest.raises(ConfigError, match="classify"):
        muntin.train("detect", data, extend=before, out=tmp_path / "run", **HOW)
    with pytest.raises(RunError, match="nowhere"):
        muntin.train("classify", data, extend="nowhere", out=tmp_path / "run", **HOW)


@pytest.mark.slow
def test_its_weights_alone_are_those_of_its_backbone(runs, tmp_path):
    _, data, after = runs
    run = muntin.train("classify", data, weights=after, out=tmp_path / "run", **FAST).path
    assert Run.open(run).config.extend is None
    assert logits_of(run, torch.randn(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize("options", [["--extend", "nowhere"], ["--folds", "1"]])
def test_the_command_line_refuses_in_one_line(runs, tmp_path, options):
    out = ["--out", str(tmp_path / "run")]
    found = CliRunner().invoke(app, ["train", "classify", str(runs[1]), *out, *options])
    assert isinstance(found.exception, RunError | ConfigError)
    assert options[0] in str(found.exception)


@pytest.mark.slow
def test_a_backbone_that_learns_is_said_to_change_scores(runs, tmp_path, capsys):
    before, data, _ = runs
    options = {**FAST, "quiet": False}
    options["settings"] = {"machine.workers": 0, "train.freeze": 0}
    run = muntin.train("classify", data, extend=before, out=tmp_path / "run", **options).path
    assert "train.freeze" in capsys.readouterr().out
    images = torch.randn(2, 3, 16, 16)
    assert not torch.equal(logits_of(run, images)[:, :2], logits_of(before, images))


@pytest.mark.slow
def test_added_classes_are_learnt_as_in_full_training(tmp_path):
    classes = ("ash", "birch", "cedar", "date")
    data = write_images(tmp_path / "all", each=24, classes=classes)
    for name, some in (("old", classes[:2]), ("new", classes[2:])):
        for one in some:
            shutil.copytree(data / one, tmp_path / name / one)
    for class_id, one in enumerate(classes[2:], 2):
        (tmp_path / "val" / one).mkdir(parents=True)
        for number in range(1000, 1020):
            image(class_id, number).save(tmp_path / "val" / one / f"{number}.png")
    whole = train_small(data, tmp_path / "whole", epochs=12).path
    before = train_small(tmp_path / "old", tmp_path / "before", epochs=12).path
    options = {**FAST, "epochs": 12, "extend": before, "out": tmp_path / "after"}
    after = muntin.train("classify", tmp_path / "new", **options).path
    figures = [
        muntin.evaluate(run, tmp_path / "val", pictures=False)["top1"] for run in (whole, after)
    ]
    assert figures[1] >= figures[0] - 0.03


def test_values_of_masks_follow_their_classes():
    encoding = MaskEncoding(kind="index", values=(0, 7), ignored=(255,))
    listing = Listing(source="", entries=(), class_names=("ground", "tree"), encoding=encoding)
    extend = ExtendConfig(run="r", checksum="", classes=("sky", "ground"), counts=(2,))
    train, _ = extend_listings(extend, listing, listing).value
    assert train.class_names == ("sky", "ground", "tree")
    assert train.encoding.values == (-2, 0, 7)
    assert train.encoding.ignored == (255,)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head"),
    [
        ("detect", "dense_small"),
        ("instance", "dense_small"),
        ("detect", "fcos_small"),
        ("detect", "faster_rcnn_small"),
        ("instance", "mask_rcnn_small"),
    ],
)
def test_detectors_from_end_to_end(tmp_path, task, head):
    options = {"num_train": 6, "num_val": 2, "size": (64, 64)}
    first = write_coco(tmp_path / "first", classes=CLASS_NAMES[:2], **options)
    second = write_coco(tmp_path / "second", seed=1, classes=CLASS_NAMES[1:], **options)
    before = train_detector(task, first, tmp_path / "before", head=head, epochs=1).path
    run = muntin.train(task, second, extend=before, out=tmp_path / "after", **FAST)
    after = Run.open(run.path).load_network()
    assert Run.open(run.path).classes.names == CLASS_NAMES
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        old, new = Run.open(before).load_network()(images), after(images)
    assert torch.equal(old.scores, new.parts[0].scores)
    assert torch.equal(old.boxes, new.parts[0].boxes)
    assert muntin.evaluate(run.path, second, pictures=False)["num_images"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_maps_from_end_to_end(tmp_path, format):
    first = write_maps(
        tmp_path / "first", num_train=6, num_val=2, size=(64, 64), classes=CLASS_NAMES[:1]
    )
    before = train_dense("semantic", first, tmp_path / "before", epochs=1).path
    second = write_maps(
        tmp_path / "second", num_train=6, num_val=2, size=(64, 64), seed=1, classes=CLASS_NAMES[1:]
    )
    run = muntin.train("semantic", second, extend=before, out=tmp_path / "after", **FAST).path
    images = torch.randn(1, 3, 64, 64)
    assert Run.open(run).classes.names == ("background", *CLASS_NAMES)
    assert torch.equal(logits_of(before, images), logits_of(run, images)[:, :2])
    assert muntin.evaluate(run, second, pictures=False)["num_images"] == 2
    export(run, tmp_path / "file", format=format)
