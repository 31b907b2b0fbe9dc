# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Images and segmentation masks, transformed together.

Everything random comes from one generator per image, so what an image becomes depends on (seed,
epoch, index) alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from muntin.configs import check_range
from muntin.data.detection_transforms import jitter_colors
from muntin.data.transforms import BatchTransform, Preprocessing, resize
from muntin.errors import ConfigError
from muntin.samples import Skeleton
from muntin.shapes import Int, Size, UInt8
from muntin.targets import LabelMap, Target

__all__ = [
    "SegmentationAugmentConfig",
    "augment_segmentation",
    "rescale",
    "resize_factor",
    "resize_labels",
]

_TRIES = 10  # crops, to find one in which no class takes up too much


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationAugmentConfig:
    """Augmentation for segmentation masks.

    Attributes:
        scale: Range of the size of the image relative to that of prediction;
            parts of `img_size` are then cut out.
        dominant: Largest share of the labelled pixels of a part that one class may have, where ten
            tries find such a part; 1 = no limit.
        flip: Probability of mirroring left and right.
        flip_vertical: Probability of mirroring top and bottom.
        turn: Probability of turning by 90, 180 or 270 degrees: images without an orientation.
        jitter: Strength of random brightness, contrast, saturation and hue, 0 to 1.
    """

    kind: ClassVar[str] = "segmentation"

    scale: tuple[float, float] = (0.5, 2.0)
    dominant: float = 0.75
    flip: float = 0.5
    flip_vertical: float = 0.0
    turn: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Validate the ranges."""
        for name in ("flip", "flip_vertical", "turn", "jitter"):
            check_range(f"augment.{name}", getattr(self, name), 0, 1)
        check_range("augment.dominant", self.dominant, 0.01, 1)
        for value in self.scale:
            check_range("augment.scale", value, 0.01, 10)
        if self.scale[0] > self.scale[1]:
            message = f"augment.scale must rise, got {self.scale}."
            raise ConfigError(message)

    @property
    def groups_by_shape(self) -> bool:
        """Crops of training have one size, unless an image is smaller."""
        return False

    @property
    def batch_transform(self) -> BatchTransform | None:
        """None: masks change with their image."""
        return None

    def augment(
        self,
        image: UInt8[Tensor, "C H W"],
        target: Target | None,
        *,
        original: Size,
        pre: Preprocessing,
        seed: int,
        skeleton: Skeleton | None,
    ) -> tuple[UInt8[Tensor, "C h w"], Target | None]:
        """See `muntin.data.transforms.Augmentation`."""
        rng = np.random.default_rng(seed)
        assert isinstance(target, LabelMap), "images for segmentation have masks"
        # From the cached image to the scale of prediction; the image may be cached smaller.
        scale = resize_factor(original, pre) * original[0] / image.shape[1]
        return augment_segmentation(image, target, self, pre, scale, rng)


def resize_factor(size: Size, pre: Preprocessing) -> float:
    """Factor by which an image of a size (height, width) is seen."""
    if pre.short_side:
        return pre.short_side / min(size)
    return pre.scale


def rescale(
    image: UInt8[Tensor, "C H W"], original: Size, pre: Preprocessing
) -> UInt8[Tensor, "C h w"]:
    """Bring an image, which was perhaps made smaller already, to the scale at which it is seen."""
    factor = resize_factor(original, pre)
    size = (max(1, round(original[0] * factor)), max(1, round(original[1] * factor)))
    return resize(image, size, pre.interpolation)


def augment_segmentation(
    image: UInt8[Tensor, "C H W"],
    target: LabelMap,
    config: SegmentationAugmentConfig,
    pre: Preprocessing,
    scale: float,
    rng: np.random.Generator,
) -> tuple[UInt8[Tensor, "C h w"], LabelMap]:
    """Change an image and the classes of its pixels at random.

    Args:
        image: As it is kept.
        target: Classes of its pixels.
        config: What to do.
        pre: Gives `img_size`, which the result is never larger than.
        scale: Factor from the image as it is kept to that which is predicted.
        rng: Where chance comes from.

    Returns:
        The changed image, not padded, and its labels.
    """
    low, high = np.log(config.scale[0]), np.log(config.scale[1])
    factor = scale * float(np.exp(rng.uniform(low, high)))
    turns = int(rng.integers(1, 4)) if rng.random() < config.turn else 0
    window = pre.img_size if turns % 2 == 0 else pre.img_size[::-1]
    whole = (image.shape[1], image.shape[2])
    part = tuple(
        min(side, max(1, round(w / factor))) for side, w in zip(whole, window, strict=True)
    )
    labels = target.labels
    for _ in range(_TRIES):
        top = int(rng.integers(whole[0] - part[0] + 1))
        left = int(rng.integers(whole[1] - part[1] + 1))
        seen = labels[top : top + part[0], left : left + part[1]]
        if config.dominant >= 1 or _largest_share(seen) <= config.dominant:
            break
    size = tuple(min(max(1, round(p * factor)), w) for p, w in zip(part, window, strict=True))
    image = resize(
        image[:, top : top + part[0], left : left + part[1]],
        (size[0], size[1]),
        pre.interpolation,
    )
    seen = resize_labels(seen, (size[0], size[1]))
    flips = [rng.random() < config.flip_vertical, rng.random() < config.flip]
    axes = [axis for axis, flip in zip((-2, -1), flips, strict=True) if flip]
    if axes:
        image, seen = image.flip(axes), seen.flip(axes)
    if turns:
        image, seen = image.rot90(turns, (-2, -1)), seen.rot90(turns, (-2, -1))
    if config.jitter:
        image = jitter_colors(image, config.jitter, rng)
    return image.contiguous(), LabelMap(seen.contiguous())


def resize_labels(labels: Int[Tensor, "H W"], size: Size) -> Int[Tensor, "h w"]:
    """Bring labels to another size: each pixel gets that of the nearest one."""
    if tuple(labels.shape) == size:
        return labels
    rows, columns = (
        ((torch.arange(after) + 0.5) * (before / after)).long().clamp(max=before - 1)
        for after, before in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


def _largest_share(labels: Tensor) -> float:
    known = labels[labels >= 0]
    if not len(known):
        return 1.0
    return float(torch.bincount(known.long()).max() / len(known))
