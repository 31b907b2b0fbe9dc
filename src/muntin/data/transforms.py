# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From decoded images to the input of a network, in evaluation and in training.

Images stay uint8 until the last moment; `normalise` makes them float where the network runs.
Small images of one size are augmented a whole batch at a time; others one by one with
torchvision's transforms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from muntin.configs import check_range
from muntin.errors import ConfigError
from muntin.samples import Skeleton
from muntin.shapes import Float, Int, Size, UInt8
from muntin.targets import Target

__all__ = [
    "AugmentConfig",
    "Augmentation",
    "Preprocessing",
    "augment_batch",
    "augment_image",
    "build_augmentation",
    "center_crop",
    "letterbox_scale",
    "normalise",
    "resize",
    "to_tensor",
]

Interpolation = Literal["bilinear", "bicubic"]

_OLD_FITS = {
    "crop": "center_crop",
    "inside": "letterbox",
    "window": "sliding_window",
    "subject": "instance_crop",
}

BatchTransform = Callable[[Tensor, NDArray[np.float64], "Preprocessing"], Tensor]
"""Images of one size (B, C, H, W), `BATCH_DRAWS` uniform numbers for each, to (B, C, h, w)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How images become the input of a network; stored with a run and its weights.

    Attributes:
        img_size: (height, width) in pixels of the input.
        mean: Subtracted from each channel of an image in [0, 1].
        std: Then divided by, one a channel.
        crop_fraction: Part of the resized image's side that is read, from its middle.
        fit: How an image gets the size of the input. "center_crop": scaled to fill
            `img_size`, and cut from the middle. "letterbox": scaled to fit into `img_size`, either
            way round, and padded. "sliding_window": scaled by `scale` or to `short_side`, and
            evaluated in windows of `img_size` if it is larger. "instance_crop": the box of an
            instance, enlarged by `padding`.
        scale: For "sliding_window": factor from the image to the input.
        short_side: For "sliding_window": length of the shorter side in pixels; 0 = `scale`.
        padding: For "instance_crop": factor on the sides of the box, after it got the proportions
            of `img_size`; 1 if the instance is the whole image.
        alignment: For "instance_crop": whether the centres of the corner pixels are aligned
            ("udp"), or their edges ("msra"), as published code does.
        typical_size: (height, width) of the training images before they were scaled, by which
            large images are cut into tiles; 0 = unknown.
        interpolation: How images are resized (always with antialiasing).
        in_chans: 3 for RGB; 1 for luminance.
    """

    img_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    fit: Literal["center_crop", "letterbox", "sliding_window", "instance_crop"] = "center_crop"
    scale: float = 1.0
    short_side: int = 0
    padding: float = 1.25
    alignment: Literal["udp", "msra"] = "udp"
    typical_size: Size = (0, 0)
    interpolation: Interpolation = "bicubic"
    in_chans: int = 3

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the values of an older ``preprocessing.json`` in today's words."""
        fit = values.get("fit")
        return {**values, "fit": _OLD_FITS[fit]} if fit in _OLD_FITS else values

    def __post_init__(self) -> None:
        """Validate the fields."""
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

    @property
    def groups_by_shape(self) -> bool:
        """All images get one size."""
        return False

    @property
    def batch_transform(self) -> BatchTransform | None:
        """Crop, flip and erase whole batches; operations on colour need single images."""
        if self.auto != "none" or self.jitter:
            return None
        return functools.partial(augment_batch, config=self)

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
        """See `Augmentation`."""
        return augment_image(build_augmentation(self, pre), image, seed), None


@runtime_checkable
class Augmentation(Protocol):
    """What is done at random to a training image and to its annotations."""

    kind: ClassVar[str]

    @property
    def groups_by_shape(self) -> bool:
        """Whether images of similar shape are put into one batch, to need less padding."""

    @property
    def batch_transform(self) -> BatchTransform | None:
        """The same for a batch of images of one size at once; None if it needs single images."""

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
        """Change an image and its annotations.

        Args:
            image: As it is cached.
            target: Its annotations in pixels of `image`; None if it has labels only.
            original: (height, width) of the image before it was cached.
            pre: Size of the result.
            seed: The result depends on it alone.
            skeleton: Of the keypoints, if the data set has some.
        """


def to_tensor(image: NDArray[np.uint8], in_chans: int = 3) -> UInt8[Tensor, "C H W"]:
    """Turn a decoded image (H, W, 3) into a tensor, channels first; a view that shares memory.

    Channels stay side by side in memory: resizing is twice as fast so.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return tvf.rgb_to_grayscale(tensor) if in_chans == 1 else tensor


def center_crop(image: UInt8[Tensor, "C H W"], pre: Preprocessing) -> UInt8[Tensor, "C h w"]:
    """Resize an image and read the middle, as evaluation and prediction do.

    The image is scaled, keeping its proportions, until `img_size / crop_fraction` just fits
    inside; then `img_size` is cut from the middle.
    """
    height, width = image.shape[-2:]
    target = pre.img_size
    if (height, width) != target or pre.crop_fraction != 1:
        scale = max(target[0] / height, target[1] / width) / pre.crop_fraction
        size = [max(target[0], round(height * scale)), max(target[1], round(width * scale))]
        image = resize(image, (size[0], size[1]), pre.interpolation)
    return tvf.center_crop(image, list(target))


def normalise(
    images: Tensor, pre: Preprocessing, sizes: Int[Tensor, "B 2"] | None = None
) -> Float[Tensor, "B C H W"]:
    """Turn uint8 images into the input of the network.

    Args:
        images: Perhaps padded at the right and at the bottom.
        pre: Mean and standard deviation.
        sizes: (height, width) of the image inside each image; what is beyond becomes 0.
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
    """Compose torchvision's transforms for one uint8 image; the result has `img_size`.

    They keep nothing between images, so that one set serves all.
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


def augment_image(
    transform: v2.Compose, image: UInt8[Tensor, "C H W"], seed: int
) -> UInt8[Tensor, "C h w"]:
    """Apply random transforms whose choices depend on `seed` alone."""
    # torch.manual_seed would also note a call for every kind of device, with its traceback.
    generator = torch.default_generator
    before = generator.get_state()
    try:
        generator.manual_seed(seed)
        return transform(image)
    finally:
        generator.set_state(before)


def augment_batch(
    images: UInt8[Tensor, "B C H W"],
    uniforms: NDArray[np.float64],
    pre: Preprocessing,
    *,
    config: AugmentConfig,
) -> UInt8[Tensor, "B C h w"]:
    """Crop, resize, mirror and erase a whole batch at once.

    Args:
        images: Images of one size.
        uniforms: `BATCH_DRAWS` numbers in [0, 1) an image.
        pre: Gives the size of the result and the colour of erased boxes.
        config: What to do; see `AugmentConfig.batch_transform`.

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
    # The crop is read at the image's own grain; only then is it made smaller, antialiased.
    size = (max(images.shape[2], pre.img_size[0]), max(images.shape[3], pre.img_size[1]))
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    out = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
    out = out.round().clamp(0, 255).to(torch.uint8)
    out = resize(out, pre.img_size, "bilinear")
    return _erase(out, box, config.erase, pre) if config.erase else out


BATCH_DRAWS = 11
"""Random numbers that `augment_batch` reads for each image."""


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


def letterbox_scale(size: Size, img_size: Size) -> float:
    """Factor by which an image just fits `img_size`, whichever way round."""
    return min(min(img_size) / min(size), max(img_size) / max(size))


def resize(images: Tensor, size: Size, interpolation: Interpolation) -> Tensor:
    """Resize with antialiasing; images of that size already are returned as they are."""
    if tuple(images.shape[-2:]) == size:
        return images
    return tvf.resize(images, list(size), InterpolationMode(interpolation), antialias=True)
