# SPDX-License-Identifier: Apache-2.0
"""What commands write, beside inputs, other files and results of before."""

import csv
import json
import os
import signal
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from muntin.commands.prediction_output import (
    FileOptions,
    Output,
    VideoOptions,
    predict_videos,
    progress_facts,
)
from muntin.commands.values import to_json
from muntin.errors import DataError
from muntin.prediction.formats.finished_inputs import FINISHED
from muntin.prediction.from_run import load
from muntin.prediction.video import read_frames, write_video
from muntin.prediction.video_streams import VideoSource
from muntin.results import Detections
from muntin.runs import Run
from tests.commands.cli_errors import fails_with
from tests.exporting.runs import write_run

pytestmark = pytest.mark.filterwarnings("ignore::muntin.errors.MuntinWarning")
KINDS = {
    "classify": [], "fcos": [], "pose": [".muntin-results.jsonl", "poses.csv"],
    "semantic": ["classes.json"],
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {kind: write_run(folder / kind, kind, side=64).path for kind in KINDS}


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 52, 3), value, np.uint8)).save(path)
    return path


def clip(path):
    return write_video(path, [Image.new("RGB", (64, 48))] * 2, Fraction(5))


def content(folder):
    """Bytes of all files, by path; without the notes of what is finished."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != FINISHED
    }


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_called_like_images(muntin, runs, tmp_path, kind):
    for place in ("new/mon/a.png", "new/tue/a.png", "new/tue/b.jpg", "new/tue/b.png"):
        draw(tmp_path / place, 90)
    names = ["mon/a.png", "tue/a.png", "tue/b.jpg.png", "tue/b.png.png"]
    if kind == "semantic":
        names += [name.removesuffix(".png") + "_labels.png" for name in names]
    assert muntin("predict", runs[kind], tmp_path / "new", "--out", tmp_path / "out")[0] == 0
    assert [*content(tmp_path / "out")] == sorted([*names, *KINDS[kind]])
    one = ["predict", runs[kind], tmp_path / "new" / "tue" / "b.jpg", "--out", tmp_path / "one"]
    assert muntin(*one)[0] == 0
    assert {"b.png", *KINDS[kind]} <= {*content(tmp_path / "one")}


@pytest.mark.parametrize("kind", ["classify", "pose"])
def test_videos_of_one_name_and_a_video_in_out(muntin, runs, tmp_path, kind):
    given = [clip(tmp_path / name) for name in ("v/clip.mp4", "v/clip.avi", "w/clip.mp4")]
    before = content(tmp_path)
    for flag in ([], ["--force"], ["--resume"]):
        found = muntin("predict", runs[kind], given[0], "--out", tmp_path / "v", *flag)
        assert fails_with(found, "--out", str(given[0]))
    assert content(tmp_path) == before
    assert muntin("predict", runs[kind], *given, "--out", tmp_path / "out")[0] == 0
    names = ["v/clip.avi.mp4", "v/clip.mp4.mp4", "w/clip.mp4"]
    names += [name.removesuffix(".mp4") + ".csv" for name in names] * (kind == "pose")
    assert [*content(tmp_path / "out")] == sorted(names)


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_before_are_replaced_or_continued_if_asked(muntin, runs, tmp_path, kind):
    images, out = [draw(tmp_path / f"new/{n}.png", 40 * n) for n in range(3)], tmp_path / "out"
    call = ["predict", runs[kind], tmp_path / "new", "--out", out]
    assert muntin("predict", runs[kind], images[1], "--out", out)[0] == 0
    (out / "1.png").write_bytes(b"of before")
    before = content(out)
    assert fails_with(muntin(*call), str(out), "--force")
    assert content(out) == before
    before = {name: data for name, data in before.items() if name not in KINDS["pose"]}
    code, _, said = muntin(*call, "--resume")
    assert (code, "1 input" in said, str(out) in said) == (0, True, True)
    assert before.items() <= content(out).items()
    assert {"0.png", "1.png", "2.png"} <= {*content(out)}
    if kind == "pose":
        rows = (out / "poses.csv").read_text().splitlines()[3:]
        assert sorted(row.split(",")[0] for row in rows) == [f"../new/{n}.png" for n in range(3)]
    assert muntin(*call, "--force")[0] == 0
    assert content(out)["1.png"] != b"of before"


@pytest.mark.parametrize(
    "source", ["0", "rtsp://host/live", "http://host/a.jpg", "http://host/a?b", "http://host/a.mp4"]
)
def test_cameras_and_addresses_are_answered(muntin, runs, tmp_path, source):
    with pytest.raises(DataError, match="and give"):
        load(runs["classify"])(source)
    call = ["train", "classify", source, "--out", tmp_path / "run"]
    assert fails_with(muntin(*call), repr(source), "give its files")


def test_a_camera_or_a_stream_that_is_not_there_is_one_line(muntin, runs):
    run = runs["classify"]
    assert fails_with(muntin("predict", run, "97"), "camera97")
    found = muntin("predict", run, "http://me:secret@127.0.0.1:9/live?key=1")
    assert fails_with(found, "http://127.0.0.1:9/live must be")
    assert "secret" not in found[2]
    alike = [f"http://127.0.0.1:9/live?channel={number}" for number in (1, 2)]
    assert fails_with(muntin("predict", run, *alike), "got http://127.0.0.1:9/live twice")
    assert fails_with(muntin("predict", run, "C:/a.jpg"), "Check the path")
    assert fails_with(muntin("predict", run, "s3://bucket/a.jpg"), "images, folders")


@pytest.mark.parametrize(
    ("kind", "flags"), [("fcos", ["--track", "--threshold=0.01"]), ("pose", ["--smooth"])]
)
def test_objects_of_a_video_have_ids(muntin, runs, tmp_path, kind, flags):
    given, out = clip(tmp_path / "clip.mp4"), tmp_path / "out"
    call = ["predict", runs[kind], given, *flags, "--out", out, "--format", "drawing,csv,json"]
    assert muntin(*call)[0] == 0
    assert {"clip.mp4", "clip_predictions.csv", "clip_predictions.json"} == {*content(out)}
    answers = json.loads((out / "clip_predictions.json").read_text())
    assert [(one["frame"], one["time"]) for one in answers] == [(0, 0.0), (1, 0.2)]
    things = [thing for one in answers for thing in one["boxes" if kind == "fcos" else "poses"]]
    assert things
    assert all(thing["track"] >= 1 for thing in things)
    assert fails_with(muntin("predict", runs["semantic"], given, flags[0]), flags[0])
    image = draw(tmp_path / "a.png", 9)
    assert fails_with(muntin("predict", runs[kind], image, flags[0]), flags[0])


class Interrupted:
    """A predictor that finds nothing, during whose fourth frame Ctrl-C is pressed."""

    batch_size = 1

    def stream(self, images):
        for number, pixels in enumerate(images):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield Detections(
                path="", size=pixels.shape[:2], boxes=np.zeros((0, 4)), scores=np.zeros(0),
                class_ids=np.zeros(0, np.int64), class_names=(),
            )  # fmt: skip


def test_an_interrupted_video_is_whole(runs, tmp_path):
    given = write_video(tmp_path / "clip.mp4", [Image.new("RGB", (64, 48))] * 9, Fraction(5))
    options = FileOptions(str(tmp_path / "out"), ("drawing", "csv"), False, False, False)
    with Output(Run.open(runs["fcos"]), options, 0.3, {}, as_json=False) as output:
        _, videos = output.plan([], [VideoSource(str(given), "file")])
        with pytest.raises(KeyboardInterrupt):
            predict_videos(
                Interrupted(), videos, output, VideoOptions(False, False, 0.0), {}, strict=True
            )
    assert len(list(read_frames(tmp_path / "out" / "clip.mp4"))) == 4
    assert len((tmp_path / "out" / "clip_predictions.csv").read_text().splitlines()) == 5


class BlobDetector:
    """A predictor that finds red and blue squares, the ones it sees, as objects of one class."""

    batch_size = 4

    def stream(self, images):
        for pixels in images:
            strong = pixels.astype(int)
            areas = [strong[..., one] > strong[..., other] + 80 for one, other in ((0, 2), (2, 0))]
            spans = [np.argwhere(area) for area in areas if area.sum() > 30]
            spans.sort(key=len)  # the order changes while one is covered
            yield Detections(
                path="", size=pixels.shape[:2], scores=np.full(len(spans), 0.9),
                boxes=np.array(
                    [[*one.min(0)[::-1], *(one.max(0)[::-1] + 1)] for one in spans], float
                ).reshape(-1, 4),
                class_ids=np.zeros(len(spans), np.int64), class_names=("ash",) * len(spans),
            )  # fmt: skip


def test_two_objects_that_cross_in_a_video_keep_their_ids(runs, tmp_path):
    def frames():
        for step in range(33):
            image = Image.new("RGB", (160, 64), "white")
            image.paste((30, 30, 220), (130 - 4 * step, 20, 154 - 4 * step, 44))
            image.paste((220, 30, 30), (4 * step, 18, 4 * step + 24, 42))  # in front
            yield image

    given = write_video(tmp_path / "cross.mp4", frames(), Fraction(25))
    options = FileOptions(str(tmp_path / "out"), ("drawing", "csv"), False, False, False)
    with Output(Run.open(runs["fcos"]), options, 0.3, {}, as_json=False) as output:
        _, videos = output.plan([], [VideoSource(str(given), "file")])
        how = VideoOptions(True, False, 0.0)
        assert predict_videos(BlobDetector(), videos, output, how, {}, strict=True)
    with (tmp_path / "out" / "cross_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = {}
    for row in rows:
        places.setdefault(row["track"], []).append((int(row["frame"]), float(row["xmin"])))
    assert len(places) == 2
    speeds = sorted(np.polyfit(*zip(*one, strict=True), 1)[0] for one in places.values())
    assert -4.4 < speeds[0] < -3.4
    assert 3.4 < speeds[1] < 4.4
    assert len(list(read_frames(tmp_path / "out" / "cross.mp4"))) == 33


def test_formats_need_a_folder_and_a_run_that_suits(muntin, runs, tmp_path):
    image = draw(tmp_path / "a.png", 9)
    assert fails_with(muntin("predict", runs["classify"], image, "--format=csv"), "--out")
    call = ["predict", runs["classify"], image, "--out", tmp_path / "out"]
    assert fails_with(muntin(*call, "--format=yolo"), "yolo", "csv")
    assert fails_with(muntin(*call, "--format=cvs"), "'csv'", "See: muntin predict")
    assert not (tmp_path / "out").exists()


def test_nothing_was_written_where_nothing_was_read(muntin, runs, tmp_path):
    broken, out = tmp_path / "a.png", tmp_path / "out"
    broken.write_text("no image")
    code, text, _ = muntin("predict", runs["classify"], broken, "--out", out)
    assert (code, "written to" in text) == (1, False)
    draw(broken, 9)
    code, text, _ = muntin("predict", runs["classify"], broken, "--out", out, "--force")
    assert (code, "written to" in text) == (0, True)


def test_an_image_in_out_is_not_drawn_over(muntin, runs, tmp_path):
    image = draw(tmp_path / "a.png", 9)
    before = content(tmp_path)
    call = ["predict", runs["classify"], image, "--out", tmp_path, "--force"]
    assert fails_with(muntin(*call), str(image))
    assert content(tmp_path) == before
    assert muntin(*call[:2], draw(tmp_path / "b.jpg", 9), *call[3:])[0] == 0  # b.png is new


def test_other_verbs_write_over_nothing(muntin, runs, tmp_path):
    run, data = runs["classify"], tmp_path / "data"
    image = draw(data / "ash" / "a.png", 9)
    draw(data / "birch" / "b.png", 90)
    (data / "classes.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("weights")
    weights, page = run / "weights.safetensors", tmp_path / "page"
    before, of_run = content(tmp_path), content(run)
    given = ["--weights=none", "--model=swin_nano", "--epochs=1"]
    explain = ["explain", run, image, "--sections=cut", "--out"]
    calls = {
        "data": ["train", "classify", data, "--out", data, *given],
        "classes.json": ["train", "classify", data / "..", "--out", data, *given],
        "pytorch_model.bin": [
            "export", run, tmp_path / "pytorch_model.xml", "--format=openvino",
        ],
        "weights.safetensors": [
            "convert", run, weights, "--to=timm", "--model=swin_nano", "--force",
        ],
    }  # fmt: skip
    for name, call in calls.items():
        assert fails_with(muntin(*call), name)
    assert (content(tmp_path), content(run)) == (before, of_run)
    assert muntin(*explain, page)[0] == 0
    assert fails_with(muntin(*explain, page), "page.html", "--force")
    assert muntin(*explain, page, "--force")[0] == 0


def test_progress_of_many_images_is_told():
    """How many, how fast and how long, in a line from time to time where no terminal is."""
    assert progress_facts(101, 100_000, 10.0) == {
        "images": "101 of 100,000", "rate": "10/s", "left": "2h46m",
    }  # fmt: skip
    assert progress_facts(8, 100, 0.0) == {"images": "8 of 100"}


def test_json_has_no_numbers_that_json_lacks():
    text = to_json({"a": [1.5, float("nan"), (float("inf"), "NaN")], 3: None})
    assert json.loads(text) == {"a": [1.5, None, [None, "NaN"]], "3": None}


def test_results_are_no_inputs_of_the_next_call(muntin, runs, tmp_path):
    folder = draw(tmp_path / "new" / "a.png", 90).parent
    assert fails_with(
        muntin("predict", runs["classify"], folder, "--out", folder), "--out", "inputs"
    )
    for flag in ([], ["--force"]):
        found = muntin("predict", runs["classify"], folder, "--out", folder / "drawn", *flag)
        assert (found[0], "1 image in" in found[2]) == (0, bool(flag))
    assert [*content(folder)] == ["a.png", "drawn/a.png"]
