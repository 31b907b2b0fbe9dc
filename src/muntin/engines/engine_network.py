# SPDX-License-Identifier: Apache-2.0
"""A network that runs in an inference engine, with the interface of `Network`.

Graphs have a fixed image size and run fastest with a fixed batch size: images are padded to a
canvas and run in batches of fixed sizes, largest first.

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


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadInfo:
    """Attributes of the head that callers read; a stride of 0 if its output is no map."""

    config: Any = None
    stride: int = 0


class EngineNetwork(nn.Module):
    """Runs an exported or compiled network on pixels in [0, 255].

    `start` creates the runner for one of the canvases, the image sizes with a graph, and a batch size
    of the groups: largest first, the last is 1; None if the graph takes any. A graph that `finds`
    outputs boxes, scores, class numbers and, for instance segmentation, masks, padded to the same
    number per image; it takes image sizes too.
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
        """Compute the outputs of the graph.

        Detectors need the (height, width) of each image inside its padding.
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
            high, wide = (-(-side // self.head.stride) for side in shown)
            found = found[:, :, :high, :wide]
        return found

    def decode(self, raw: Any) -> Any:  # noqa: ANN401 (as `forward`)
        """Decode the output of `forward`, as `muntin.heads.network.Network.decode` does."""
        return _as_found(raw) if self.finds else raw

    def _canvas(self, shown: Size) -> Size:
        fitting = [c for c in self.canvases if c[0] >= shown[0] and c[1] >= shown[1]]
        if not fitting:
            sizes = " or ".join(f"{high}x{wide}" for high, wide in self.canvases)
            message = (
                f"images must be at most {sizes} pixels (height x width), the size of the graph, "
                f"got {shown[0]}x{shown[1]}. Export the model for a larger size (--img-size)."
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
    """Detections of each image, without padding."""
    detections = []
    for boxes, scores, class_ids, *masks in zip(*outputs, strict=True):
        count = int((scores > 0).sum())  # best first
        detections.append(
            Instances(
                boxes=boxes[:count],
                scores=scores[:count],
                class_ids=class_ids[:count],
                masks=masks[0][:count] if masks else None,
            )
        )
    return detections
