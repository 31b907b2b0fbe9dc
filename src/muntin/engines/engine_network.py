# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A network whose work an engine does, for whoever calls networks.

Graphs are for images of one size, and run fastest for a number of images that is known before.
So images are padded to a canvas and shown in groups: several at a time while there are enough,
then one by one.

Letters: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.engines.graphs import Runner
from muntin.errors import ShapeError
from muntin.heads.instances import Instances
from muntin.shapes import Int, Size, UInt8

__all__ = ["EngineNetwork", "HeadInfo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadInfo:
    """What others read from the head of a network.

    Attributes:
        config: Its config; None where it has none.
        stride: Pixels of a cell of the map that it gives; 0 where it gives no map.
    """

    config: Any = None
    stride: int = 0


class EngineNetwork(nn.Module):
    """Takes pixels from 0 to 255, and gives what the network gives that it stands for.

    Args:
        start: From the size of the images and their number to what runs them.
        canvases: Sizes of the images that there are graphs for.
        front: Of the head.
        finds: Whether the graph tells objects: boxes, scores, class numbers and perhaps masks,
            equally many an image. Then it also takes the sizes of the images.
        groups: Numbers of images that are shown at a time, largest first; the last is 1. None
            where the graph takes any number.
    """

    reads_pixels = True

    def __init__(
        self,
        start: Callable[[Size, int], Runner],
        canvases: Sequence[Size],
        front: HeadInfo,
        *,
        finds: bool,
        groups: tuple[int, ...] | None = (8, 1),
    ) -> None:
        super().__init__()
        self.start, self.canvases, self.finds, self.groups = start, [*canvases], finds, groups
        self.head: Any = front
        self._runners: dict[tuple[Size, int], Runner] = {}

    def forward(
        self, images: UInt8[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Run the engine.

        Args:
            images: Pixels.
            sizes: Of the images inside, for a graph that tells objects.

        Returns:
            Logits or maps; boxes, scores, class numbers and perhaps masks, equally many an image,
            of a graph that tells objects.

        Raises:
            ShapeError: The images are larger than any canvas.
        """
        shown: Size = (images.shape[2], images.shape[3])
        canvas = self._canvas(shown)
        rest = (0, canvas[1] - shown[1], 0, canvas[0] - shown[0])
        padded = F.pad(images, rest) if any(rest) else images
        inputs = [padded.cpu().numpy()]
        if sizes is not None:
            inputs.append(sizes.cpu().numpy())
        outputs = [torch.from_numpy(part) for part in self._run(inputs, canvas)]
        if self.finds:
            return tuple(outputs)
        found = outputs[0]
        if self.head.stride and any(rest):
            cells = (-(-side // self.head.stride) for side in shown)
            high, wide = cells
            found = found[:, :, :high, :wide]
        return found

    def decode(self, raw: Any) -> Any:  # noqa: ANN401 (as `forward`)
        """Turn what `forward` gave into answers, as `muntin.heads.network.Network.decode` does."""
        return _as_found(raw) if self.finds else raw

    def _canvas(self, shown: Size) -> Size:
        fitting = [c for c in self.canvases if c[0] >= shown[0] and c[1] >= shown[1]]
        if not fitting:
            sizes = " or ".join(f"{high}x{wide}" for high, wide in self.canvases)
            message = (
                f"images must be at most {sizes} pixels (height x width), for which the graph "
                f"was made, got {shown[0]}x{shown[1]}. Export it for a larger size (--img-size)."
            )
            raise ShapeError(message)
        return min(fitting, key=lambda canvas: canvas[0] * canvas[1])

    def _run(self, inputs: list[Any], canvas: Size) -> list[Any]:
        count, start, parts = len(inputs[0]), 0, []
        while start < count:
            group = count
            if self.groups is not None:
                group = next(n for n in self.groups if n <= count - start)
            key = (canvas, group if self.groups is not None else 0)
            if key not in self._runners:
                self._runners[key] = self.start(*key)
            answer = self._runners[key]([part[start : start + group] for part in inputs])
            parts.append([np.array(part) for part in answer])  # engines reuse their memory
            start += group
        return [np.concatenate(rows) for rows in zip(*parts, strict=True)]


def _as_found(outputs: Sequence[Tensor]) -> list[Instances]:
    """What is found in each image, without the filling."""
    told = []
    for boxes, scores, class_ids, *masks in zip(*outputs, strict=True):
        count = int((scores > 0).sum())  # best first
        told.append(
            Instances(
                boxes=boxes[:count],
                scores=scores[:count],
                class_ids=class_ids[:count],
                masks=masks[0][:count] if masks else None,
            )
        )
    return told
