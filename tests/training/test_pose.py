# SPDX-License-Identifier: Apache-2.0
"""Tiny networks that learn keypoints, from beginning to end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import muntin
from muntin.errors import ConfigError, DataError
from muntin.results import Poses
from muntin.runs import Run, read_journal
from muntin.synthetic.datasets import write_coco, write_frames
from muntin.train_config import MachineConfig
from muntin.training.request import Request
from muntin.training.setup import prepare
from tests.detectors import BODY, BODY_SETTINGS, train_dense
from tests.training.test_resume import journal_of, state_of


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "frames"
    return write_frames(folder, num_train=12, num_val=4, size=(64, 80), max_angle=0.3)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_coco(folder, num_train=8, num_val=4, size=(96, 96), max_objects=3)


train_poses = partial(train_dense, "pose")


def prepared(data, **options):
    """The config that a run would begin with; nothing is trained."""
    machine = MachineConfig(device="cpu", precision="fp32", workers=0)
    request = Request(task="pose", data=str(data), out="nowhere", machine=machine, **options)
    return prepare(request).run.config


@pytest.mark.parametrize(
    "head",
    [
        "light_pose_small",
        pytest.param("simple_baseline", marks=pytest.mark.slow),
        pytest.param("vitpose_simple", marks=pytest.mark.slow),
    ],
)
def test_every_head_learns(frames, tmp_path, head):
    still = {"augment.flip": 0, "augment.scale": 0, "augment.rotate": 0, "augment.shift": 0}
    settings = {**still, "augment.jitter": 0, "train.learning_rate": 3e-3}
    drawn = head == "light_pose_small"
    run = train_poses(
        frames,
        tmp_path / "run",
        head=head,
        epochs=6 if drawn else 12,
        settings=settings,
        pictures=drawn,
    )
    losses = [line["train_loss"] for line in read_journal(run.path)]
    assert np.mean(losses[-3:]) < losses[0]
    assert {"oks_ap", "pck", "mean_pixel_error", "pck_per_keypoint"} <= run.metrics.keys()
    figures = muntin.evaluate(run.path, frames, pictures=False)
    assert figures["mean_pixel_error"] == pytest.approx(run.metrics["mean_pixel_error"], abs=1e-4)
    names = {path.name for path in (run.path / "pictures").rglob("*.png")}
    wanted = {"best.png", "worst.png", "errors.png", "per_keypoint.png", "batch.png", "curves.png"}
    assert names == (wanted if drawn else set())


def test_whole_frames_need_no_boxes(frames, tmp_path):
    run = train_poses(frames, tmp_path / "run", epochs=1)
    opened = Run.open(run.path)
    assert opened.preprocessing.padding == 1
    assert opened.preprocessing.fit == "instance_crop"
    assert opened.classes.skeleton.flip_pairs == ((2, 4),)
    images = sorted((frames / "val").glob("*.[jp][pn]g"))
    found = muntin.load(run.path)(images)
    assert all(isinstance(one, Poses) and len(one) == 1 for one in found)
    assert found[0].boxes is None


@pytest.mark.slow
def test_boxes_and_a_detector(scenes, tmp_path):
    run = train_poses(scenes, tmp_path / "pose", epochs=1)
    opened = Run.open(run.path)
    assert opened.preprocessing.padding == 1.25
    body = {**BODY_SETTINGS, "head.neck.channels": 16}
    detector = muntin.train(
        "detect", scenes, out=tmp_path / "boxes", quiet=True, settings=body, model=BODY, epochs=1,
        img_size=64, batch_size=4, weights="none", precision="fp32", device="cpu", pictures=False,
    )  # fmt: skip
    figures = muntin.evaluate(run.path, scenes, detector=detector.path, pictures=False)
    assert figures["num_images"] == 4
    assert {"oks_ap", "pck"} <= figures.keys()
    predictor = muntin.load(run.path, detector=detector.path, least=0.0)
    image = next((scenes / "val").glob("*.jpg"))
    found = predictor([image])[0]
    assert found.boxes is not None
    assert found.keypoints.shape == (len(found), 5, 3)
    with pytest.raises(ConfigError, match="detect"):
        muntin.load(run.path, detector=run.path)
    with pytest.raises(ConfigError, match="detector"):
        muntin.load(detector.path, detector=detector.path)
    with pytest.raises(ConfigError, match="detector"):
        muntin.evaluate(detector.path, scenes, detector=detector.path)


def test_subjects_and_keypoints_in_one_go(scenes, tmp_path):
    settings = {
        **BODY_SETTINGS,
        "head.neck.channels": 16,
        "head.mask_convs": 1,
        "head.mask_dim": 16,
    }
    run = muntin.train(
        "pose", scenes, out=tmp_path / "run", quiet=True, head="keypoint_rcnn_small", model=BODY,
        img_size=64, epochs=1, batch_size=4, weights="none", precision="fp32", device="cpu",
        settings=settings, pictures=False,
    )  # fmt: skip
    assert {"oks_ap", "pck", "mean_pixel_error"} <= run.metrics.keys()
    assert run.metrics["num_images"] == 4
    predictor = muntin.load(run.path, select={"score_threshold": 0.0})
    image = next((scenes / "val").glob("*.jpg"))
    found = predictor([image])[0]
    assert found.keypoints.shape == (len(found), 5, 3)
    assert len(found) > 0
    assert (found.keypoints[:, :, 2] <= 1).all()
    figures = muntin.evaluate(run.path, scenes, pictures=False)
    assert figures["num_images"] == 4
    for options in ({"tta": True}, {"tile": 64}):
        with pytest.raises(ConfigError, match=r"tta|tile"):
            predictor([image], **options)
    again = prepared(scenes, weights=str(run.path), img_size=(64, 64))
    assert again.head == Run.open(run.path).config.head


def test_stopped_and_resumed_is_the_same(frames, tmp_path):
    whole = train_poses(frames, tmp_path / "whole")
    train_poses(frames, tmp_path / "parted", stop_after=4)
    parted = train_poses(frames, tmp_path / "parted", resume=True)
    assert journal_of(parted.path) == journal_of(whole.path)
    (expected, rest), (got, other) = state_of(whole.path), state_of(parted.path)
    assert got.keys() == expected.keys()
    assert all(got[name].equal(tensor) for name, tensor in expected.items())
    assert other == rest


@pytest.mark.parametrize(
    "settings",
    [
        {
            "augment.half_body": 1.0, "augment.occlude": 1.0, "augment.jitter": 0.5,
            "data.cache_mib": 0,
        },
        {"head.coding": "msra", "train.accumulate": 2, "train.checkpointing": True},
    ],
)  # fmt: skip
def test_settings(scenes, tmp_path, settings):
    run = train_poses(scenes, tmp_path / "run", epochs=1, settings=settings)
    opened = Run.open(run.path)
    assert opened.preprocessing.alignment == opened.config.head.coding
    assert np.isfinite(run.metrics["mean_pixel_error"])


def test_a_run_is_a_start(frames, tmp_path):
    first = train_poses(frames, tmp_path / "first", epochs=1)
    config = prepared(frames, weights=str(first.path))
    assert config.weights == str(first.path)
    assert config.train.recipe == "small-data"


def test_published_recipe_by_name(scenes):
    config = prepared(scenes, recipe="coco-pose")
    assert config.train.decay == "steps"
    assert config.augment.rotation == 40


def test_what_is_refused(frames, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.label_smoothing"):
        train_poses(frames, tmp_path / "run", settings={"train.label_smoothing": 0.1})
    with pytest.raises(ConfigError, match="instance"):
        train_poses(frames, tmp_path / "run", head="mask_rcnn")
    with pytest.raises(DataError, match="eypoints"):
        train_poses(tmp_path, tmp_path / "run")
