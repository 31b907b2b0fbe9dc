# SPDX-License-Identifier: Apache-2.0
"""A network that runs in an inference engine, with the interface of `Network`, and its graph.

Graphs have a fixed image size and run fastest with a fixed batch size: images are padded to a
canvas and run in batches of fixed sizes, largest first.

Letters: B images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.data.batches import PAD_TO
from muntin.data.transforms import Preprocessing
from muntin.engines.engine_table import ENGINES, find_engine, start_fastest
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.errors import ConfigError, ShapeError
from muntin.heads.detector import FixedDetector, Instances
from muntin.heads.network import Network
from muntin.inference.inference_network import FromPixels, build_inference
from muntin.models.swin import Swin
from muntin.samples import Classes
from muntin.shapes import Int, Real, Size
from muntin.tasks.task import Task


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadInfo:
    """Attributes of the head that callers read; a stride of 0 if its output is no map."""

    config: Any = None
    stride: int = 0


class EngineNetwork(nn.Module):
    """Runs an exported or compiled network on pixels in [0, 255].

    `start` creates the runner for one of the canvases, the image sizes with a graph, and one of the
    groups, batch sizes with the largest first and 1 last; None, and size 0, if the graph takes any
    number. A graph that `finds` outputs boxes, scores, class numbers and, for instance
    segmentation, masks, padded to the same number per image; it takes image sizes too.
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
        self, images: Real[Tensor, "B C H W"], sizes: Int[Tensor, "B 2"] | None = None
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
            group = next((n for n in self.groups or () if n <= count - start), 0)
            key = (canvas, group)
            if key not in self._runners:
                self._runners[key] = self.start(*key)
            end = start + (group or count)
            parts.append(self._runners[key]([part[start:end] for part in inputs]))
            start = end
        if len(parts) == 1:
            return parts[0]
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


def make_graph(
    network: Network,
    task: Task,
    classes: Classes,
    pre: Preprocessing,
    canvas: Size,
    *,
    count: int = 2,
    finished: bool = False,
) -> Graph:
    """Build the graph of a network, which is not modified: from pixels to predictions.

    Images have the size of the canvas, and the example has `count` of them. If `finished`, it also
    gives the finished output of the task, such as probabilities.
    """
    padded, outputs = task.detects, task.outputs
    if finished and task.finish is not None:
        outputs = (*outputs, task.finish[0])

    def build(*, keeps_maps: bool = False) -> nn.Module:
        built = build_inference(network, canvas, keeps_maps=keeps_maps)
        pixels_in = FromPixels(built, pre.mean, pre.std, canvas, padded=padded)
        module: nn.Module = pixels_in
        if padded:
            head: Any = pixels_in.network.head
            module = FixedDetector(pixels_in, head)
        if finished and task.finish is not None:
            module = _Finished(module, task, canvas, network.head, classes)
        return module.eval().requires_grad_(False)

    images = torch.randint(0, 256, (count, pre.in_chans, *canvas)).to(pre.pixel_type)
    sizes = torch.tensor([canvas] * count)
    return Graph(
        module=build(),
        example=(images, sizes) if padded else (images,),
        inputs=("images", "sizes") if padded else ("images",),
        outputs=outputs,
        fused=partial(build, keeps_maps=True) if isinstance(network.backbone, Swin) else None,
    )


def canvas_of(pre: Preprocessing) -> Size:
    """Return one image size that fits every preprocessed image."""
    if pre.fit != "letterbox":
        return pre.img_size
    side = -(-max(pre.img_size) // PAD_TO) * PAD_TO  # square: fits landscape and portrait
    return side, side


def canvases_of(pre: Preprocessing) -> list[Size]:
    """Return the image sizes that fit every preprocessed image: landscape and portrait."""
    if pre.fit != "letterbox":
        return [pre.img_size]
    high, wide = (-(-side // PAD_TO) * PAD_TO for side in pre.img_size)
    return [*dict.fromkeys([(high, wide), (wide, high)])]


class AutoEngine(NamedTuple):
    """For the engine "auto": the key of a model in its cache, and who is told what is chosen."""

    name: str
    say: Callable[[str], None] = lambda line: None


def run_in_engine(
    network: Network,
    task: Task,
    classes: Classes,
    pre: Preprocessing,
    *,
    engine: str,
    precision: Precision,
    auto: AutoEngine,
) -> EngineNetwork:
    """Run a network in a row of `ENGINES`, or in the fastest on this machine ("auto").

    `auto` is for the latter.
    """
    row = None if engine == "auto" else find_engine(engine)
    known = sorted({one for each in ENGINES.values() for one in each.precisions})
    allowed = known if row is None else row.precisions
    if precision not in allowed:
        message = (
            f"precision must be {' or '.join(allowed)} for engine {engine}, got {precision!r}."
        )
        raise ConfigError(message)

    def start(canvas: Size, count: int) -> Runner:
        graph = make_graph(network, task, classes, pre, canvas, count=count or 2)
        if row is None:
            return start_fastest(graph, precision, auto.name, say=auto.say)
        return row.start(graph, precision)

    finds, whole = task.detects, row is not None and row.any_number
    return EngineNetwork(
        start, canvases_of(pre), head_info(network), finds=finds, groups=None if whole else (8, 1)
    )


def head_info(network: Network) -> HeadInfo:
    """Collect the attributes of the head that callers read."""
    head: Any = network.head
    return HeadInfo(config=getattr(head, "config", None), stride=getattr(head, "stride", 0))


class _Finished(nn.Module):
    """Outputs the raw output and the finished output of the task."""

    def __init__(
        self, network: nn.Module, task: Task, canvas: Size, head: nn.Module, classes: Classes
    ) -> None:
        super().__init__()
        self.network = network
        assert task.finish is not None, "checked by the caller"
        self.finish = task.finish[1]
        self.canvas, self.classes = canvas, classes
        self.front = HeadInfo(config=getattr(head, "config", None))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        raw: Tensor = self.network(images)
        return raw, self.finish(raw, self.canvas, self.front, self.classes)
