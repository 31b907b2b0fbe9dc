# SPDX-License-Identifier: Apache-2.0
"""Targets of heads, in pixels of the network input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Bool, Float, Int, Size

IGNORED = -1
"""Label of pixels that are excluded from training and scoring."""


class BoxTargets(NamedTuple):
    """The objects of one image.

    Masks are stored in layers. A layer holds 1 + the index of the object at each pixel, and
    overlapping objects are in different layers, so hundreds of objects with little overlap need
    two or three layers.

    Attributes:
        boxes: Left, top, right and bottom edge.
        ignored: Boxes of crowds; detections there are neither correct nor wrong.
        layers: Objects at each pixel; L is 0 without masks.
        layer_of: Layer of the mask of each object; -1 if it has none.
        points: x, y and visibility of each keypoint of each object, (N, P, 3), with (0, 0) at the
            centre of the first pixel; None without keypoints.
    """

    boxes: Float[Tensor, "N 4"]
    class_ids: Int[Tensor, " N"]
    ignored: Float[Tensor, "G 4"]
    layers: Int[Tensor, "L H W"]
    layer_of: Int[Tensor, " N"]
    points: Tensor | None = None

    @classmethod
    def empty(cls, size: Size) -> BoxTargets:
        """Build the targets of an image without objects."""
        return cls(
            boxes=torch.zeros(0, 4),
            class_ids=torch.zeros(0, dtype=torch.long),
            ignored=torch.zeros(0, 4),
            layers=torch.zeros(0, *size, dtype=torch.int32),
            layer_of=torch.zeros(0, dtype=torch.long),
        )

    def to(self, device: torch.device) -> BoxTargets:
        """Copy to a device."""
        return BoxTargets._make(None if part is None else part.to(device) for part in self)

    def keep(self, kept: Bool[Tensor, " N"]) -> BoxTargets:
        """Drop the other objects, whose masks are erased."""
        rows = torch.where(kept)[0]
        # Layers hold 1 + the number of an object; 0, and what is dropped, is nothing.
        numbers = self.layers.new_zeros(len(kept) + 1)
        numbers[rows + 1] = torch.arange(1, len(rows) + 1, dtype=numbers.dtype, device=rows.device)
        return self._replace(
            boxes=self.boxes[rows],
            class_ids=self.class_ids[rows],
            layers=numbers[self.layers.long()],
            layer_of=self.layer_of[rows],
            points=None if self.points is None else self.points[rows],
        )

    def masks_in(
        self, boxes: Float[Tensor, "P 4"], rows: Int[Tensor, " P"], side: int
    ) -> Float[Tensor, "P side side"]:
        """Sample masks of objects (`rows`) inside boxes: the covered fraction of each grid cell.

        From 3 x 3 samples: an odd number, so that no cell is covered by exactly one half, which
        would enlarge masks thresholded at 0.5.
        """
        offsets = (torch.arange(3 * side, device=boxes.device) + 0.5) / (3 * side)
        x = boxes[:, 0, None] + offsets * (boxes[:, 2] - boxes[:, 0])[:, None]  # P, 3*side
        y = boxes[:, 1, None] + offsets * (boxes[:, 3] - boxes[:, 1])[:, None]
        height, width = self.layers.shape[1:]
        columns = x.floor().long().clamp(0, width - 1)[:, None, :]
        lines = y.floor().long().clamp(0, height - 1)[:, :, None]
        layers = self.layer_of[rows][:, None, None]
        indices = self.layers[layers, lines, columns]  # P, 3*side, 3*side
        inside = (indices == rows[:, None, None] + 1).float()
        return inside.reshape(len(boxes), side, 3, side, 3).mean(dim=(2, 4))


class LabelMap(NamedTuple):
    """The class of every pixel of one image, int16; negative for ignored pixels."""

    labels: Int[Tensor, "H W"]

    @classmethod
    def empty(cls, size: Size) -> LabelMap:
        """Build a label map with every pixel ignored."""
        return cls(torch.full(size, IGNORED, dtype=torch.int16))

    def to(self, device: torch.device) -> LabelMap:
        """Copy to a device."""
        return LabelMap(self.labels.to(device))


class Keypoints(NamedTuple):
    """The keypoints of one instance; (0, 0) is the centre of the first pixel.

    Only `known` points are trained on; the others are undefined. `frame` is left, top, right and
    bottom of the visible part of the instance.
    """

    points: Float[Tensor, "P 2"]
    known: Bool[Tensor, " P"]
    frame: Float[Tensor, " 4"]

    @classmethod
    def empty(cls, count: int) -> Keypoints:
        """Build `count` unknown keypoints."""
        return cls(
            points=torch.zeros(count, 2),
            known=torch.zeros(count, dtype=torch.bool),
            frame=torch.tensor([0.0, 0.0, 1.0, 1.0]),
        )

    def to(self, device: torch.device) -> Keypoints:
        """Copy to a device."""
        return Keypoints(*(part.to(device) for part in self))


Target = BoxTargets | LabelMap | Keypoints
"""Targets of an image for dense tasks."""
