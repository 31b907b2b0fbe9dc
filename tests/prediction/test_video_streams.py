# SPDX-License-Identifier: Apache-2.0
"""Folders of frames, cameras and streams that break; files of videos of every kind of task."""

from __future__ import annotations

import csv
import json
import threading
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from muntin.data.detection import list_detect
from muntin.errors import DataError, MuntinWarning
from muntin.prediction.formats.format_table import choose_formats
from muntin.prediction.formats.items import FormatContext
from muntin.prediction.formats.video_files import FrameResult, write_video_files
from muntin.prediction.video import read_frames, write_video
from muntin.prediction.video_streams import Frame, VideoReader, VideoSource, split_videos
from muntin.results import Detections
from muntin.samples import Classes

SHADES = (30, 90, 150, 210)


def frames_of(shades, count=10):
    return [Image.new("RGB", (64, 48), (shade,) * 3) for shade in shades for _ in range(count)]


@pytest.fixture
def broken_stream(tmp_path):
    """A stream whose connection breaks twice; then the address is gone."""
    parts = []
    for number, shades in enumerate((SHADES[:2], SHADES[2:])):
        path = write_video(tmp_path / f"{number}.ts", frames_of(shades), Fraction(25))
        parts.append(path.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not parts:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            self.wfile.write(parts.pop(0))

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://me:secret@127.0.0.1:{server.server_port}/live"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_stream_that_breaks_is_connected_to_again(broken_stream):
    pauses = []
    source = VideoSource(broken_stream, "stream")
    with pytest.warns(MuntinWarning) as said:
        frames = list(VideoReader(source, pause=pauses.append, clock=lambda: 0.0))
    shades = [float(frame.pixels.mean()) for frame in frames]
    seen = [min(SHADES, key=lambda one: abs(one - shade)) for shade in shades]
    assert sorted({*seen}) == [*SHADES]
    assert seen == sorted(seen)
    assert len(frames) >= 32, "the last ones of a connection may be lost with it"
    assert pauses == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0]
    texts = [str(one.message) for one in said]
    assert "gone" in texts[-1]
    assert not any("secret" in text for text in texts)
    assert {text.count(source.name) for text in texts} == {1}
    assert not any("Check" in text for text in texts), "there is nothing to do"


def test_frames_of_a_stream_that_wait_are_left_out(broken_stream):
    """Each frame takes its reader five times as long as the camera: one of some five is taken."""
    now = 0.0
    reader = VideoReader(
        VideoSource(broken_stream, "stream"), pause=lambda seconds: None, clock=lambda: now
    )

    def read():
        nonlocal now
        for frame in reader:
            yield frame.time
            now += 5 / 25

    with pytest.warns(MuntinWarning):
        times = list(read())
    assert reader.num_late > len(times) > 6
    assert len(times) + reader.num_late >= 32
    np.testing.assert_allclose(np.diff(times), 0.2)


@pytest.mark.parametrize("step", [0.02, 0.0399])
def test_clocks_of_cameras_may_drift_and_jump(step):
    """A reader that waits for each frame gets all, whatever the stamps of the camera say."""
    now = 0.0
    reader = VideoReader(VideoSource("0", "camera"), clock=lambda: now)

    def frames():
        nonlocal now
        for number in range(20_000):
            now += 0.04
            yield Frame(np.zeros((2, 2, 3), np.uint8), step * number - 300 * (number > 9_000))

    assert sum(1 for _ in reader._without_late(frames())) == 20_000
    assert reader.num_late == 0


def test_a_stream_ends_when_its_time_is_over(broken_stream):
    source = VideoSource(broken_stream, "stream")
    frames = list(VideoReader(source, max_time_s=1e-6, pause=lambda seconds: None))
    assert len(frames) == 1


def test_what_is_not_there_is_an_error():
    for source in (VideoSource("97", "camera"), VideoSource("http://127.0.0.1:9/a", "stream")):
        with pytest.raises(DataError, match=source.name):
            list(VideoReader(source))


def test_frames_of_a_folder_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100, 1):
        Image.new("RGB", (8, 6), (number,) * 3).save(tmp_path / f"frame{number}.png")
    frames = list(VideoReader(VideoSource(str(tmp_path), "folder")))
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [1, 9, 10, 100]
    assert [frame.time for frame in frames] == [0, 0.04, 0.08, 0.12]


def test_frames_that_cannot_be_read_are_left_out(tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no image")
    reader = VideoReader(VideoSource(str(tmp_path), "folder"))
    with pytest.warns(MuntinWarning, match=r"skipped.*1\.png"):
        assert [frame.time for frame in reader] == [0, 0.08]
    assert reader.num_unreadable == 1
    for number in (0, 2):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    reader = VideoReader(VideoSource(str(tmp_path), "folder"))
    with pytest.warns(MuntinWarning), pytest.raises(DataError):
        list(reader)


def test_inputs_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "7").mkdir()
    given = ["a.jpg", "b.MP4", "0", "7", "rtsp://u:p@h:5/x?k=1", "s3://b/c.mp4", "*.png"]
    videos, others = split_videos(given)
    assert [video.kind for video in videos] == ["file", "camera", "stream"]
    assert videos[2].name == "rtsp://h:5/x"
    assert others == ["a.jpg", "7", "s3://b/c.mp4", "*.png"]
    assert [video.kind for video in split_videos(["7"], folders=True)[0]] == ["folder"]


def test_files_of_a_video(tmp_path):
    """Tables with frame, time and id, a drawn video, and frames that train a detector."""
    formats = choose_formats(["drawing", "csv", "json", "yolo", "labelme"], "detection", crops=True)
    context = FormatContext(
        folder=tmp_path / "out", kind="detection", classes=Classes(names=("cat",)), scorer="run"
    )

    def results():
        for number in range(6):
            found = Detections(
                path=f"clip.mp4#{number}", size=(48, 64), scores=np.array([0.9]),
                boxes=np.array([[4.0 + number, 5, 20 + number, 30]]), class_names=("cat",),
                class_ids=np.array([0]), track_ids=np.array([3]),
            )  # fmt: skip
            answer = {**found.to_dict(), "frame": number, "time": number / 5}
            yield FrameResult(np.full((48, 64, 3), 99, np.uint8), found, answer)

    write_video_files(results(), "clip", formats, context, lambda: Fraction(5))
    out = tmp_path / "out"
    assert len(list(read_frames(out / "clip.mp4"))) == 6
    with (out / "clip_predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["frame"], row["time"], row["track"]) for row in rows] == [
        (str(n), str(n / 5), "3") for n in range(6)
    ]
    assert len(json.loads((out / "clip_predictions.json").read_text())) == 6
    sets = list_detect(out / "data.yaml")
    assert len(sets.train) == 6
    np.testing.assert_allclose(sets.train.entries[2].objects.boxes, [[6, 5, 22, 30]], atol=1e-3)
    assert json.loads((out / "clip" / "000002.json").read_text())["imagePath"] == "000002.png"
    assert (out / "crops" / "cat" / "clip" / "000002_0.png").exists()


def write_clip(out, names, times):
    """Files of a video with one object, whose frames are at these seconds."""
    formats = choose_formats(names, "detection")
    context = FormatContext(
        folder=out, kind="detection", classes=Classes(names=("cat",)), scorer="run"
    )

    def results():
        for number, seconds in enumerate(times):
            found = Detections(
                path=f"../clip.mp4#{number}", size=(48, 64), scores=np.array([0.9]),
                boxes=np.array([[4.0 + number, 5, 20 + number, 30]]), class_names=("cat",),
                class_ids=np.array([0]),
            )  # fmt: skip
            answer = {**found.to_dict(), "frame": number, "time": seconds}
            yield FrameResult(np.full((48, 64, 3), 99, np.uint8), found, answer)

    write_video_files(results(), "in/clip", formats, context, lambda: Fraction(25))


def test_a_drawn_video_is_in_time(tmp_path):
    times = [0.0, 0.04, 1.5, 1.5, 3.25, 4.0]
    write_clip(tmp_path, ["drawing"], times)
    source = VideoSource(str(tmp_path / "in" / "clip.mp4"), "file")
    read = [frame.time for frame in VideoReader(source)]
    np.testing.assert_allclose(read, times, atol=2e-3)
    assert read == sorted({*read})


@pytest.mark.parametrize("beside", ["yolo", "labelme"])
def test_coco_of_a_video_names_the_images_of_its_frames(tmp_path, beside):
    write_clip(tmp_path, ["coco", beside], [0.0, 0.04])
    sets = list_detect(tmp_path)
    assert len(sets.train) == 2
    np.testing.assert_allclose(sets.train.entries[1].objects.boxes, [[5, 5, 21, 30]], atol=1e-3)
    alone = tmp_path / "alone"
    write_clip(alone, ["coco"], [0.0, 0.04])
    with pytest.raises(DataError, match="coco,yolo"):
        list_detect(alone)
