# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a detector finds in one picture, before it is a result."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.heads.conventions import SelectConfig
from muntin.ops.boxes import suppress
from muntin.shapes import Float, Int

__all__ = ["Found", "select_boxes"]


class Found(NamedTuple):
    """Boxes of one picture, best first, in pixels of the image that the network saw.

    Attributes:
        boxes: Left, top, right and bottom edge.
        scores: In [0, 1].
        class_ids: Class numbers.
        masks: Scores in [0, 1] on a grid over each box; None where the head has no masks.
    """

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    class_ids: Int[Tensor, " N"]
    masks: Tensor | None = None


def select_boxes(
    boxes: Float[Tensor, "Q S 4"], scores: Float[Tensor, "Q K"], config: SelectConfig
) -> Found:
    """Choose what is told of one picture.

    Args:
        boxes: Box of each candidate for each class, or one for all (S = 1).
        scores: Of each class.
        config: Which ones.
    """
    rows, class_ids = torch.where(scores > config.score_threshold)
    values = scores[rows, class_ids]
    places = boxes[rows, class_ids if boxes.shape[1] > 1 else 0]
    whole = ((places[:, 2:] - places[:, :2]) >= 1e-2).all(dim=1)
    places, values, class_ids = places[whole], values[whole], class_ids[whole]
    kept, values = suppress(
        places,
        values,
        class_ids,
        iou=config.iou,
        kind=config.suppression,
        class_agnostic=config.class_agnostic,
        most=config.max_detections,
        least_score=config.score_threshold,
    )
    return Found(boxes=places[kept], scores=values, class_ids=class_ids[kept])
