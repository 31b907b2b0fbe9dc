# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From decoded pictures to what the network reads, in evaluation and in training.

Pictures stay uint8 until the last moment; `normalise` makes them float where the network runs.
Small pictures of one size are augmented a whole batch at a time; others one by one with
torchvision's transforms.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from muntin.configs import check_range
from muntin.errors import ConfigError
from muntin.shapes import Float, Int, Size, UInt8

__all__ = [
    "AugmentConfig",
    "Preprocessing",
    "augment_batch",
    "augment_picture",
    "build_augmentation",
    "fit_picture",
    "normalise",
    "resize",
    "scale_inside",
    "to_tensor",
]

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """What happens to a picture before the network sees it; part of a run and of its weights.

    Attributes:
        img_size: (height, width) in pixels that the network reads.
        mean: Subtracted from each channel of a picture in [0, 1].
        std: Then divided by, one a channel.
        crop_fraction: Part of the resized picture's side that is read, from its middle.
        fit: "crop" fills `img_size` and cuts off what sticks out; "inside" scales the picture,
            keeping its proportions, until it just fits `img_size`, whichever way round; "window"
            scales it by `scale` or `short_side`, and larger pictures are seen in windows of
            `img_size`; "subject" cuts out the box of a subject, made larger by `padding`.
        scale: Of "window": factor from a picture to what is seen.
        short_side: Of "window": pixels that the shorter side is brought to instead; 0 = `scale`.
        padding: Of "subject": factor on the sides of the box, once it has the proportions of
            `img_size`; 1 where the whole picture is the subject.
        alignment: Of "subject": whether the middles of the first and last pixel stay where they
            are ("udp"), or published code of another kind is followed ("msra").
        typical_size: (height, width) of the training pictures before they were scaled, by which
            large pictures are cut into tiles; 0 = unknown.
        interpolation: How pictures are resized (always with antialiasing).
        in_chans: 3 for RGB; 1 for luminance.
    """

    img_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    fit: Literal["crop", "inside", "window", "subject"] = "crop"
    scale: float = 1.0
    short_side: int = 0
    padding: float = 1.25
    alignment: Literal["udp", "msra"] = "udp"
    typical_size: Size = (0, 0)
    interpolation: Interpolation = "bicubic"
    in_chans: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be applied."""
        check_range("preprocessing.img_size", min(self.img_size), 1, 10**5)
        check_range("preprocessing.crop_fraction", self.crop_fraction, 0.1, 1)
        check_range("preprocessing.padding", self.padding, 0.1, 10)
        if self.in_chans not in (1, 3) or {len(self.mean), len(self.std)} != {self.in_chans}:
            message = (
                f"in_chans must be 1 (luminance) or 3 (RGB), with one mean and std a channel, got "
                f"in_chans={self.in_chans}, mean={self.mean}, std={self.std}."
            )
            raise ConfigError(message)
        if min(self.std) <= 0:
            message = f"preprocessing.std must be above 0, got {self.std}."
            raise ConfigError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What is done to training pictures.

    Attributes:
        crop_scale: Smallest part of the picture's area that a random crop keeps, in (0, 1].
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
        """Refuse what cannot be drawn."""
        parts = {
            "flip": self.flip,
            "flip_vertical": self.flip_vertical,
            "jitter": self.jitter,
            "erase": self.erase,
        }
        for name, value in parts.items():
            check_range(f"augment.{name}", value, 0, 1)
        check_range("augment.crop_scale", self.crop_scale, 0.01, 1)
        check_range("augment.crop_ratio", self.crop_ratio, 1, 10)
        check_range("augment.magnitude", self.magnitude, 0, 30)
        check_range("augment.mixup", self.mixup, 0, 100)
        check_range("augment.cutmix", self.cutmix, 0, 100)


def to_tensor(picture: NDArray[np.uint8], in_chans: int = 3) -> UInt8[Tensor, "C H W"]:
    """Turn a decoded picture (H, W, 3) into a tensor, channels first; a view that shares memory.

    Channels stay side by side in memory: resizing is twice as fast so.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    return tvf.rgb_to_grayscale(tensor) if in_chans == 1 else tensor


def fit_picture(picture: UInt8[Tensor, "C H W"], pre: Preprocessing) -> UInt8[Tensor, "C h w"]:
    """Resize a picture and read the middle, as evaluation and prediction do.

    The picture is scaled, keeping its proportions, until `img_size / crop_fraction` just fits
    inside; then `img_size` is cut from the middle.
    """
    height, width = picture.shape[-2:]
    target = pre.img_size
    if (height, width) != target or pre.crop_fraction != 1:
        scale = max(target[0] / height, target[1] / width) / pre.crop_fraction
        size = [max(target[0], round(height * scale)), max(target[1], round(width * scale))]
        picture = resize(picture, (size[0], size[1]), pre.interpolation)
    return tvf.center_crop(picture, list(target))


def normalise(
    images: Tensor, pre: Preprocessing, sizes: Int[Tensor, "B 2"] | None = None
) -> Float[Tensor, "B C H W"]:
    """Turn uint8 pictures into what the network reads.

    Args:
        images: Perhaps padded at the right and at the bottom.
        pre: Mean and standard deviation.
        sizes: (height, width) of the picture inside each image; what is beyond becomes 0.
    """
    mean = torch.tensor(pre.mean, device=images.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(pre.std, device=images.device).view(1, -1, 1, 1) * 255
    values = images.to(torch.float32, copy=True).sub_(mean).div_(std)
    if sizes is None or (sizes.cpu() == torch.tensor(images.shape[-2:])).all():
        return values
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < sizes[:, :1]  # B, H
    columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # B, W
    return values * (rows[:, None, :, None] & columns[:, None, None, :])


@functools.lru_cache(maxsize=8)
def build_augmentation(config: AugmentConfig, pre: Preprocessing) -> v2.Compose:
    """Compose torchvision's transforms for one uint8 picture; the result has `img_size`.

    They keep nothing between pictures, so that one set serves all.
    """
    mode = InterpolationMode(pre.interpolation)
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(
            pre.img_size,
            scale=(config.crop_scale, 1.0),
            ratio=(1 / config.crop_ratio, config.crop_ratio),
            interpolation=mode,
            antialias=True,
        )
    ]
    if config.flip:
        steps.append(v2.RandomHorizontalFlip(config.flip))
    if config.flip_vertical:
        steps.append(v2.RandomVerticalFlip(config.flip_vertical))
    if config.auto == "randaugment":
        steps.append(v2.RandAugment(magnitude=config.magnitude))
    elif config.auto == "trivialaugment":
        steps.append(v2.TrivialAugmentWide())
    if config.jitter:
        jitter = config.jitter
        steps.append(v2.ColorJitter(jitter, jitter, jitter if pre.in_chans == 3 else 0))
    if config.erase:
        grey = [round(255 * value) for value in pre.mean]
        steps.append(v2.RandomErasing(config.erase, value=grey))
    return v2.Compose(steps)


def augment_picture(
    transform: v2.Compose, picture: UInt8[Tensor, "C H W"], seed: int
) -> UInt8[Tensor, "C h w"]:
    """Apply random transforms whose choices depend on `seed` alone."""
    # torch.manual_seed would also note a call for every kind of device, with its traceback.
    generator = torch.default_generator
    before = generator.get_state()
    try:
        generator.manual_seed(seed)
        return transform(picture)
    finally:
        generator.set_state(before)


def augments_whole_batches(config: AugmentConfig) -> bool:
    """Whether `augment_batch` can do everything that is asked for."""
    return config.auto == "none" and not config.jitter


def augment_batch(
    images: UInt8[Tensor, "B C H W"],
    uniforms: NDArray[np.float64],
    config: AugmentConfig,
    pre: Preprocessing,
) -> UInt8[Tensor, "B C h w"]:
    """Crop, resize, mirror and erase a whole batch at once.

    Args:
        images: Pictures of one size.
        uniforms: `BATCH_DRAWS` numbers in [0, 1) a picture.
        config: What to do; see `augments_whole_batches`.
        pre: Gives the size of the result and the colour of erased boxes.

    Returns:
        The batch at `pre.img_size`.
    """
    area, ratio, top, left, flip, flip_vertical, *box = torch.from_numpy(uniforms).float().T
    area = config.crop_scale + (1 - config.crop_scale) * area
    ratio = ((2 * ratio - 1) * math.log(config.crop_ratio)).exp()
    high = (area / ratio).sqrt().clamp(max=1)
    wide = (area * ratio).sqrt().clamp(max=1)
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = wide * torch.where(flip < config.flip, -1.0, 1.0)
    theta[:, 1, 1] = high * torch.where(flip_vertical < config.flip_vertical, -1.0, 1.0)
    theta[:, 0, 2] = (2 * left - 1) * (1 - wide)
    theta[:, 1, 2] = (2 * top - 1) * (1 - high)
    # The crop is read at the picture's own grain; only then is it made smaller, antialiased.
    size = (max(images.shape[2], pre.img_size[0]), max(images.shape[3], pre.img_size[1]))
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    out = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    out = out.round().clamp(0, 255).to(torch.uint8)
    out = resize(out, pre.img_size, "bilinear")
    return _erase(out, box, config.erase, pre) if config.erase else out


BATCH_DRAWS = 11
"""Random numbers that `augment_batch` reads for each picture."""


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
    grey = torch.tensor([round(255 * v) for v in pre.mean], dtype=torch.uint8).view(1, -1, 1, 1)
    return torch.where(inside, grey, images)


def scale_inside(size: Size, img_size: Size) -> float:
    """Factor by which a picture just fits `img_size`, whichever way round."""
    return min(min(img_size) / min(size), max(img_size) / max(size))


def resize(images: Tensor, size: Size, interpolation: Interpolation) -> Tensor:
    """Resize with antialiasing; what has the size already stays as it is."""
    if tuple(images.shape[-2:]) == size:
        return images
    return tvf.resize(images, list(size), InterpolationMode(interpolation), antialias=True)
