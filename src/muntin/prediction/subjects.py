# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From pictures and the places of subjects in them to poses."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.data.keypoint_transforms import crop_box, crop_region, warp_crop
from muntin.data.transforms import to_tensor
from muntin.errors import DataError, MuntinWarning
from muntin.ops.keypoints import guess_area, suppress_poses
from muntin.results import Poses
from muntin.samples import Skeleton
from muntin.tasks.pose import skeleton_of
from muntin.tasks.task import Glance, View

if TYPE_CHECKING:
    from muntin.prediction.predictor import Opened, Predictor

__all__ = ["check_boxes", "find_poses"]

Box = tuple[float, float, float, float]
_Places = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Boxes of a picture and their scores."""


@torch.inference_mode()
def find_poses(predictor: Predictor, rows: Sequence[Opened], tta: bool) -> list[Poses]:
    """Look for subjects, see each of them, and make one result a picture.

    Args:
        predictor: Sees one subject at a time; its detector says where they are.
        rows: Pictures, perhaps with the boxes of their subjects.
        tta: Whether the mirrored subject is seen too.
    """
    skeleton = skeleton_of(predictor.classes)
    unaided = predictor.detector is None and any(row.boxes is None for row in rows)
    if unaided and predictor.preprocessing.padding != 1:
        text = (
            "the run was trained on boxes of subjects; without a detector (--detector RUN) or "
            "boxes the whole picture is taken for one subject"
        )
        warnings.warn(text, MuntinWarning, stacklevel=5)
    places = [_places_of(predictor, row) for row in rows]
    asked: list[tuple[int, Box | None]] = []
    for number, place in enumerate(places):
        asked += [(number, None)] if place is None else [(number, _edges(b)) for b in place[0]]
    singles: list[list[Poses]] = [[] for _ in rows]
    size = predictor.batch_size
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        found = _see(predictor, [(rows[number], box) for number, box in part], tta)
        for (number, _), one in zip(part, found, strict=True):
            singles[number].append(one)
    return [
        _merge(row, place, mine, skeleton) if place is not None else mine[0]
        for row, place, mine in zip(rows, places, singles, strict=True)
    ]


def _places_of(predictor: Predictor, row: Opened) -> _Places | None:
    """Boxes and scores; None where the whole picture is one subject."""
    if row.boxes is not None:
        return row.boxes, np.ones(len(row.boxes))
    if predictor.detector is None:
        return None
    found = predictor.detector([row.pixels])[0]
    shared = {*predictor.detector.classes.names} & {*predictor.classes.names}
    wanted = found.scores >= predictor.least
    if shared:  # otherwise whatever the detector finds is a subject
        wanted &= np.array([name in shared for name in found.class_names], bool)
    return found.boxes[wanted], found.scores[wanted]


def _see(
    predictor: Predictor, subjects: Sequence[tuple[Opened, Box | None]], tta: bool
) -> list[Poses]:
    pre = predictor.preprocessing
    crops, views = [], []
    last: Opened | None = None
    for row, box in subjects:
        if row is not last:
            picture, last = to_tensor(row.pixels, pre.in_chans), row
        high, wide = row.size
        frame = crop_box(box or (0.0, 0.0, float(wide), float(high)), pre)
        region = crop_region(picture, frame, pre)
        crops.append(warp_crop(region.pixels, region.move_frame(frame), pre))
        views.append(View(path=row.path, size=row.size, shown=pre.img_size, box=box))
    glance = Glance(
        network=predictor.network,
        images=torch.stack(crops),
        views=views,
        pre=pre,
        classes=predictor.classes,
        device=predictor.device,
        tta=tta,
    )
    task = predictor.task
    found: list[Poses] = task.decode(task.see(glance), views, predictor.classes)
    return found


def _edges(box: NDArray[np.float64]) -> Box:
    left, top, right, bottom = box.tolist()
    return left, top, right, bottom


def _merge(row: Opened, place: _Places, singles: Sequence[Poses], skeleton: Skeleton) -> Poses:
    """Make one result of the subjects of a picture, best first.

    What a detector found twice is told once, with the surer box: so another threshold never
    changes which of two is told.
    """
    count = len(skeleton.names)
    every = Poses(
        path=row.path,
        size=row.size,
        keypoints=np.concatenate([np.zeros((0, count, 3)), *(one.keypoints for one in singles)]),
        scores=np.concatenate([np.zeros(0), *(one.scores for one in singles)]) * place[1],
        keypoint_names=skeleton.names,
        links=skeleton.edges,
        boxes=place[0],
        box_scores=None if row.boxes is not None else place[1],
    )
    if row.boxes is not None:  # somebody said which subjects there are, and in which order
        return every
    diagonal = float(np.hypot(*row.size))
    areas = np.array([guess_area(np.zeros((0, 2)), box, diagonal) for box in place[0]])
    points, sigmas = every.keypoints[:, :, :2], np.array(skeleton.sigmas)
    kept = every.select(suppress_poses(points, place[1], areas, sigmas))
    return kept.select(np.argsort(-kept.scores, kind="stable"))


def check_boxes(boxes: Any, where: str) -> NDArray[np.float64]:  # noqa: ANN401 (of a user)
    """Give boxes as an array.

    Raises:
        DataError: They are no rows of left, top, right and bottom edge, in this order.
    """
    try:
        rows = np.asarray(boxes, np.float64)
        rows = rows.reshape(-1, 4) if rows.size == 0 else rows
    except (TypeError, ValueError) as error:
        message = f"boxes must be rows of four numbers, got {boxes!r} for {where}."
        raise DataError(message) from error
    good = rows.ndim == 2 and rows.shape[1] == 4 and np.isfinite(rows).all()
    if not good or (rows[:, 2:] <= rows[:, :2]).any():
        message = (
            f"boxes must be rows of left, top, right and bottom edge in pixels, each right of and "
            f"below the other, got {np.asarray(boxes).tolist()!r} for {where}."
        )
        raise DataError(message)
    return rows
