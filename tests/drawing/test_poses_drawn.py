# SPDX-License-Identifier: Apache-2.0
"""Drawings of keypoints: which colour what has."""

from __future__ import annotations

import numpy as np
import pytest

from muntin.drawing.pose_drawing import draw_pose_pair, draw_poses
from muntin.drawing.style import colour_of
from muntin.results import Poses

LEFT, RIGHT, MIDDLE = (0, 114, 178), (213, 94, 0), (0, 158, 115)
NAMES = ("nose", "left_hand", "right_hand", "tail")
ALONE = np.array([[320, 100], [100, 300], [540, 300], [320, 440]], float)


def poses(*, count=1, pairs=((1, 2),), boxes=None):
    points = np.concatenate([ALONE, np.ones((4, 1))], axis=1)
    moved = [np.add(points, (0, 40 * number, 0)) for number in range(count)]
    return Poses(
        path="", size=(640, 640), keypoints=np.array(moved).reshape(-1, 4, 3),
        scores=np.ones(count), keypoint_names=NAMES, flip_pairs=pairs, boxes=boxes,
        edges=((0, 1), (0, 2), (1, 2), (0, 3)),
    )  # fmt: skip


def drawn(found):
    return np.asarray(draw_poses(np.full((640, 640, 3), 90, np.uint8), found))


def at(image, x, y):
    return tuple(image[round(y), round(x)].tolist())


def test_sides_have_colours():
    image = drawn(poses())
    assert [at(image, *point) for point in ALONE] == [MIDDLE, LEFT, RIGHT, MIDDLE]
    middles = [(ALONE[a] + ALONE[b]) / 2 for a, b in poses().edges]
    assert [at(image, *point) for point in middles] == [LEFT, RIGHT, MIDDLE, MIDDLE]


def test_instances_have_colours_where_there_are_several():
    image = drawn(poses(count=2))
    assert [at(image, *ALONE[1]), at(image, *(ALONE[1] + [0, 40]))] == [colour_of(0), colour_of(1)]
    assert at(image, *(ALONE[0] + ALONE[2]) / 2) == RIGHT
    boxes = np.array([[90, 90, 550, 450.0], [10, 10, 60, 60]])
    image = drawn(poses(count=2, pairs=(), boxes=boxes))
    assert at(image, *(ALONE[0] + ALONE[2]) / 2) == colour_of(0)
    assert at(image, 90, 200) == colour_of(0)
    assert at(image, 10, 30) == colour_of(1)


def test_keypoints_without_sides_are_named():
    image = drawn(poses(pairs=()))
    assert [at(image, *point) for point in ALONE] == [colour_of(number) for number in range(4)]
    legend = image[640:]
    assert all((legend == colour_of(number)).all(axis=2).any() for number in range(4))


def test_small_instances_have_small_points():
    small = poses()
    small.keypoints[:, :, :2] = small.keypoints[:, :, :2] / 40 + 300
    red = [(drawn(each)[:640] == RIGHT).all(axis=2).sum() for each in (poses(), small)]
    assert red[1] < red[0] / 10
    assert drawn(poses(count=0)).shape[1] == 640


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (100, 2000)])
def test_a_pair_has_the_side_that_is_asked_for(size):
    sheet = draw_pose_pair(np.zeros((*size, 3), np.uint8), poses(), poses(), side=800)
    assert 790 <= max(sheet.size) <= 800
