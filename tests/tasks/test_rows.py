# SPDX-License-Identifier: Apache-2.0
"""The rows of all tasks: raw output in original pixels, truth, figures, and nothing at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from muntin.heads.detector import Instances
from muntin.run_lengths import decode_mask, encode_mask
from muntin.samples import Classes, Entry, Listing, Objects, Skeleton
from muntin.tasks.task import ImageMeta
from muntin.tasks.task_table import TASKS, find_task

SIZE, SHOWN = (40, 60), (20, 30)
SKELETON = Skeleton(names=("nose", "left", "right"), flip_pairs=((1, 2),), sigmas=(0.1,) * 3)
CLASSES = Classes(names=("ash", "birch"))
SUBJECTS = Classes(names=("mouse",), skeleton=SKELETON)
BOX = [10.0, 12.0, 30.0, 32.0]
POINTS = [[12.0, 14.0, 0.9], [20.0, 20.0, 0.8], [26.0, 30.0, 0.7]]

BITMAP = np.zeros(SIZE, bool)
BITMAP[12:32, 10:30] = True
LABELS = BITMAP.astype(np.int16)


@dataclass(frozen=True)
class Row:
    """What is right for one image.

    Attributes:
        task: The row under test.
        classes: What it tells apart.
        raw: Its right answer, as a network gives it.
        none: The answer that nothing is there; None where there is always one.
        box: The box that was cut out of the image.
    """

    task: Any
    classes: Classes
    raw: Any
    none: Any
    box: tuple[float, float, float, float] | None = None


def found(count=1, *, masks=False, points=False):
    """Objects in pixels of the image as it was shown, at half its size."""
    boxes = torch.tensor([BOX]) / 2
    # Cell k of the shown image covers the pixels 2k and 2k + 1.
    shown = torch.tensor([POINTS])
    shown[..., :2] = (shown[..., :2] + 0.5) / 2 - 0.5
    return Instances(
        boxes=boxes[:count], scores=torch.tensor([0.9])[:count],
        class_ids=torch.tensor([0 if points else 1])[:count],
        masks=torch.ones(1, 28, 28)[:count] if masks else None,
        points=shown[:count] if points else None,
    )  # fmt: skip


ROWS = {
    "classify": Row(TASKS["classify"], CLASSES, torch.tensor([[-3.0, 3.0]]), None),
    "detect": Row(TASKS["detect"], CLASSES, [found()], [found(0)]),
    "instance": Row(TASKS["instance"], CLASSES, [found(masks=True)], [found(0, masks=True)]),
    "semantic": Row(TASKS["semantic"], CLASSES, [LABELS], [1 - LABELS]),
    "pose": Row(TASKS["pose"], SUBJECTS, [np.array(POINTS)], None, tuple(BOX)),
    "pose at once": Row(
        find_task("pose", "keypoint_rcnn_small"), SUBJECTS, [found(points=True)],
        [found(0, points=True)],
    ),
}  # fmt: skip


def decode(row, raw):
    meta = ImageMeta(path="a.png", size=SIZE, input_size=SHOWN, box=row.box)
    (result,) = row.task.decode(raw, [meta], row.classes)
    assert (result.path, result.size) == ("a.png", SIZE)
    return result


def annotated(row, count=1):
    """What is annotated in the image: what the right answer says, or nothing."""
    is_pose = row.classes.skeleton is not None
    points = np.array([[*point[:2], 2.0] for point in POINTS])
    return Objects(
        boxes=np.array([BOX])[:count], class_ids=np.array([0 if is_pose else 1])[:count],
        crowd=np.zeros(count, bool), areas=np.full(count, 400.0),
        masks=(encode_mask(BITMAP),)[:count],
        keypoints=points[None][:count] if is_pose else None,
    )  # fmt: skip


def truth_of(row, count=1):
    objects = annotated(row, count)
    if row.task.name == "semantic":
        return [LABELS if count else np.full(SIZE, -1, np.int16)]
    entry = Entry(
        path="a.png", class_ids=(1,), size=SIZE, objects=objects, instance=0 if row.box else -1
    )
    listing = Listing(
        source="here", entries=(entry,), class_names=row.classes.names,
        skeleton=row.classes.skeleton,
    )  # fmt: skip
    return row.task.ground_truth(listing, row.classes)[torch.tensor([0])]


def figures_of(row, raw, count=1):
    metric = row.task.metric(row.classes)
    meta = ImageMeta(path="a.png", size=SIZE, input_size=SHOWN, box=row.box)
    metric.update(row.task.answers(raw, [meta], row.classes), truth_of(row, count))
    assert metric.num_images == 1
    return metric.compute()


@pytest.mark.parametrize("name", ["detect", "instance"])
def test_boxes_and_masks_in_original_pixels(name):
    result = decode(ROWS[name], ROWS[name].raw)
    assert result.boxes.tolist() == [BOX]
    assert result.class_names == ("birch",)
    assert result.scores.tolist() == pytest.approx([0.9])
    if name == "detect":
        assert result.masks is None
    else:
        np.testing.assert_array_equal(decode_mask(result.masks[0]), BITMAP)


def test_boxes_end_at_the_edge():
    over = found()._replace(boxes=torch.tensor([[-4.0, 5.0, 99.0, 99.0]]))
    assert decode(ROWS["detect"], [over]).boxes.tolist() == [[0, 10, 60, 40]]


def test_maps():
    result = decode(ROWS["semantic"], [LABELS])
    np.testing.assert_array_equal(result.labels, LABELS)
    assert result.class_names == CLASSES.names


def test_keypoints_of_a_crop():
    result = decode(ROWS["pose"], ROWS["pose"].raw)
    np.testing.assert_allclose(result.keypoints, [POINTS])
    assert result.boxes.tolist() == [BOX]
    assert result.scores.tolist() == pytest.approx([0.8]), "the mean of its keypoints"
    unsure = np.array(POINTS) * [1, 1, 0.1]
    assert decode(ROWS["pose"], [unsure]).scores.tolist() == [0]
    high = np.array(POINTS) * [1, 1, 2]
    assert decode(ROWS["pose"], [high]).keypoints[..., 2].max() == 1


def test_keypoints_of_whole_images():
    result = decode(ROWS["pose at once"], ROWS["pose at once"].raw)
    np.testing.assert_allclose(result.keypoints, [POINTS], atol=1e-5)
    assert result.boxes.tolist() == [BOX]
    assert result.scores.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("name", ROWS)
def test_the_right_answer_is_right(name):
    row = ROWS[name]
    figure, value = row.task.goal(figures_of(row, row.raw))
    assert figure == row.task.goals[0]
    assert value == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.none is not None])
def test_finding_nothing_is_wrong(name):
    row = ROWS[name]
    assert row.task.goal(figures_of(row, row.none)) == (row.task.goals[0], 0)


@pytest.mark.parametrize("name", ["detect", "instance", "semantic", "pose at once"])
def test_nothing_is_annotated(name):
    row = ROWS[name]
    figures = figures_of(row, row.none, count=0)
    assert figures[row.task.goals[0]] is None
    assert row.task.goal(figures) == ("", 0.0)
