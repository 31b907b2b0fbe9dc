# SPDX-License-Identifier: Apache-2.0
"""Builds the graph that engines run from a network and its task."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from muntin.data.batches import PAD_TO
from muntin.data.transforms import Preprocessing
from muntin.engines.engine_network import EngineNetwork, HeadInfo
from muntin.engines.engine_table import ENGINES, find_engine, start_fastest
from muntin.engines.graphs import Graph, Precision, Runner
from muntin.errors import ConfigError
from muntin.heads.detector import FixedDetector
from muntin.heads.network import Network
from muntin.inference.inference_network import FromPixels, build_inference
from muntin.models.swin import Swin
from muntin.samples import Classes
from muntin.shapes import Size
from muntin.tasks.task import Task


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

    images = torch.randint(0, 256, (count, pre.in_chans, *canvas), dtype=torch.uint8)
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


def run_in_engine(
    network: Network,
    task: Task,
    classes: Classes,
    pre: Preprocessing,
    *,
    engine: str,
    precision: Precision,
    name: str,
) -> EngineNetwork:
    """Run a network in a row of `ENGINES`, or in the fastest on this machine ("auto").

    `name` is the key of the model in the cache of "auto".
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
            return start_fastest(graph, precision, name)
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
