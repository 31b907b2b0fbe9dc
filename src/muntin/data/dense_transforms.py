# SPDX-License-Identifier: Apache-2.0
"""Augmentation for objects and for masks: which part is seen, its size, mirror images, turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from muntin.configs import check_range
from muntin.data.joint_transforms import (
    Window,
    drop_unseen,
    find_place,
    fit_part,
    jitter_colors,
    move_boxes,
)
from muntin.data.mixing import join_mosaic, paste_objects, split_canvas
from muntin.data.transforms import Augmentation, Preprocessing, Sample, scaled_size
from muntin.errors import ConfigError
from muntin.samples import Skeleton
from muntin.shapes import Size
from muntin.targets import BoxTargets, LabelMap

_MOSAIC = 4  # images
_CROP_FROM, _CROP_SIDES = (400, 500, 600), (384, 600)  # pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectionAugmentConfig(Augmentation):
    """Augmentation for boxes, masks and keypoints.

    Attributes:
        scale: Range of the size of the image relative to that which just fits `img_size`;
            what is larger than the window then is cropped ("large-scale jitter" is 0.1 to 2).
        window: Sides of the part that is learnt from, relative to `img_size`: below 1, steps are
            cheaper, and objects have the size at which they are found later all the same.
        short_sides: Instead of `scale`: the shorter side of the image gets one of these lengths in
            pixels, the longer one at most that of `img_size`; nothing is cropped.
        crop: With `short_sides`, probability of cropping first: 384 to 600
            pixels a side of the image whose shorter side has 400, 500 or 600 (arXiv 2005.12872).
        flip: Probability of mirroring left and right.
        flip_vertical: Probability of mirroring top and bottom.
        jitter: Strength of random brightness, contrast, saturation and hue, 0 to 1.
        mosaic: Probability of joining four images, or parts of them, to one (arXiv 2004.10934).
        paste: Probability of pasting objects of another image, cut out by their masks
            (arXiv 2012.07177); objects without masks are never pasted.
        mixes_until: Part of the training, of its time with a time limit, after which there is
            neither: the last part sees images as they are.
    """

    kind: ClassVar[str] = "detection"
    groups_by_shape: ClassVar[bool] = True

    scale: tuple[float, float] = (1.0, 1.0)
    window: float = 1.0
    short_sides: tuple[int, ...] = ()
    crop: float = 0.0
    flip: float = 0.5
    flip_vertical: float = 0.0
    jitter: float = 0.0
    mosaic: float = 0.0
    paste: float = 0.0
    mixes_until: float = 0.8

    def __post_init__(self) -> None:
        """Validate the ranges."""
        self._check_shares("crop", "flip", "flip_vertical", "jitter")
        self._check_shares("mosaic", "paste", "mixes_until")
        check_range("augment.window", self.window, 0.05, 1)
        self._check_scale(self.scale)
        for side in self.short_sides:
            check_range("augment.short_sides", side, 8, 10**5)
        if self.short_sides and (self.scale != (1.0, 1.0) or self.window != 1):
            message = (
                f"augment.scale and augment.window have no effect beside augment.short_sides, got "
                f"{self.scale}, {self.window} and {self.short_sides}. Set one or the other."
            )
            raise ConfigError(message)

    @property
    def mixed_part(self) -> float:
        """See `Augmentation`."""
        return self.mixes_until if self.mosaic or self.paste else 0.0

    def augment(
        self, sample: Sample, pre: Preprocessing, seed: int, skeleton: Skeleton | None = None
    ) -> Sample:
        """See `Augmentation`; not padded, and no larger than the window, but for `short_sides`."""
        return self._augment(sample, pre, np.random.default_rng(seed), skeleton)

    def draw_others(self, seed: int, count: int) -> tuple[int, ...]:
        """See `Augmentation`; three others for a mosaic, one to paste from."""
        rng = np.random.default_rng([seed, 0x6D69])
        number = 3 if rng.random() < self.mosaic else int(rng.random() < self.paste)
        return tuple(map(int, rng.integers(count, size=number)))

    def mix(
        self,
        samples: Sequence[Sample],
        pre: Preprocessing,
        seed: int,
        skeleton: Skeleton | None = None,
    ) -> Sample:
        """See `Augmentation`."""
        rng = np.random.default_rng(seed)
        first = samples[0]
        if len(samples) == _MOSAIC:
            limit = self._window((first.pixels.shape[1], first.pixels.shape[2]), pre)
            parts = split_canvas(limit, rng)
            seen = [
                self._augment(sample, pre, rng, skeleton, limit=(part[2], part[3]))
                for sample, part in zip(samples, parts, strict=True)
            ]
            return join_mosaic(seen, parts, limit, pre.mean_color)
        base, other = (self._augment(sample, pre, rng, skeleton) for sample in samples)
        return paste_objects(base, other, rng)

    def _augment(
        self,
        sample: Sample,
        pre: Preprocessing,
        rng: np.random.Generator,
        skeleton: Skeleton | None,
        *,
        limit: Size | None = None,
    ) -> Sample:
        """Augment one image; with `limit`, a part of it that has at most this size."""
        image, targets = sample.pixels, sample.target
        assert isinstance(targets, BoxTargets), "images with objects have boxes"
        whole = (image.shape[1], image.shape[2])
        if self.short_sides and limit is None:
            part, size = self._draw_side(whole, targets, pre, rng)
        else:
            scale = float(np.exp(rng.uniform(*np.log(self.scale)))) * pre.scale_of(whole)
            cut, size = fit_part(whole, limit or self._window(whole, pre), scale)
            part = (*_choose_place(whole, cut, targets, rng), *cut)
        flips = (rng.random() < self.flip_vertical, rng.random() < self.flip)
        if skeleton is not None and not skeleton.mirrored:
            flips = (False, False)
        window = Window(part, size, flips)
        image = jitter_colors(window.move_pixels(image, pre.interpolation), self.jitter, rng)
        moved = move_boxes(targets, window, skeleton)
        return Sample(image, sample.size, drop_unseen(moved, size))

    def _window(self, whole: Size, pre: Preprocessing) -> Size:
        """Largest size of what is learnt from; an image lies in `img_size` as it fits."""
        full = pre.img_size
        turned = full if (whole[0] <= whole[1]) == (full[0] <= full[1]) else full[::-1]
        return round(turned[0] * self.window), round(turned[1] * self.window)

    def _draw_side(
        self, whole: Size, targets: BoxTargets, pre: Preprocessing, rng: np.random.Generator
    ) -> _Part:
        """One of several lengths for the shorter side, perhaps of a part of the image."""
        part, top, left = whole, 0, 0
        if rng.random() < self.crop:
            before = float(rng.choice(_CROP_FROM)) / min(whole)
            low, high = ([min(side * before, end) for side in whole] for end in _CROP_SIDES)
            high, wide = (rng.uniform(low, high) / before).round().astype(int).tolist()
            part = max(1, min(whole[0], high)), max(1, min(whole[1], wide))
            top, left = _choose_place(whole, part, targets, rng)
        short = int(self.short_sides[rng.integers(len(self.short_sides))])
        scale = min(short / min(part), max(pre.img_size) / max(part))
        return (top, left, *part), scaled_size(part, scale)


_Part = tuple[tuple[int, int, int, int], Size]
"""Top, left, height and width of what is cut out, and the size that it is brought to."""


def _choose_place(
    whole: Size, part: Size, targets: BoxTargets, rng: np.random.Generator
) -> tuple[int, int]:
    """Where a part is cut out, such that the middle of an object is in it if there is one."""
    middles = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2

    def holds_object(top: int, left: int) -> bool:
        start = torch.tensor([left, top])
        inside = (middles >= start) & (middles < start + torch.tensor([part[1], part[0]]))
        return not len(middles) or bool(inside.all(dim=1).any())

    top, left, found = find_place(whole, part, rng, holds_object)
    if found:
        return top, left
    x, y = map(int, middles[rng.integers(len(middles))].tolist())
    return _choose_start(y, whole[0], part[0], rng), _choose_start(x, whole[1], part[1], rng)


def _choose_start(middle: int, whole: int, part: int, rng: np.random.Generator) -> int:
    """Where a part of a line begins that holds one of its pixels."""
    middle = min(middle, whole - 1)
    return int(rng.integers(max(0, middle - part + 1), min(middle, whole - part) + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationAugmentConfig(Augmentation):
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
        self._check_shares("flip", "flip_vertical", "turn", "jitter")
        check_range("augment.dominant", self.dominant, 0.01, 1)
        self._check_scale(self.scale)

    def augment(
        self, sample: Sample, pre: Preprocessing, seed: int, skeleton: Skeleton | None = None
    ) -> Sample:
        """See `Augmentation`; the result is not padded, and never larger than `img_size`."""
        rng = np.random.default_rng(seed)
        image, target = sample.pixels, sample.target
        assert isinstance(target, LabelMap), "images for segmentation have masks"
        labels, whole = target.labels, (image.shape[1], image.shape[2])
        # From the cached image to the scale of prediction; the image may be cached smaller.
        scale = pre.scale_of(sample.size) * sample.size[0] / whole[0]
        scale *= float(np.exp(rng.uniform(*np.log(self.scale))))
        turns = int(rng.integers(1, 4)) if rng.random() < self.turn else 0
        limit = pre.img_size if turns % 2 == 0 else pre.img_size[::-1]
        part, size = fit_part(whole, limit, scale)

        def is_mixed(top: int, left: int) -> bool:
            seen = labels[top : top + part[0], left : left + part[1]]
            return self.dominant >= 1 or _largest_share(seen) <= self.dominant

        top, left, _ = find_place(whole, part, rng, is_mixed)
        flips = (rng.random() < self.flip_vertical, rng.random() < self.flip)
        window = Window((top, left, *part), size, flips, turns)
        image = jitter_colors(window.move_pixels(image, pre.interpolation), self.jitter, rng)
        moved = LabelMap(window.move_labels(labels).contiguous())
        return Sample(image.contiguous(), sample.size, moved)


def _largest_share(labels: Tensor) -> float:
    known = labels[labels >= 0].long()
    return float(torch.bincount(known).max() / len(known)) if len(known) else 1.0
