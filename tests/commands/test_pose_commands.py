# SPDX-License-Identifier: Apache-2.0
"""The command line for keypoints: end to end, CSV, videos, and one line per error."""

from __future__ import annotations

import csv
import json
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from muntin.data.pose import list_pose
from muntin.prediction.from_run import load
from muntin.prediction.video import write_video
from muntin.run_files import write_results
from muntin.synthetic.datasets import write_coco, write_frames
from tests.commands.cli_errors import fails_with
from tests.detectors import BODY, BODY_SETTINGS, train_dense, train_detector

OPTIONS = [
    *(f"--set={name}={value}" for name, value in {**BODY_SETTINGS, "head.channels": 16}.items()),
    "--model", BODY, "--weights=none", "--img-size=64", "--batch-size=4", "--precision=fp32",
    "--device=cpu", "--epochs=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "frames"
    return write_frames(folder, num_train=6, num_val=2, size=(64, 80))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run that nobody changes."""
    return train_dense("pose", data, tmp_path_factory.mktemp("runs") / "poses", epochs=1).path


def test_end_to_end(muntin, data, tmp_path):
    run = tmp_path / "run"
    code, stdout, _ = muntin("check", "pose", data)
    assert code == 0
    assert "5 keypoints" in stdout
    assert muntin("train", "pose", data, "--out", run, *OPTIONS)[0] == 0
    code, stdout, _ = muntin("eval", run, data)
    assert code == 0
    for figure in ("oks_ap", "pck", "mean_pixel_error", "centre"):
        assert figure in stdout
    figures = json.loads(muntin("eval", run, data, "--json")[1])
    assert figures["keypoint_names"] == ["centre", "top", "right", "bottom", "left"]
    mirrored = json.loads(muntin("eval", run, data, "--json", "--tta")[1])
    assert mirrored["mean_pixel_error"] != figures["mean_pixel_error"]
    drawn = tmp_path / "drawn"
    code, stdout, _ = muntin("predict", run, data / "val", "--out", drawn, "--tta")
    assert code == 0
    assert len(list(drawn.glob("*.png"))) == 2
    rows = list(csv.reader((drawn / "poses.csv").read_text().splitlines()))
    assert [row[0] for row in rows[:3]] == ["scorer", "bodyparts", "coords"]
    assert (drawn / rows[3][0]).resolve() == data / "val" / "00000.jpg", "as seen from the table"
    assert all(0 <= float(cell) <= 1 for cell in rows[3][3::3])
    assert "0.3" in stdout
    again = list_pose(drawn / "poses.csv").train
    assert len(again) == 2, "the table is read where it lies"
    assert (Path(again.source) / again.entries[0].path).is_file()


def test_skipped_images_are_counted(muntin, data, tmp_path):
    broken = shutil.copytree(data, tmp_path / "frames")
    table = next(iter(sorted(broken.rglob("*.csv"))))
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], lines[-1] + ",1"]) + "\n")
    code, stdout, _ = muntin("check", "pose", broken)
    assert code == 0
    assert "1 warning" in stdout


def test_a_score_for_whole_images(muntin, run, data):
    image = data / "val" / "00000.jpg"
    assert muntin("predict", run, image, "--threshold=1")[0] == 0
    found = json.loads(muntin("predict", run, image, "--threshold=1", "--json")[1])
    assert found[0]["poses"] == []


def test_json(muntin, run, data):
    found = json.loads(muntin("predict", run, data / "val", "--json")[1])
    assert [one["size"] for one in found] == [[64, 80]] * 2
    (pose,) = found[0]["poses"]
    assert len(pose["keypoints"]) == 5
    assert len(pose["keypoints"][0]) == 3
    assert 0 <= pose["score"] <= 1


def test_a_video(muntin, run, tmp_path):
    frames = [Image.new("RGB", (80, 64), (n * 20, 90, 120)) for n in range(6)]
    clip = write_video(tmp_path / "clip.mp4", frames, Fraction(5))
    out = tmp_path / "out"
    code, stdout, _ = muntin("predict", run, clip, "--out", out)
    assert code == 0
    assert "6 frames" in stdout
    assert "--out" not in stdout
    assert "--out" in muntin("predict", run, clip)[1]
    rows = list(csv.reader((out / "clip.csv").read_text().splitlines()))
    assert [row[0] for row in rows[3:]] == [str(n) for n in range(6)]
    assert (out / "clip.mp4").stat().st_size > 0
    found = json.loads(muntin("predict", run, clip, "--json")[1])
    assert [one["path"].rpartition("#")[2] for one in found] == [str(n) for n in range(6)]


@pytest.mark.filterwarnings("always::UserWarning")
def test_an_unreadable_video_is_skipped(muntin, run, data, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    clip = write_video(tmp_path / "clip.mp4", [Image.new("RGB", (80, 64))] * 2, Fraction(5))
    image = data / "val" / "00000.jpg"
    code, stdout, err = muntin("predict", run, broken, clip, image, "--out", tmp_path / "out")
    assert code == 1
    assert "clip.mp4" in stdout
    assert "00000.jpg" in stdout
    assert str(broken) in err
    assert "Errno" not in err
    assert sorted(p.name for p in (tmp_path / "out").glob("*.mp4")) == ["clip.mp4"]
    assert fails_with(muntin("predict", run, broken), str(broken))


@pytest.mark.filterwarnings("always::UserWarning")
@pytest.mark.slow
def test_a_run_of_boxes_without_any(muntin, data, tmp_path):
    scenes = write_coco(tmp_path / "scenes", num_train=6, num_val=2, size=(64, 80))
    train_dense("pose", scenes, tmp_path / "run", epochs=1)
    assert not muntin("eval", tmp_path / "run", scenes, "--json")[2]
    assert "boxes" in muntin("eval", tmp_path / "run", data, "--json")[2]


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_detector(muntin, tmp_path):
    scenes = write_coco(tmp_path / "scenes", num_train=6, num_val=2, size=(64, 80))
    train_dense("pose", scenes, tmp_path / "pose", epochs=1)
    train_detector("detect", scenes, tmp_path / "boxes", epochs=1)
    words = ["predict", tmp_path / "pose", scenes / "val", "--detector", tmp_path / "boxes"]
    found = json.loads(muntin(*words, "--json")[1])
    assert len(found) == 2
    words = ["eval", tmp_path / "pose", scenes, "--detector", tmp_path / "boxes", "--json"]
    figures = json.loads(muntin(*words)[1])
    assert figures["num_images"] == 2
    # After one epoch there is hardly a best score; the results name another one here.
    write_results(tmp_path / "boxes", 1, {"box_ap": 0.9, "best_threshold": 0.1})
    figures = json.loads(muntin(*words)[1])
    assert figures["threshold"] == pytest.approx(0.1, abs=1e-3)
    assert "0.10" in muntin(*words[:-1])[1]
    words = ["predict", tmp_path / "pose", scenes / "val", "--detector", tmp_path / "boxes"]
    stdout = muntin(*words)[1]
    assert "0.10" in stdout
    assert "--threshold" in stdout
    assert (
        load(tmp_path / "pose", detector=tmp_path / "boxes").detector.threshold
        == figures["threshold"]
    )
    found = json.loads(muntin(*words, "--threshold=0.99", "--json")[1])
    assert [one["poses"] for one in found] == [[], []]
    code, _, err = muntin("predict", tmp_path / "pose", scenes / "val")
    assert code == 0
    assert "--detector" in err
    words = ["predict", tmp_path / "boxes", scenes / "val", "--detector", tmp_path / "boxes"]
    assert fails_with(muntin(*words), "detector")
    assert fails_with(muntin("eval", tmp_path / "boxes", scenes, "--tta"), "tta")


def test_wrong_words(muntin, run, data, tmp_path):
    image = data / "val" / "00000.jpg"
    assert fails_with(muntin("predict", run, image, "--detector", run), "detect")
    assert fails_with(muntin("predict", run, image, "--tile=64"), "tile")
    assert fails_with(muntin("predict", run, tmp_path / "none.mp4"), "none.mp4")
    words = ["train", "pose", data, "--out", tmp_path / "other"]
    assert fails_with(muntin(*words, "--head=fcos"), "'fcos'", "detect")
    assert fails_with(muntin("train", "pose", tmp_path / "none"), "none")
    assert fails_with(muntin("train", "pose", data / "val" / "00000.jpg"), "DATA")
