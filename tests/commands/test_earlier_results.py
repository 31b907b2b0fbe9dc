# SPDX-License-Identifier: Apache-2.0
"""What a call of ``muntin predict`` makes of inputs and results of before in its folders."""

import json
import os
import signal
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from muntin.commands.prediction_output import FileOptions, Output, VideoOptions, predict_videos
from muntin.prediction.formats.finished_inputs import FINISHED
from muntin.prediction.video import write_video
from muntin.prediction.video_streams import VideoSource
from muntin.results import Detections
from muntin.runs import Run
from tests.commands.cli_errors import fails_with
from tests.exporting.runs import write_run

pytestmark = pytest.mark.filterwarnings("ignore::muntin.errors.MuntinWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "fcos", "fcos", side=64).path


def draw(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 52, 3), value, np.uint8)).save(path)
    return path


def files_of(folder):
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != FINISHED)
    return {path.relative_to(folder).as_posix() for path in paths}


class NothingFound:
    """A predictor that finds nothing; in the fourth frame Ctrl-C is pressed, if at all."""

    batch_size = 1

    def __init__(self, *, interrupted=False):
        self.interrupted = interrupted

    def stream(self, images):
        for number, pixels in enumerate(images):
            if number == 3 and self.interrupted:
                os.kill(os.getpid(), signal.SIGINT)
            yield Detections(
                path="", size=pixels.shape[:2], boxes=np.zeros((0, 4)), scores=np.zeros(0),
                class_ids=np.zeros(0, np.int64), class_names=(),
            )  # fmt: skip


def frames_in(path, count):
    return write_video(path, [Image.new("RGB", (64, 48))] * count, Fraction(5))


def test_an_interrupted_video_is_begun_anew_by_resume(run, tmp_path):
    given, out = frames_in(tmp_path / "clip.mp4", 9), tmp_path / "out"
    how, about = VideoOptions(False, False, 0.0), {"run": "fcos"}

    def call(predictor, *, resume):
        options = FileOptions(str(out), ("csv",), False, False, resume)
        with Output(Run.open(run), options, 0.3, about, as_json=False) as output:
            _, videos = output.plan([], [VideoSource(str(given), "file")])
            return predict_videos(predictor, videos, output, how, {}, strict=True)

    with pytest.raises(KeyboardInterrupt):
        call(NothingFound(interrupted=True), resume=False)
    assert call(NothingFound(), resume=True) == {str(given): 9}
    assert call(NothingFound(), resume=True) == {}


@pytest.mark.parametrize("formats", ["drawing", "csv", "yolo"])
@pytest.mark.parametrize("source", ["image", "video"])
def test_resume_wants_the_same_run_and_options(muntin, run, tmp_path, source, formats):
    given = draw(tmp_path / "a.png", 9) if source == "image" else frames_in(tmp_path / "a.mp4", 2)
    other = write_run(tmp_path / "o" / "fcos", "fcos", side=64, seed=5).path
    rest = [given, "--out", tmp_path / "out", "--format", formats, "--threshold", "0.4"]
    assert muntin("predict", run, *rest)[0] == 0
    found = muntin("predict", other, *rest, "--resume")
    assert fails_with(found, "--out", "weights is", "--force")
    assert "left out" not in found[2]
    assert "tta" not in found[2]
    found = muntin("predict", run, *rest[:-1], "0.6", "--resume")
    assert fails_with(found, "threshold is 0.6, there 0.4")
    assert muntin("predict", other, *rest, "--force")[0] == 0
    assert "1 input left out" in muntin("predict", other, *rest, "--resume")[2]


def test_tables_of_a_video_are_of_one_run(muntin, run, tmp_path):
    call = ["predict", run, frames_in(tmp_path / "a.mp4", 2), "--out", tmp_path / "out"]
    assert muntin(*call, "--format", "csv")[0] == 0
    found = muntin(*call, "--format", "json", "--threshold", "0.9")
    assert fails_with(found, "threshold is 0.9")
    assert muntin(*call, "--format", "json")[0] == 0


def test_force_leaves_no_table_of_an_earlier_call(muntin, run, tmp_path):
    image, video = draw(tmp_path / "a.png", 9), frames_in(tmp_path / "b.mp4", 2)
    out = tmp_path / "out"
    call = ["predict", run, image, video, "--out", out]
    (out / "poses.csv").parent.mkdir()
    (out / "mine.json").write_text("{}")
    assert muntin(*call, "--format", "csv,coco")[0] == 0
    assert muntin(*call, "--format", "drawing", "--force")[0] == 0
    assert {"predictions_coco.json", "b_coco.json"} <= files_of(out)
    found = muntin(*call, "--format", "csv", "--force", "--threshold", "0.9")
    assert found[0] == 0
    assert "predictions_coco.json" in found[2]
    tables = {"b_predictions.csv", "predictions.csv", "mine.json", ".muntin-results.jsonl"}
    assert files_of(out) == tables | {"a.png", "b.mp4"}


def test_an_input_that_is_given_twice_is_predicted_once(muntin, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, video = draw(tmp_path / "a.png", 9), frames_in(tmp_path / "b.mp4", 2)
    given = ["a.png", image, "./a.png", "b.mp4", video]
    found = muntin("predict", run, *given, "--out", "out", "--format", "json")
    assert (found[0], "3 inputs left out" in found[2]) == (0, True)
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())) == 1
    found = muntin("predict", run, image, "--out", "out", "--format", "json", "--resume")
    assert "1 input left out" in found[2]


def test_videos_in_a_folder_are_named(muntin, run, tmp_path):
    image, video = draw(tmp_path / "mix/a.png", 9), frames_in(tmp_path / "mix/b.mp4", 2)
    found = muntin("predict", run, image.parent)
    assert (found[0], "1 video in" in found[2], str(video) in found[2]) == (0, True, True)
    found = muntin("predict", run, f"{image.parent}/*", "--out", tmp_path / "out")
    assert found[0] == 0
    assert files_of(tmp_path / "out") == {"a.png", "b.mp4"}


def test_annotations_may_lie_beside_the_inputs(muntin, run, tmp_path):
    image = draw(tmp_path / "in/a.png", 9)
    call = ["predict", run, image.parent, "--out", image.parent]
    assert fails_with(muntin(*call, "--format", "labelme,drawing"), "--format labelme")
    assert muntin(*call, "--format", "labelme")[0] == 0
    assert files_of(image.parent) == {"a.png", "a.json"}


def test_a_broken_frame_of_a_folder_is_left_out(muntin, run, tmp_path):
    for number in range(3):
        draw(tmp_path / f"in/{number}.png", 40 * number)
    (tmp_path / "in/1.png").write_bytes(b"no image")
    call = ["predict", run, tmp_path / "in", "--track", "--out", tmp_path / "out"]
    assert muntin(*call, "--format", "json")[0] == 1
    rows = json.loads((tmp_path / "out" / "in_predictions.json").read_text())
    assert [row["time"] for row in rows] == [0, 0.08]


def test_what_a_killed_process_left_is_removed(muntin, run, tmp_path):
    image, out = draw(tmp_path / "a.png", 9), tmp_path / "out"
    left = [out / "images/.muntin-partial-0a.png", out / ".muntin-abcd1234/a.mp4"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    call = ["predict", run, image, "--out", out, "--format", "yolo", "--resume"]
    assert muntin(*call)[0] == 0
    assert not any(path.exists() for path in (*left, left[1].parent))
