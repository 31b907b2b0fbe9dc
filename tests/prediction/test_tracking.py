# SPDX-License-Identifier: Apache-2.0
"""Ids stay with objects that cross, hide, blink and rush; smoothing calms points without lag."""

from __future__ import annotations

import numpy as np
import pytest

from muntin.drawing.style import colour_of
from muntin.errors import ConfigError
from muntin.prediction.predictor import draw
from muntin.prediction.tracking import OneEuroFilter, Tracker, refuse_untracked
from muntin.results import Detections, Poses
from muntin.run_lengths import encode_mask

SIZE = (120, 200)


def detections(centres, *, side=20.0, scores=None, classes=None, masks=False):
    """Squares around centres; their class is 0 unless given."""
    middle = np.array(centres, float).reshape(-1, 2)
    boxes = np.c_[middle - side / 2, middle + side / 2]
    count = len(boxes)
    rows, columns = np.indices(SIZE)
    found = [
        encode_mask((columns >= a) & (columns < c) & (rows >= b) & (rows < d))
        for a, b, c, d in boxes
    ]
    return Detections(
        path="", size=SIZE, boxes=boxes,
        scores=np.array([0.9] * count if scores is None else scores, float),
        class_ids=np.array([0] * count if classes is None else classes, np.int64),
        class_names=("cat",) * count, masks=tuple(found) if masks else None,
    )  # fmt: skip


def follow(frames, **options):
    """Ids of each frame, by the order of its objects."""
    tracker = Tracker(0.3, 25, **options)
    ids = []
    for found in frames:
        tracked = tracker.update(found)
        order = {
            tuple(box): number
            for box, number in zip(tracked.boxes.tolist(), tracked.track_ids.tolist(), strict=True)
        }
        ids.append([order.get(tuple(box)) for box in found.boxes.tolist()])
    return ids


@pytest.mark.parametrize("hidden", [0, 6])
def test_two_objects_that_cross_keep_their_ids(hidden):
    """Their boxes cover each other in the middle, where one is not seen for some frames."""
    rng = np.random.default_rng(0)
    frames, orders = [], []
    for step in range(41):
        centres = np.array([[20 + 4 * step, 50], [180 - 4 * step, 62]], float)
        centres += rng.normal(0, 0.7, (2, 2))
        order = rng.permutation(2)  # a detector does not keep them in order
        if hidden and abs(step - 20) < hidden / 2:
            order = np.array([0])
        frames.append(detections(centres[order]))
        orders.append(order)
    found = [
        {int(place): number for place, number in zip(order, ids, strict=True)}
        for order, ids in zip(orders, follow(frames), strict=True)
    ]
    assert {one[0] for one in found} == {found[0][0]}
    assert {one[1] for one in found if 1 in one} == {found[0][1]}
    assert found[0][0] != found[0][1]


def test_classes_are_not_mixed_up():
    frames = [
        detections([[50, 50], [52, 51]], classes=[step % 2, 1 - step % 2]) for step in range(4)
    ]
    ids = follow(frames)
    assert ids == [[1, 2], [2, 1], [1, 2], [2, 1]]


def test_what_blinks_or_is_unsure_for_a_while_is_the_same():
    seen = detections([[50, 50]])
    none = detections([])
    unsure = detections([[50, 50]], scores=[0.2])
    assert follow([seen, *[none] * 20, seen]) == [[1], *[[]] * 20, [1]]
    assert follow([seen, unsure, seen]) == [[1], [1], [1]]
    assert follow([unsure, seen]) == [[None], [1]], "nothing begins with an unsure one"
    assert follow([seen, *[none] * 26, seen])[-1] == [2], "after a second it is another one"


def test_frames_at_any_times_are_followed():
    """An object of constant speed, in frames of which some are missing; then one without it."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.02, 0.4, 30))
    tracker = Tracker(0.3, 25)
    frames = [(detections([[10 + 30 * time, 60]], side=12), time) for time in times]
    assert {tracker.update(*frame).track_ids.tolist()[0] for frame in frames} == {1}
    last = times[-1]
    tracker.update(detections([]), last + 0.9)
    later = detections([[10 + 30 * (last + 0.95), 60]], side=12)
    assert tracker.update(later, last + 0.95).track_ids.tolist() == [1]
    tracker.update(detections([]), last + 2.9)
    tracker.update(detections([]), last + 2.91)
    later = detections([[10 + 30 * (last + 2.95), 60]], side=12)
    assert tracker.update(later, last + 2.95).track_ids.tolist() == [2]


def test_small_and_fast_objects_are_followed():
    """Boxes of two frames do not touch until the speed is known."""
    frames = [detections([[10 + 12 * step, 40]], side=10) for step in range(12)]
    assert {number for (number,) in follow(frames)} == {1}


def test_ids_are_in_answers_and_colours():
    tracker = Tracker(0.3, 25)
    tracker.update(detections([[40, 60], [140, 60]], masks=True))
    swapped = tracker.update(detections([[140, 60], [40, 60]], masks=True))
    assert [row["track"] for row in swapped.to_dict()["boxes"]] == [2, 1]
    assert Detections.from_dict(swapped.to_dict()).track_ids.tolist() == [2, 1]
    image = draw(np.full((*SIZE, 3), 255, np.uint8), swapped, threshold=0)
    scale = image.width / SIZE[1]
    for x, number in ((40, 1), (140, 2)):
        red, green, blue = image.getpixel((round(x * scale), round(65 * scale)))
        wanted = np.array(colour_of(number)) * 0.4 + 255 * 0.6
        assert np.abs(np.array([red, green, blue]) - wanted).max() < 3


def poses(points, score=0.9):
    keypoints = np.c_[np.array(points, float).reshape(-1, 2), np.full(len(points), score)][None]
    return Poses(
        path="", size=SIZE, keypoints=keypoints, scores=np.array([0.8]),
        keypoint_names=tuple("abc"[: len(points)]),
    )  # fmt: skip


def test_poses_have_ids_and_are_smoothed():
    rng = np.random.default_rng(0)
    truth = np.array([[50.0, 50], [60, 70], [70, 30]])
    tracker, plain = Tracker(0.3, 25, smooth=True), []
    moved = []
    for _ in range(60):
        noisy = truth + rng.normal(0, 2, truth.shape)
        found = tracker.update(poses(noisy))
        assert found.track_ids.tolist() == [1]
        plain.append(noisy)
        moved.append(found.keypoints[0, :, :2])
    assert np.std(moved[20:], axis=0).max() < 0.6 * np.std(plain[20:], axis=0).min()


def test_tracked_poses_are_drawn_in_the_colours_of_their_ids():
    points = np.array([[[20, 20, 0.9], [60, 40, 0.9], [30, 90, 0.9]]] * 2)
    points[1, :, 0] += 100
    found = Poses(
        path="", size=SIZE, keypoints=points, scores=np.array([0.9, 0.8]),
        keypoint_names=("a", "b", "c"), edges=((0, 1), (1, 2)), track_ids=np.array([7, 12]),
    )  # fmt: skip
    image = draw(np.full((*SIZE, 3), 255, np.uint8), found, threshold=0)
    scale = max(image.size) / max(SIZE)
    for row, number in enumerate((7, 12)):
        x, y = ((points[row, 1, :2] + 0.5) * scale).round().astype(int).tolist()
        assert image.getpixel((x, y)) == colour_of(number)


def test_smoothing_follows_motion_and_leaves_unsure_points():
    smooth = OneEuroFilter()
    for step in range(50):
        points = np.array([[10.0 + 8 * step, 20], [3.0, step]])
        found = smooth(points, np.array([0.9, 0.1]), 1 / 25, 100.0)
    assert abs(found[0, 0] - points[0, 0]) < 16, "two frames behind at most"
    assert found[1].tolist() == points[1].tolist()


def test_what_has_no_objects_is_refused():
    with pytest.raises(ConfigError, match="--track"):
        refuse_untracked("segmentation", smooth=False)
    with pytest.raises(ConfigError, match="--smooth"):
        refuse_untracked("detection", smooth=True)
