# SPDX-License-Identifier: Apache-2.0
"""Augmentation of images with segmentation masks: size, part, mirror images and turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from muntin.configs import check_range
from muntin.data.joint_transforms import Window, find_place, fit_part, jitter_colors
from muntin.data.transforms import Augmentation, Preprocessing, Sample
from muntin.samples import Skeleton
from muntin.targets import LabelMap


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
