# SPDX-License-Identifier: Apache-2.0
"""The model and the image that an explanation is about, and one recorded forward for all figures.

Attention weights are recomputed from the recorded inputs of the layers with the plain formula, one
layer and one head at a time, because fused kernels never materialise them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.data.batches import resized_size, stack_images
from muntin.data.keypoint_transforms import crop_box
from muntin.data.transforms import Preprocessing
from muntin.explaining.attention_extraction import LayerCall, find_extractor
from muntin.explaining.attention_layers import AttentionLayer
from muntin.prediction.batch import Part, PreparedBatch
from muntin.prediction.predictor import Predictor
from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.samples import Classes
from muntin.shapes import Float, Real, Size
from muntin.tasks.task import ImageMeta, Task

MAX_PREFIX = 16
"""Largest number of prefix tokens: class token, distillation token, registers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recording:
    """One forward of a backbone: layers and blocks in execution order, its maps.

    Layers are of the kinds that have an extractor; blocks come with their first output tensor; maps
    are (1, C, H, W), finest first.
    """

    layers: tuple[AttentionLayer, ...]
    blocks: tuple[tuple[nn.Module, Tensor], ...]
    maps: tuple[Tensor, ...]


def record_forward(backbone: Any, images: Float[Tensor, "1 in_chans H W"]) -> Recording:  # noqa: ANN401
    """Run a backbone (of muntin, or the adapter around one of timm) once, and leave no hooks.

    Source:
        The weights of the layers are those of equation 4 of Liu et al. 2021 (arXiv 2103.14030) and
        of Vaswani et al. 2017, equation 1. Compared with timm 1.0.31 (fused attention off) in
        tests/explaining/test_attention_trace.py, tolerance 1e-5.
    """
    calls: dict[str, LayerCall] = {}
    size: Size = (images.shape[2], images.shape[3])
    names = {module: name for name, module in backbone.named_modules()}
    found = {module: find_extractor(module) for module in names}
    extractors = {module: extractor for module, extractor in found.items() if extractor is not None}

    def record_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = names[module]
        calls[name] = LayerCall(
            backbone=backbone, name=name, module=module, args=args, kwargs=kwargs, size=size
        )

    with ExitStack() as hooks:
        for module in extractors:
            hooks.enter_context(module.register_forward_pre_hook(record_call, with_kwargs=True))
        with torch.inference_mode(False), torch.no_grad(), record(backbone.blocks) as outputs:
            maps = backbone(images.clone())
    layers = (extractors[call.module](call) for call in calls.values())
    return Recording(
        layers=tuple(layer for layer in layers if layer is not None),
        blocks=tuple((module, tensors_in(output)[0]) for module, output in outputs),
        maps=tuple(maps),
    )


@contextmanager
def record(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Any]]]:
    """Collect the outputs of modules in execution order while the context is active."""
    outputs: list[tuple[nn.Module, Any]] = []

    def append_output(module: nn.Module, _: Any, output: Any) -> None:  # noqa: ANN401 (any module)
        outputs.append((module, output))

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(append_output))
        yield outputs


def tensors_in(output: Any) -> list[Tensor]:  # noqa: ANN401 (any module)
    """Flatten an output of nested lists and tuples to its tensors."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in tensors_in(part)]
    return []


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """A model, an image, and what to explain of its prediction.

    The network is in evaluation mode on the CPU, or the engine of an exported file, which exposes
    no modules. `shown` is the image resized or cropped, before padding and normalisation; `images`
    is the input of the network. `target` is None for the prediction with the highest score,
    `point`, (x, y) from 0 to 1 in the original image, for the centre. `threshold` is the minimum
    score of what is drawn.
    """

    name: str
    network: nn.Module
    task: Task
    classes: Classes
    pre: Preprocessing
    pixels: NDArray[np.uint8]
    shown: Real[Tensor, "C h w"]
    images: Float[Tensor, "1 in_chans Hi Wi"]
    path: str = ""
    trained: bool = True
    target: int | None = None
    point: tuple[float, float] | None = None
    threshold: float = DEFAULT_SCORE_THRESHOLD

    @property
    def backbone(self) -> nn.Module | None:
        """The backbone; None for an exported file."""
        return getattr(self.network, "backbone", None)

    @property
    def size(self) -> Size:
        """(height, width) of the original image in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def shown_size(self) -> Size:
        """(height, width) of the network's input in pixels, without padding."""
        return self.shown.shape[1], self.shown.shape[2]

    @property
    def fresh(self) -> str | bool:
        """Key of the sentence that captions end with if the weights are untrained, or False."""
        return not self.trained and "fresh"

    @cached_property
    def predictor(self) -> Predictor:
        """Of the model, for this image and those of a folder."""
        predictor = Predictor(self.network, self.task, self.classes, self.pre, device="cpu")
        predictor.threshold = self.threshold
        return predictor

    @cached_property
    def recording(self) -> Recording:
        """One forward of the backbone, which all sections share."""
        assert self.backbone is not None, "an exported file exposes no backbone"
        return record_forward(self.backbone, self.images)

    @cached_property
    def prediction(self) -> Any:  # noqa: ANN401 (one of muntin.results)
        """Result of the image."""
        meta = ImageMeta(path=self.path, size=self.size, input_size=self.shown_size)
        part = Part(images=stack_images([self.shown], self.pre), metas=(meta,), places=(0,))
        batch = PreparedBatch(parts=(part,), merges=((1, lambda results: results[0]),))
        return self.predictor.decode(self.predictor.run(batch))[0]

    @property
    def query(self) -> tuple[float, float]:
        """`point` in pixels of `shown`; what preprocessing cropped off lies at the nearest edge."""
        (height, width), (rows, columns) = self.size, self.shown_size
        x, y = self.point or (0.5, 0.5)
        if self.pre.fit == "instance_crop":  # the box is the whole image
            left, top, right, bottom = crop_box((-0.5, -0.5, width - 0.5, height - 0.5), self.pre)
            x = (x * width - 0.5 - left) / (right - left) * (columns - 1)
            y = (y * height - 0.5 - top) / (bottom - top) * (rows - 1)
        elif self.pre.fit in ("center_crop", "stretch"):  # from the centre of the resized image
            resized = resized_size(self.size, replace(self.pre, img_size=self.shown_size))
            x = columns / 2 + (x - 0.5) * resized[1]
            y = rows / 2 + (y - 0.5) * resized[0]
        else:
            x, y = x * columns, y * rows
        return float(np.clip(x, 0, columns - 1)), float(np.clip(y, 0, rows - 1))

    def forget(self) -> None:
        """Free what was recorded, so that the contexts of many images fit into memory."""
        self.__dict__.pop("recording", None)
