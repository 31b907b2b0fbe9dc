# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Targets of a head, in pixels of the image that the network sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Bool, Float, Int, Size

__all__ = ["IGNORED", "BoxTargets", "Keypoints", "LabelMap", "Target"]

IGNORED = -1
"""Label of pixels that are neither learnt from nor scored."""


class BoxTargets(NamedTuple):
    """The objects of one image.

    Masks are kept in layers: a layer holds, at each pixel, 1 + the number of the object that is
    there, and objects that overlap lie in different layers. Hundreds of objects that hardly
    overlap take two or three layers.

    Attributes:
        boxes: Left, top, right and bottom edge.
        class_ids: Class number of each.
        ignored: Boxes of crowds: detections there are neither right nor wrong.
        layers: Objects at each pixel; L is 0 where there are no masks.
        layer_of: Layer that holds the mask of each object; -1 when it has none.
        points: x, y and visibility of each keypoint of each object, (N, P, 3), with (0, 0) in the
            middle of the first pixel; None where the task has none.
    """

    boxes: Float[Tensor, "N 4"]
    class_ids: Int[Tensor, " N"]
    ignored: Float[Tensor, "G 4"]
    layers: Int[Tensor, "L H W"]
    layer_of: Int[Tensor, " N"]
    points: Tensor | None = None

    @classmethod
    def empty(cls, size: Size) -> BoxTargets:
        """Give the targets of an image of `size` without objects."""
        return cls(
            boxes=torch.zeros(0, 4),
            class_ids=torch.zeros(0, dtype=torch.long),
            ignored=torch.zeros(0, 4),
            layers=torch.zeros(0, *size, dtype=torch.int32),
            layer_of=torch.zeros(0, dtype=torch.long),
        )

    @property
    def padded(self) -> bool:
        """Whether images of one batch differ in size and are padded: they do with boxes."""
        return True

    def to(self, device: torch.device) -> BoxTargets:
        """Copy to a device."""
        points = None if self.points is None else self.points.to(device)
        return BoxTargets(
            boxes=self.boxes.to(device),
            class_ids=self.class_ids.to(device),
            ignored=self.ignored.to(device),
            layers=self.layers.to(device),
            layer_of=self.layer_of.to(device),
            points=points,
        )

    def masks_in(
        self, boxes: Float[Tensor, "P 4"], rows: Int[Tensor, " P"], side: int
    ) -> Float[Tensor, "P side side"]:
        """Read masks of objects on a grid over boxes.

        Args:
            boxes: In pixels.
            rows: Object whose mask is wanted in each.
            side: Cells of the grid along each side.

        Returns:
            Share of each cell that the object covers, by 3 x 3 samples: an odd number, so that
            none is exactly half covered, and masks cut at 0.5 are not too large.
        """
        offsets = (torch.arange(3 * side, device=boxes.device) + 0.5) / (3 * side)
        x = boxes[:, 0, None] + offsets * (boxes[:, 2] - boxes[:, 0])[:, None]  # P, 3*side
        y = boxes[:, 1, None] + offsets * (boxes[:, 3] - boxes[:, 1])[:, None]
        height, width = self.layers.shape[1:]
        columns = x.floor().long().clamp(0, width - 1)[:, None, :]
        lines = y.floor().long().clamp(0, height - 1)[:, :, None]
        seen = self.layers[self.layer_of[rows][:, None, None], lines, columns]  # P, 3*side, 3*side
        there = (seen == rows[:, None, None] + 1).float()
        return there.reshape(len(boxes), side, 3, side, 3).mean(dim=(2, 4))


class LabelMap(NamedTuple):
    """The class of every pixel of one image.

    Attributes:
        labels: Class numbers, int16; below 0 where a pixel is neither learnt from nor scored.
    """

    labels: Int[Tensor, "H W"]

    @classmethod
    def empty(cls, size: Size) -> LabelMap:
        """Give the labels of an image of `size` with every pixel ignored."""
        return cls(torch.full(size, IGNORED, dtype=torch.int16))

    @property
    def padded(self) -> bool:
        """Whether images of one batch differ in size and are padded: they do with masks."""
        return True

    def to(self, device: torch.device) -> LabelMap:
        """Copy to a device."""
        return LabelMap(self.labels.to(device))


class Keypoints(NamedTuple):
    """The keypoints of one instance.

    Attributes:
        points: x and y of each; anything where it is not known. (0, 0) is the middle of a pixel.
        known: Which are trained on.
        frame: Left, top, right and bottom of what is seen of the instance, from point to point.
    """

    points: Float[Tensor, "P 2"]
    known: Bool[Tensor, " P"]
    frame: Float[Tensor, " 4"]

    @classmethod
    def empty(cls, count: int) -> Keypoints:
        """Give `count` keypoints that are all unknown."""
        return cls(
            points=torch.zeros(count, 2),
            known=torch.zeros(count, dtype=torch.bool),
            frame=torch.tensor([0.0, 0.0, 1.0, 1.0]),
        )

    @property
    def padded(self) -> bool:
        """Whether images of one batch differ in size and are padded: crops never do."""
        return False

    def to(self, device: torch.device) -> Keypoints:
        """Copy to a device."""
        return Keypoints(*(part.to(device) for part in self))


Target = BoxTargets | LabelMap | Keypoints
"""What is known of one image beyond its label."""
