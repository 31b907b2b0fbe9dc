# SPDX-License-Identifier: Apache-2.0
"""Tiny networks that learn maps of classes, from beginning to end."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import muntin
from muntin.errors import ConfigError, DataError, MuntinWarning
from muntin.results import SemanticMap
from muntin.runs import Run, read_journal
from muntin.synthetic.datasets import write_maps
from tests.detectors import train_dense
from tests.training.test_resume import journal_of, state_of

CLASSES = ("disk", "star")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_maps(folder, num_train=12, num_val=4, size=(64, 80))


train_maps = partial(train_dense, "semantic")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory) -> Path:
    """A run that nobody changes."""
    return train_maps(data, tmp_path_factory.mktemp("runs") / "shapes", epochs=1).path


@pytest.mark.parametrize(
    "head",
    [
        "light_small",
        pytest.param("light", marks=pytest.mark.slow),
        pytest.param("upernet", marks=pytest.mark.slow),
    ],
)
def test_every_head_learns(data, tmp_path, head):
    settings = {"augment.scale": "1,1", "train.learning_rate": 3e-3}
    epochs = 8 if head == "light_small" else 15
    run = train_maps(
        data, tmp_path / "run", head=head, epochs=epochs, settings=settings, pictures=True
    )
    losses = [line["train_loss"] for line in read_journal(run.path)]
    assert np.mean(losses[-3:]) < 0.9 * losses[0]
    assert {"miou", "pixel_accuracy", "iou"} <= run.metrics.keys()
    figures = muntin.evaluate(run.path, data, pictures=False)
    assert figures["miou"] == pytest.approx(run.metrics["miou"], abs=1e-6)
    names = {path.name for path in (run.path / "pictures" / "val").iterdir()}
    assert {"best.png", "worst.png", "confusion.png", "per_class.png"} <= names


@pytest.mark.parametrize(
    "settings",
    [
        {
            "head.dice_weight": 1.0, "train.class_weights": True, "train.label_smoothing": 0.1,
            "augment.turn": 0.5, "augment.flip_vertical": 0.5, "augment.jitter": 0.5,
            "train.accumulate": 2, "train.checkpointing": True, "data.scale": 0.5,
        },
        {"data.short_side": 100},
    ],
)  # fmt: skip
def test_options(data, tmp_path, settings):
    run = train_maps(data, tmp_path / "run", settings=settings, epochs=1)
    (line,) = read_journal(run.path)
    assert np.isfinite(line["train_loss"])
    found = muntin.load(run.path)(np.zeros((70, 90, 3), np.uint8))[0]
    assert found.size == (70, 90)


def test_a_resumed_run_has_the_same_bits(data, tmp_path):
    settings = {"augment.jitter": 0.5, "augment.turn": 0.5, "train.ema_decay": 0.9}
    whole = train_maps(data, tmp_path / "whole", settings=settings)
    out = tmp_path / "parts"
    assert train_maps(data, out, settings=settings, stop_after=2).interrupted
    train_maps(data, out, resume=True)
    left, right = state_of(whole.path), state_of(out)
    for name, tensor in left[0].items():
        assert tensor.equal(right[0][name]), name
    assert journal_of(whole.path) == journal_of(out)


def test_prediction(run):
    predictor = muntin.load(run)
    images = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
                for size in ((64, 64), (300, 210), (5, 7), (64, 64))]  # fmt: skip
    found = predictor(images)
    assert [one.size for one in found] == [(64, 64), (300, 210), (5, 7), (64, 64)]
    assert all(isinstance(one, SemanticMap) for one in found)
    alone = predictor(images[1])[0]
    assert (alone.labels == found[1].labels).all()
    mirrored = predictor(images[1][:, ::-1], tta=True)[0]
    assert (mirrored.labels[:, ::-1] == predictor(images[1], tta=True)[0].labels).mean() > 0.99
    tiled = predictor(images[1], tile=96)[0]
    assert tiled.size == (300, 210)
    values = found[0].to_dict()
    assert json.loads(json.dumps(values)) == values
    assert sum(row["share"] for row in values["semantic"]) == pytest.approx(1, abs=1e-5)
    assert muntin.draw(images[1], found[1]).size[0] >= 210


def test_several_scales(run):
    predictor = muntin.load(run)
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8)
    plain = predictor(image)[0].labels
    assert (predictor(image, scales=[1])[0].labels == plain).all()
    assert (predictor(image, scales=[1, 1])[0].labels == plain).all()
    several = predictor(image, scales=(0.5, 1.0, 1.3), tta=True, tile=64)[0]
    assert several.size == (90, 130)
    with pytest.raises(ConfigError, match="scales"):
        predictor(image, scales=())


def test_a_image_whose_mask_has_another_size_is_left_out(data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    path = next((copy / "masks" / "train").iterdir())
    Image.fromarray(np.asarray(Image.open(path))[:50].copy()).save(path)
    with pytest.warns(MuntinWarning, match=r"1 of 12 "):
        train_maps(copy, tmp_path / "run", epochs=1)
    with pytest.raises(DataError, match=r"\(50, 80\)"):
        train_maps(copy, tmp_path / "strict", settings={"data.strict": True})


def test_a_run_knows_its_colours(data, tmp_path):
    colored = tmp_path / "colored"
    table = {"ground": (10, 20, 30), "thing": (200, 100, 0)}
    for part in ("train", "val"):
        for path in (data / "masks" / part).iterdir():
            labels = np.minimum(np.asarray(Image.open(path)), 1)
            target = colored / "masks" / part / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.array(list(table.values()), np.uint8)[labels]).save(target)
        (colored / "images").mkdir(exist_ok=True)
        (colored / "images" / part).symlink_to(data / "images" / part)
    (colored / "classes.json").write_text(json.dumps(table))
    run = train_maps(colored, tmp_path / "run", epochs=1)
    classes = Run.open(run.path).classes
    assert classes.names == ("ground", "thing")
    (colored / "classes.json").unlink()
    figures = muntin.evaluate(run.path, colored, pictures=False)  # without a table: that of the run
    assert figures["class_names"] == ["ground", "thing"]
    found = muntin.load(run.path)(colored / "images" / "val" / "00000.jpg")[0]
    assert found.colors == ((10, 20, 30), (200, 100, 0))


def test_wrong_words(data, tmp_path):
    with pytest.raises(ConfigError, match="detect"):
        train_maps(data, tmp_path / "run", head="fcos")
    with pytest.raises(ConfigError, match="'coco-3x'"):
        train_maps(data, tmp_path / "run", recipe="coco-3x")
    with pytest.raises(ConfigError, match=r"aux_level.*5"):
        train_maps(data, tmp_path / "run", head="upernet", settings={"head.aux_level": 5})
    with pytest.raises(DataError, match="mask"):
        train_maps(data / "images", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scales", ["0.75,1", "abc", [], ["a"]])
def test_scales_must_be_numbers(data, run, scales):
    with pytest.raises(ConfigError, match="scales"):
        muntin.load(run)(next((data / "images" / "val").iterdir()), scales=scales)
