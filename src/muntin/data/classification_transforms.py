# SPDX-License-Identifier: Apache-2.0
"""Augmentation for classification.

Small images of one size are augmented a whole batch at a time; others one by one with
torchvision's transforms.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muntin.configs import check_range
from muntin.data.joint_transforms import adjust_bands
from muntin.data.transforms import Augmentation, BatchTransform, Preprocessing, Sample, resize
from muntin.samples import Skeleton
from muntin.shapes import Real

BATCH_DRAWS = 11
"""Random numbers that `AugmentConfig.augment_batch` reads for each image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig(Augmentation):
    """Augmentation for classification.

    Attributes:
        crop_scale: Smallest part of the image's area that a random crop keeps, in (0, 1].
        crop_ratio: Largest ratio of the crop's sides, at least 1.
        flip: Probability of mirroring left and right.
        flip_vertical: Probability of mirroring top and bottom.
        auto: Random operations on colour and geometry.
        magnitude: Strength of "randaugment", 0 to 30.
        jitter: Strength of random brightness, contrast and saturation, 0 to 1.
        erase: Probability of erasing a random box.
        mixup: Alpha of mixup; 0 = off.
        cutmix: Alpha of cutmix; 0 = off.
    """

    kind: ClassVar[str] = "classification"

    crop_scale: float = 0.08
    crop_ratio: float = 4 / 3
    flip: float = 0.5
    flip_vertical: float = 0.0
    auto: Literal["none", "randaugment", "trivialaugment"] = "none"
    magnitude: int = 9
    jitter: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Validate the ranges."""
        self._check_shares("flip", "flip_vertical", "jitter", "erase")
        check_range("augment.crop_scale", self.crop_scale, 0.01, 1)
        check_range("augment.crop_ratio", self.crop_ratio, 1, 10)
        check_range("augment.magnitude", self.magnitude, 0, 30)
        check_range("augment.mixup", self.mixup, 0, 100)
        check_range("augment.cutmix", self.cutmix, 0, 100)

    @property
    def batch_transform(self) -> BatchTransform | None:
        """Crop, flip and erase whole batches; operations on colour need single images."""
        if self.auto != "none" or self.jitter:
            return None
        return self.augment_batch

    def augment(
        self, sample: Sample, pre: Preprocessing, seed: int, skeleton: Skeleton | None = None
    ) -> Sample:
        """See `Augmentation`; the numbers and bits of torchvision's transforms."""
        # torch.manual_seed would also note a call for every kind of device, with its traceback.
        generator = torch.Generator().manual_seed(seed)
        top, left, high, wide = self._draw_crop(sample.pixels.shape, generator)
        seen = sample.pixels[:, top : top + high, left : left + wide]
        pixels = resize(seen, pre.img_size, pre.interpolation)
        for chance, axis in ((self.flip, -1), (self.flip_vertical, -2)):
            if chance and torch.rand(1, generator=generator) < chance:
                pixels = pixels.flip(axis)
        if transform := _build_transform(self, pre):
            pixels = _draw_from(generator, transform, pixels)
        return sample._replace(pixels=pixels)

    def _draw_crop(
        self, shape: Sequence[int], generator: torch.Generator
    ) -> tuple[int, int, int, int]:
        """Top, left, height and width of a part; the middle if none of ten fits inside."""
        _, height, width = shape
        log_ratio = torch.tensor((1 / self.crop_ratio, self.crop_ratio)).log().tolist()
        for _ in range(10):
            area = torch.empty(1).uniform_(self.crop_scale, 1.0, generator=generator).item()
            ratio = torch.empty(1).uniform_(*log_ratio, generator=generator).exp().item()
            area *= height * width
            high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < wide <= width and 0 < high <= height:
                starts = (height - high + 1, width - wide + 1)
                top, left = (int(torch.randint(n, (1,), generator=generator)) for n in starts)
                return top, left, high, wide
        high = min(height, round(width / (1 / self.crop_ratio)))
        wide = min(width, round(height * self.crop_ratio))
        return (height - high) // 2, (width - wide) // 2, high, wide

    def augment_batch(
        self,
        images: Real[Tensor, "B C H W"],
        uniforms: NDArray[np.float64],
        pre: Preprocessing,
    ) -> Real[Tensor, "B C h w"]:
        """Crop, resize to `pre.img_size`, mirror and erase images of one size, all at once.

        `uniforms` are `BATCH_DRAWS` numbers in [0, 1) an image.
        """
        area, ratio, top, left, flip, flip_vertical, *box = torch.from_numpy(uniforms).float().T
        area = self.crop_scale + (1 - self.crop_scale) * area
        ratio = ((2 * ratio - 1) * math.log(self.crop_ratio)).exp()
        high = (area / ratio).sqrt().clamp(max=1)
        wide = (area * ratio).sqrt().clamp(max=1)
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0] = wide * torch.where(flip < self.flip, -1.0, 1.0)
        theta[:, 1, 1] = high * torch.where(flip_vertical < self.flip_vertical, -1.0, 1.0)
        theta[:, 0, 2] = (2 * left - 1) * (1 - wide)
        theta[:, 1, 2] = (2 * top - 1) * (1 - high)
        # The crop is read at the image's own grain; only then is it made smaller, antialiased.
        size = (max(images.shape[2], pre.img_size[0]), max(images.shape[3], pre.img_size[1]))
        grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
        out = F.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
        out = out.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else out
        out = resize(out, pre.img_size, "bilinear")
        return _erase(out, box, self.erase, pre) if self.erase else out


# torchvision draws from the generator that all threads share.
_shared_generator = threading.Lock()


def _draw_from(
    generator: torch.Generator, transform: Callable[[Tensor], Tensor], pixels: Tensor
) -> Tensor:
    """Transform pixels with the numbers of a generator."""
    with _shared_generator:
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.set_state(generator.get_state())
            return transform(pixels)
        finally:
            torch.default_generator.set_state(before)


@functools.lru_cache(maxsize=8)
def _build_transform(
    config: AugmentConfig, pre: Preprocessing
) -> Callable[[Tensor], Tensor] | None:
    """Compose what follows cropping, which keeps nothing between images; None if nothing does."""
    if config.auto == "none" and not config.jitter and not config.erase:
        return None
    from torchvision.transforms import InterpolationMode, v2

    steps: list[torch.nn.Module] = []
    if config.auto != "none" and not pre.has_colors:  # the half of both that is geometry
        bilinear, fill = InterpolationMode.BILINEAR, [*pre.mean_color]
        turn = v2.RandomAffine(30, (0.1, 0.1), (0.8, 1.2), 10, bilinear, fill=fill)
        steps.append(v2.RandomApply([turn], 0.5))
    elif config.auto == "randaugment":
        steps.append(v2.RandAugment(magnitude=config.magnitude))
    elif config.auto == "trivialaugment":
        steps.append(v2.TrivialAugmentWide())
    if config.jitter and not pre.has_colors:
        steps.append(_Gain(config.jitter))
    elif config.jitter:
        jitter = config.jitter
        steps.append(v2.ColorJitter(jitter, jitter, jitter if pre.in_chans == 3 else 0))
    if config.erase:
        steps.append(v2.RandomErasing(config.erase, value=list(pre.mean_color)))
    return v2.Compose(steps)


class _Gain(torch.nn.Module):
    """Random brightness and contrast of images that are no photographs."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: Tensor) -> Tensor:
        low, high = max(1 - self.strength, 0.0), 1 + self.strength
        brightness, contrast = torch.empty(2).uniform_(low, high).tolist()
        return adjust_bands(image, brightness, contrast)


def _erase(images: Tensor, draws: list[Tensor], chance: float, pre: Preprocessing) -> Tensor:
    """Paint a box of 2 to 33 % of the area, in the mean colour."""
    wanted, area, ratio, top, left = draws
    height, width = images.shape[2:]
    ratio = ((2 * ratio - 1) * math.log(3)).exp()
    area = 0.02 + 0.31 * area
    high = ((area / ratio).sqrt().clamp(max=1) * height)[:, None]
    wide = ((area * ratio).sqrt().clamp(max=1) * width)[:, None]
    rows, columns = torch.arange(height)[None], torch.arange(width)[None]
    top, left = top[:, None] * (height - high), left[:, None] * (width - wide)
    in_rows = (rows >= top) & (rows < top + high) & (wanted[:, None] < chance)
    in_columns = (columns >= left) & (columns < left + wide)
    inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    color = torch.tensor(pre.mean_color, dtype=images.dtype)
    return torch.where(inside, color[None, :, None, None], images)
