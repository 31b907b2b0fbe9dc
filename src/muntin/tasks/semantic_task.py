# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation: the class of every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.mask_values import read_mask
from muntin.data.semantic import check_semantic, list_semantic
from muntin.data.transforms import Preprocessing, resize
from muntin.features import Backbone, Features
from muntin.heads.network import Head
from muntin.heads.semantic_head import MAP_HEADS, SemanticHead
from muntin.heads.transformers_head import TransformersHeadConfig, build_whole_model
from muntin.metrics.class_metrics import SemanticMetric
from muntin.ops.sliding_windows import slide
from muntin.results import SemanticMap
from muntin.samples import Classes, Listing
from muntin.shapes import Float, Size
from muntin.targets import IGNORED, LabelMap
from muntin.tasks.task import DenseTask, ImageMeta, InferenceBatch, Task, TrainBatch

WINDOW_FACTOR = 2
"""Side of the sliding window over that of training crops: fewer pixels are computed twice."""

AT_ONCE = 1.6
"""Areas of a sliding window up to which an image is seen at once, as two windows would cost more.

On a CPU, `muntin train` scales the images of a data set to about 1.5 at most."""


def _make_head(backbone: Backbone, classes: Classes, config: Any) -> Head:  # noqa: ANN401 (either)
    count = len(classes.names)
    if isinstance(config, TransformersHeadConfig):
        return build_whole_model(backbone, count, config, "semantic")
    return SemanticHead(backbone, count, config)


def _losses(
    head: Head, features: Features, batch: TrainBatch, classes: Classes
) -> dict[str, Float[Tensor, " B"]]:
    assert batch.targets is not None, "semantic segmentation needs label maps"
    high, wide = batch.images.shape[2:]
    labels = []
    for target in batch.targets:
        assert isinstance(target, LabelMap), "semantic segmentation needs label maps"
        rest = (0, wide - target.labels.shape[1], 0, high - target.labels.shape[0])
        labels.append(F.pad(target.labels, rest, value=IGNORED))
    return head.losses(
        features,
        torch.stack(labels),
        class_weights=batch.class_weights,
        label_smoothing=batch.label_smoothing,
    )


def _predict(inputs: InferenceBatch) -> list[NDArray[np.int16]]:
    maps = []
    for image, meta in zip(inputs.images, inputs.metas, strict=True):
        pixels = image[:, : meta.input_size[0], : meta.input_size[1]]
        labels = np.empty(meta.size, np.int16)
        for top, scores in _strips(inputs, pixels, meta.size):
            # Not argmax, which is many times slower along the first dimension on a CPU.
            found = scores.max(dim=0).indices.to(torch.int16).cpu().numpy()
            labels[top : top + len(found)] = found
        maps.append(labels)
    return maps


def _strips(inputs: InferenceBatch, pixels: Tensor, size: Size) -> Iterator[tuple[int, Tensor]]:
    """Yield logits of each class, a strip of rows at a time, so that none holds the whole map."""
    head: Any = inputs.network.head
    fixed = getattr(head, "window", None) or inputs.canvas  # the only size that it takes
    window = fixed or (
        WINDOW_FACTOR * inputs.pre.img_size[0],
        WINDOW_FACTOR * inputs.pre.img_size[1],
    )
    tile = inputs.options.tile
    if isinstance(tile, int):
        window = (tile, tile)
    elif fixed is None and pixels[0].numel() <= AT_ONCE * window[0] * window[1]:
        # With what is padded to whole cells, or it would be cut into windows for that alone.
        high, wide = (-(-side // head.stride) * head.stride for side in pixels.shape[1:])
        window = (high, wide)
    count = max(1, 8 * 256 * 256 // (window[0] * window[1]))

    def predict_windows(windows: Tensor) -> Iterator[Tensor]:
        for part in windows.split(count):
            yield from inputs.forward(part)

    mirrors = (False, True) if inputs.options.tta else (False,)
    variants = [(scale, mirrored) for scale in inputs.options.scales for mirrored in mirrors]
    streams = [
        slide(
            _resize_view(pixels, *variant, inputs.pre),
            predict_windows,
            window,
            size,
            stride=head.stride,
        )
        for variant in variants
    ]
    for strips in zip(*streams, strict=True):
        if len(variants) == 1:
            yield strips[0].top, strips[0].logits
            continue
        total = sum(
            (one.logits.flip(2) if mirrored else one.logits).softmax(dim=0)
            for one, (_, mirrored) in zip(strips, variants, strict=True)
        )
        yield strips[0].top, cast(Tensor, total)


def _resize_view(pixels: Tensor, scale: float, mirrored: bool, pre: Preprocessing) -> Tensor:
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[2] * scale)))
    resized = resize(pixels, size, pre.interpolation)
    return resized.flip(2) if mirrored else resized


def _finish(logits: Tensor, size: Size, head: object, classes: Classes) -> Tensor:
    """(B, H, W) class number of each pixel."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(dim=1)


def _decode(
    raw: Sequence[NDArray[np.int16]], metas: Sequence[ImageMeta], classes: Classes
) -> list[SemanticMap]:
    return [
        SemanticMap(
            path=meta.path, size=meta.size, labels=labels, class_names=classes.names,
            colors=_colors(classes),
        )
        for labels, meta in zip(raw, metas, strict=True)
    ]  # fmt: skip


def _colors(classes: Classes) -> tuple[tuple[int, int, int], ...]:
    encoding = classes.encoding
    # Classes that another data set taught have no colour here, see `muntin.training.extension`.
    if encoding is None or encoding.kind != "color" or min(encoding.values) < 0:
        return ()
    return tuple((value >> 16 & 255, value >> 8 & 255, value & 255) for value in encoding.values)


def _class_counts(listing: Listing) -> Tensor:
    """Count the pixels of each class in up to 200 masks."""
    total = torch.zeros(listing.num_classes)
    for entry in listing.entries[:: max(1, len(listing) // 200)]:
        labels = torch.from_numpy(read_mask(listing, entry).labels).long()
        total += torch.bincount(labels[labels >= 0], minlength=listing.num_classes)
    return total


SEMANTIC = Task(
    name="semantic",
    list_data=lambda path, classes, data: list_semantic(
        path, classes=classes, colors=data.colors, ignored=data.ignored
    ),
    check_data=check_semantic,
    make_head=_make_head,
    # Masks come with their images, so that each is decoded once.
    ground_truth=lambda listing, classes: None,
    losses=_losses,
    predict=_predict,
    decode=_decode,
    metric=lambda classes: SemanticMetric(classes.names),
    goals=("miou", "pixel_accuracy"),
    kind="segmentation",
    dense=DenseTask(
        heads=MAP_HEADS,
        default_head={"small": "light_small", "large": "light"},
        whole=TransformersHeadConfig(),
    ),
    class_counts=_class_counts,
    finish=("labels", _finish),
)
