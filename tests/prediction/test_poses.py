# SPDX-License-Identifier: Apache-2.0
"""Where subjects come from, what is told of them, tables and videos."""

from __future__ import annotations

import csv
import wave
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from PIL import Image
from torch import nn

from muntin.data.decoding import open_image
from muntin.data.pose import list_pose
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError, MuntinWarning
from muntin.ops.keypoints import clip_points
from muntin.prediction.formats import deeplabcut_table
from muntin.prediction.formats.items import FormatContext
from muntin.prediction.predictor import Predictor
from muntin.prediction.top_down import BoxDetector
from muntin.prediction.video import (
    read_frames,
    with_results,
    write_video,
)
from muntin.prediction.video_streams import VideoReader, VideoSource
from muntin.results import Detections, Poses
from muntin.samples import Classes, Skeleton
from muntin.tasks.task_table import TASKS

SKELETON = Skeleton(
    names=("red", "green", "blue"), flip_pairs=((0, 1),), mirrored=True, sigmas=(0.05,) * 3
)
PRE = Preprocessing(
    img_size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, fit="instance_crop", padding=1.25
)


@dataclass
class _Config:
    coding: str = "udp"


class Colours(nn.Module):
    """Says that each keypoint is where its colour is: a network that makes no mistakes."""

    def __init__(self, coding="udp"):
        super().__init__()
        self.head = nn.Identity()
        self.head.config = _Config(coding)
        self.seen = 0

    def forward(self, images, sizes=None):
        self.seen += len(images)
        return nn.functional.avg_pool2d(images, 4)


def image(points, size=(120, 160)):
    """A black image with a soft dot of each colour."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.zeros((*size, 3))
    for channel, (x, y) in enumerate(points):
        pixels[..., channel] = 250 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 5.0**2))
    return pixels.round().astype(np.uint8)


def predictor(pre=PRE, *, coding="udp", **options):
    classes = Classes(names=("thing",), skeleton=SKELETON)
    pre = replace(pre, alignment=coding)
    return Predictor(Colours(coding), TASKS["pose"], classes, pre, device="cpu", **options)


POINTS = [(50.0, 40.0), (80.0, 60.0), (60.0, 70.0)]
BOX = [30.0, 20.0, 100.0, 90.0]


@pytest.mark.parametrize("tta", [False, True])
def test_original_pixels(tta):
    # The mirror swaps red and green; so does a mirror of their colours.
    points = POINTS if not tta else [POINTS[0], POINTS[0], POINTS[2]]
    found = predictor()([image(points)], boxes=[[BOX]], tta=tta)[0]
    assert found.size == (120, 160)
    assert found.boxes.tolist() == [BOX]
    assert np.abs(found.keypoints[0, :, :2] - points).max() < 2.5
    assert (found.keypoints[0, :, 2] > 0.5).all()
    assert 0 < found.scores[0] <= 1


def test_tta_needs_flip_pairs():
    bare = Skeleton(names=SKELETON.names, sigmas=SKELETON.sigmas)
    classes = Classes(names=("thing",), skeleton=bare)
    blind = Predictor(Colours(), TASKS["pose"], classes, PRE, device="cpu")
    with pytest.raises(ConfigError, match=r"red.*flip_pairs"):
        blind(image(POINTS), boxes=[BOX], tta=True)


def test_points_are_clipped_to_the_image():
    size = (40, 60)
    points = np.array([[-5.0, 10], [3, 50], [59, 39], [70, -1]])
    assert clip_points(points, size).tolist() == [[0, 10], [3, 39], [59, 39], [59, 0]]


def test_several_boxes_keep_their_order():
    boxes = [[0.0, 0.0, 160.0, 120.0], BOX]
    found = predictor()([image(POINTS)], boxes=[boxes])[0]
    assert found.boxes.tolist() == boxes
    assert len(found) == 2
    none = predictor()([image(POINTS)], boxes=[[]])[0]
    assert len(none) == 0
    assert none.to_dict()["poses"] == []


def test_a_single_image_takes_its_boxes_as_they_are():
    found = predictor()(image(POINTS), boxes=[BOX])
    assert len(found) == len(found[0]) == 1


@pytest.mark.parametrize("boxes", [[[1, 2, 3]], [[10, 10, 5, 20]], [[0, 0, np.nan, 5]], "abcd"])
def test_wrong_boxes(boxes):
    with pytest.raises(DataError, match="boxes"):
        predictor()([image(POINTS)], boxes=[boxes])


def test_too_few_boxes():
    with pytest.raises(DataError, match="boxes"):
        predictor()([image(POINTS)] * 2, boxes=[[BOX]])


def test_the_whole_image_is_one_instance():
    whole = predictor(replace(PRE, padding=1.0))
    found = whole([image(POINTS)])[0]
    assert found.boxes is None
    assert "xyxy" not in found.to_dict()["poses"][0]
    assert np.abs(found.keypoints[0, :, :2] - POINTS).max() < 3
    with pytest.warns(MuntinWarning, match="--detector"):
        predictor()([image(POINTS)])


class Detector:
    """Finds the same thing twice, and something else."""

    def __init__(self, names=("thing", "other")):
        self.task = TASKS["detect"]
        self.classes = Classes(names=names)
        self.names = names
        self.batch_size = 1

    def __call__(self, batch_images):
        boxes = np.array([BOX, [31.0, 20, 100, 91], [0, 0, 20, 20], [0, 0, 160, 120]])
        ids = np.array([0, 0, 1, 0])
        return [
            Detections(
                path="",
                size=batch_images[0].shape[:2],
                boxes=boxes,
                class_ids=ids,
                scores=np.array([0.9, 0.8, 0.7, 0.1]),
                class_names=tuple(self.names[i] for i in ids),
            )
        ]


def test_a_detector_finds_the_instances():
    found = predictor(detector=Detector())([image(POINTS)])[0]
    assert found.boxes.tolist() == [BOX], "found twice, told once; unsure and other ones are not"
    assert found.scores[0] == pytest.approx(
        predictor()([image(POINTS)], boxes=[[BOX]])[0].scores[0] * 0.9
    )
    others = predictor(detector=Detector(("a", "b")))([image(POINTS)])[0]
    assert len(others) == 2, "a detector that knows other classes finds subjects of any"


@pytest.mark.parametrize(
    ("own", "expected"),
    [((0.0, 0.0), 5), ((1000.0, 1400.0), 191), ((0.0, 2000.0), 166)],
)
def test_a_detector_sees_values_by_its_own_range(tmp_path, own, expected):
    """The pose run's range is 0 to 2000; each makes of 1300 what it has learnt."""

    class Seeing(Detector):
        preprocessing = replace(PRE, value_range=own)
        seen: list[int] = []  # noqa: RUF012

        def __call__(self, batch_images):
            self.seen += [int(one.max()) for one in batch_images]
            return super().__call__(batch_images)

    Image.fromarray(np.full((120, 160), 1300, np.uint16)).save(tmp_path / "a.png")
    one = predictor(detector=Seeing())
    one.preprocessing = replace(PRE, value_range=(0.0, 2000.0))
    path = tmp_path / "a.png"
    batch = one.prepare([path, partial(open_image, path)])  # evaluation gives functions
    assert Seeing.seen == [expected] * 2
    assert {int(crop.max()) for part in batch.parts for crop in part.images} == {166}


def test_duplicate_detections_of_an_instance_are_merged():
    """Boxes a few pixels apart give poses a little apart; a neighbour is another subject."""
    near = np.add(BOX, [3, -2, 6, 4])

    class Doubling(Detector):
        def __call__(self, batch_images):
            (found,) = super().__call__(batch_images)
            boxes = np.array([BOX, near, [0, 0, 20, 20], [100, 60, 160, 120]])
            return [replace(found, boxes=boxes, scores=np.array([0.9, 0.4, 0.7, 0.6]))]

    class Jumping(Colours):
        """Tells every second subject half a cell aside."""

        def forward(self, images, sizes=None):
            maps = super().forward(images)
            maps[1::2] = (maps[1::2] + maps[1::2].roll(1, dims=3)) / 2
            return maps

    one = predictor(detector=Doubling())
    one.network = Jumping()
    found = one([image(POINTS)])[0]
    assert found.box_scores.tolist() == [0.9, 0.6], "the neighbour stays"
    least = predictor(detector=BoxDetector(Doubling(), 0.65))([image(POINTS)])[0]
    assert least.box_scores.tolist() == [0.9]
    assert least.to_dict()["poses"][0]["box_score"] == 0.9


def test_scores_and_points_stay_in_their_ranges():
    class Sharp(Colours):
        """Peaks higher than those learnt from, and some below 0."""

        def forward(self, images, sizes=None):
            maps = 30 * super().forward(images)
            maps[:, 2] = -1
            return maps

    corner = image([(0.0, 0.0), (20.0, 10.0), (5.0, 5.0)])
    for tta in (False, True):
        for coding in ("udp", "msra"):
            one = predictor(coding=coding)
            one.network = Sharp(coding)
            (found,) = one([corner], boxes=[[[-40.0, -30.0, 60.0, 50.0]]], tta=tta)
            points = found.keypoints[0]
            assert points[0, 2] == 1
            assert points[2, 2] == 0
            assert 0 < found.scores[0] <= 1
            assert (points[:, :2] >= 0).all(), "the first cell of the crop lies outside the image"
            assert (points[:, :2] <= [159, 119]).all()


def test_what_a_detector_is_for():
    classify = TASKS["classify"]
    one = Detector()
    one.task = TASKS["semantic"]
    with pytest.raises(ConfigError, match="detector"):
        predictor(detector=one)
    with pytest.raises(ConfigError, match="detector"):
        Predictor(nn.Identity(), classify, Classes(names=("a",)), PRE, detector=Detector())
    with pytest.raises(ConfigError, match="tile"):
        predictor()([image(POINTS)], tile=64)


@pytest.mark.parametrize("coding", ["udp", "msra"])
def test_batches_change_nothing(coding):
    batch_images = [image([(x + shift, y) for x, y in POINTS]) for shift in range(5)]
    boxes = [[BOX]] * 5
    at_once = predictor(coding=coding)(batch_images, boxes=boxes)
    one_by_one = predictor(coding=coding, batch_size=1)(batch_images, boxes=boxes)
    for first, second in zip(at_once, one_by_one, strict=True):
        assert np.allclose(first.keypoints, second.keypoints, atol=1e-4)


def poses(count, path=""):
    points = np.arange(count * 9, dtype=float).reshape(count, 3, 3)
    return Poses(
        path=path,
        size=(9, 9),
        keypoints=points,
        scores=np.ones(count),
        keypoint_names=SKELETON.names,
    )


def write_poses(path, found):
    """A table of poses, of frames where they have no path."""
    answers = [
        {**one.to_dict(), **({} if one.path else {"frame": number})}
        for number, one in enumerate(found)
    ]
    classes = Classes(names=("mouse",), skeleton=SKELETON)
    context = FormatContext(folder=path.parent, kind="keypoints", classes=classes, scorer="run")
    deeplabcut_table.write_poses(lambda: iter(answers), [path], context)
    return path


def test_a_table_that_deeplabcut_reads(tmp_path):
    path = write_poses(tmp_path / "t.csv", [poses(1), poses(1)])
    rows = list(csv.reader(path.read_text().splitlines()))
    assert [row[0] for row in rows] == ["scorer", "bodyparts", "coords", "0", "1"]
    assert rows[0][1:] == ["run"] * 9
    assert rows[1][1:4] == ["red"] * 3
    assert rows[2][1:4] == ["x", "y", "likelihood"]
    assert [float(cell) for cell in rows[3][1:]] == list(range(9))


def test_a_csv_of_several_instances_round_trips(tmp_path):
    Image.new("RGB", (99, 99)).save(tmp_path / "a.png")
    Image.new("RGB", (99, 99)).save(tmp_path / "b.png")
    found = [poses(2, str(tmp_path / "a.png")), poses(0, str(tmp_path / "b.png"))]
    write_poses(tmp_path / "t.csv", found)
    with pytest.raises(DataError, match="likelihood"):
        list_pose(tmp_path)  # predictions are not taken for labels
    listing = list_pose(tmp_path / "t.csv", whole=True).train
    first, second = (entry.objects for entry in listing.entries)
    assert listing.skeleton.names == SKELETON.names
    assert first.keypoints[1, :, :2].tolist() == [[9, 10], [12, 13], [15, 16]]
    assert (len(first), len(second)) == (2, 0)


def test_videos_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    colours = rng.integers(30, 220, (40, 3))
    frames = [Image.new("RGB", (65, 49), tuple(colour.tolist())) for colour in colours]
    path = write_video(tmp_path / "v.mp4", frames, Fraction(10))
    reader = VideoReader(VideoSource(str(path), "file"))
    times = [frame.time for frame in reader]
    assert reader.rate == 10
    np.testing.assert_allclose(times, np.arange(40) / 10, atol=1e-6)
    seen = list(read_frames(path))
    assert len(seen) == 40
    assert seen[0].shape == (48, 64, 3)
    means = np.array([frame.reshape(-1, 3).mean(axis=0) for frame in seen])
    assert np.abs(means - colours).max() < 12
    pairs = list(with_results(lambda images: (one.mean() for one in images), seen, np.copy))
    assert [result for _, result in pairs] == [frame.mean() for frame in seen]


def test_frames_of_other_sizes_are_cut_or_filled(tmp_path):
    frames = [Image.new("RGB", (64, side), (10, 20, 200)) for side in (48, 30, 60)]
    path = write_video(tmp_path / "v.mp4", frames, Fraction(5))
    seen = list(read_frames(path))
    assert [frame.shape for frame in seen] == [(48, 64, 3)] * 3
    assert seen[1][-4:].mean() > 240, "what is missing is white"


def test_what_is_no_video(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"v\.mp4.*Invalid data"):
        list(read_frames(path))
    with pytest.raises(DataError, match=r"none\.mp4"):
        list(read_frames(tmp_path / "none.mp4"))
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(bytes(2048))
    with pytest.raises(DataError, match=r"^'\S+' must be .* without images\.$"):
        list(read_frames(path))


def test_pyav_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(DataError, match=r"muntin\[video\]"):
        list(read_frames(tmp_path / "v.mp4"))


@pytest.mark.parametrize("batch_size", [8, 100])
def test_instances_of_one_image_are_batched(batch_size):
    many = predictor(batch_size=batch_size)
    calls = []
    many.network.register_forward_hook(lambda module, inputs, maps: calls.append(len(maps)))
    many([image(POINTS)], boxes=[[BOX] * 100])
    assert sum(calls) == many.network.seen == 100
    assert len(calls) == -(-100 // batch_size)


def test_nothing_is_kept_between_calls():
    one = predictor()
    first = one([image(POINTS)], boxes=[[BOX]])[0].keypoints
    one([image([(5.0, 5.0)] * 3)], boxes=[[BOX]])
    assert np.array_equal(one([image(POINTS)], boxes=[[BOX]])[0].keypoints, first)
