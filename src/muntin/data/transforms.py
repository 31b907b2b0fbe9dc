# SPDX-License-Identifier: Apache-2.0
"""From decoded images to the input of a network, in evaluation and in training.

Images stay uint8 until the last moment; `normalise` makes them float where the network runs.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muntin.configs import check_range
from muntin.data.value_ranges import PixelReading
from muntin.errors import ConfigError
from muntin.samples import Skeleton
from muntin.shapes import Float, Int, Real, Size
from muntin.targets import Target

Interpolation = Literal["bilinear", "bicubic", "aliased"]
Fit = Literal["center_crop", "stretch", "letterbox", "sliding_window", "instance_crop"]

_OLD_FITS = {
    "crop": "center_crop",
    "inside": "letterbox",
    "window": "sliding_window",
    "subject": "instance_crop",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How images become the input of a network; stored with a run and its weights.

    Attributes:
        img_size: (height, width) in pixels of the input.
        mean: Subtracted from each channel of an image in [0, 1].
        std: Then divided by, one a channel.
        crop_fraction: Part of the resized image's side that is read, from its middle.
        fit: How an image gets the size of the input. "center_crop": scaled to fill
            `img_size`, and cut from the middle. "stretch": both sides scaled to `img_size /
            crop_fraction`, whatever the proportions, and cut likewise. "letterbox": scaled to fit
            into `img_size`, either way round, and padded. "sliding_window": scaled by `scale` or
            to `short_side`, and evaluated in windows of `img_size` if it is larger.
            "instance_crop": the box of an instance, enlarged by `padding`.
        scale: For "sliding_window": factor from the image to the input.
        short_side: For "sliding_window": length of the shorter side in pixels; 0 = `scale`. For
            "center_crop": the same before it is cut, the longer side rounded down, as in published
            code; 0 = `crop_fraction`.
        resize_to: For "center_crop" and "stretch": (height, width) in pixels that the resized image
            fills, or has, before it is cut; (0, 0) = `img_size / crop_fraction`.
        crop_rounding: Which pixel a crop begins at if its middle lies between two: the "even" one
            (torchvision) or the one "before" (transformers).
        padding: For "instance_crop": factor on the sides of the box, after it got the proportions
            of `img_size`; 1 if the instance is the whole image.
        alignment: For "instance_crop": whether the centres of the corner pixels are aligned
            ("udp"), or their edges ("msra"), as published code does.
        typical_size: (height, width) of the training images before they were scaled, by which
            large images are cut into tiles; 0 = unknown.
        pad_to_size: For "letterbox": whether every image is padded to `img_size`, which a ViTDet
            attends to as a whole; otherwise as little as a batch needs.
        edges: For "letterbox" and "sliding_window": length in pixels of the shorter side, and limit
            of the longer one (0: none), with the rounding of transformers; (0, 0): by `img_size`,
            `scale` and `short_side`.
        size_multiple: With `edges`: both sides are then stretched to a multiple of this; a negative
            one rounds them down.
        pad_to: For "letterbox": sides of padded images are multiples of this many pixels.
        interpolation: How images are resized, with antialiasing; "aliased" is bilinear without.
        in_chans: 3 for RGB; 1 for luminance; more for the bands of TIFFs.
        value_range: Values of images of more than 8 bits that become 0 and 255, the same for all;
            (0, 0), of runs without: by the type and the values of each image.
        bits: 8 where pixels are uint8; 16 where they are float32, on the same scale from 0 to 255.
    """

    img_size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_fraction: float = 1.0
    fit: Fit = "center_crop"
    scale: float = 1.0
    short_side: int = 0
    resize_to: Size = (0, 0)
    crop_rounding: Literal["even", "before"] = "even"
    padding: float = 1.25
    alignment: Literal["udp", "msra"] = "udp"
    typical_size: Size = (0, 0)
    pad_to_size: bool = False
    edges: Size = (0, 0)
    size_multiple: int = 1
    pad_to: int = 32
    interpolation: Interpolation = "bicubic"
    in_chans: int = 3
    value_range: tuple[float, float] = (0.0, 0.0)
    bits: Literal[8, 16] = 8

    @staticmethod
    def upgrade(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the values of an older ``preprocessing.json`` in today's words."""
        fit = values.get("fit")
        return {**values, "fit": _OLD_FITS[fit]} if fit in _OLD_FITS else values

    def __post_init__(self) -> None:
        """Validate the fields."""
        for side in self.img_size:
            check_range("preprocessing.img_size", side, 1, 10**5)
        check_range("preprocessing.crop_fraction", self.crop_fraction, 0.1, 1)
        check_range("preprocessing.padding", self.padding, 0.1, 10)
        check_range("preprocessing.scale", self.scale, 1e-4, 100)
        check_range("preprocessing.short_side", self.short_side, 0, 10**5)
        check_range("preprocessing.size_multiple", abs(self.size_multiple), 1, 10**5)
        check_range("preprocessing.pad_to", self.pad_to, 1, 10**5)
        for side in self.edges:
            check_range("preprocessing.edges", side, 0, 10**5)
        for mean, std in zip(self.mean, self.std, strict=False):
            check_range("preprocessing.mean", mean, -1000, 1000)
            check_range("preprocessing.std", std, 1e-6, 1000)
        if self.in_chans not in (1, *range(3, 10**4)) or {len(self.mean), len(self.std)} != {
            self.in_chans
        }:
            message = (
                f"in_chans must be 1 (grey), 3 (RGB) or more (bands), with one mean and std a "
                f"channel, got in_chans={self.in_chans}, mean={self.mean}, std={self.std}."
            )
            raise ConfigError(message)

    @property
    def mean_color(self) -> tuple[int, ...]:
        """The mean of images, from 0 to 255, which covers what is hidden from the network."""
        return tuple(round(255 * value) for value in self.mean)

    @property
    def reading(self) -> PixelReading:
        """How files are read."""
        return PixelReading(self.value_range, max(3, self.in_chans), self.bits)

    @property
    def pixel_type(self) -> torch.dtype:
        """Type of pixels before they are normalised."""
        return torch.uint8 if self.bits == 8 else torch.float32

    @property
    def has_colors(self) -> bool:
        """Whether operations on the colours of usual photographs suit the images."""
        return self.bits == 8 and self.in_chans <= 3

    @property
    def one_size(self) -> bool:
        """Whether every image gets `img_size`, without padding."""
        return self.fit in ("center_crop", "stretch", "instance_crop")

    def edge_size(self, size: Size) -> Size:
        """Size that `edges` give an image of (height, width), rounded as transformers does."""
        least, most = min(size), max(size)
        short: float = self.edges[0]
        if self.edges[1] and most / least * short > self.edges[1]:
            short = self.edges[1] * least / most
        sides = [round(short) if side == least else int(short * side / least) for side in size]
        if least == round(short):
            sides = [*size]
        step = self.size_multiple
        if step < 0:
            sides = [max(side, -step) for side in sides]
        high, wide = (
            -(-side // step) * step if step > 0 else side // -step * -step for side in sides
        )
        return high, wide

    def scale_of(self, size: Size) -> float:
        """Factor from an image of a size (height, width) to the input, where `fit` scales so."""
        if any(self.edges):
            return min(self.edge_size(size)) / min(size)
        if self.fit == "letterbox":  # just fits `img_size`, whichever way round
            return min(min(self.img_size) / min(size), max(self.img_size) / max(size))
        return self.short_side / min(size) if self.short_side else self.scale


class Sample(NamedTuple):
    """A decoded image, perhaps made smaller or a part of it, with its annotations.

    `size` is that of the original, but `target` is in pixels of `pixels`; None where there is no
    more than a label.
    """

    pixels: Real[Tensor, "C H W"]
    size: Size
    target: Target | None


BatchTransform = Callable[[Tensor, NDArray[np.float64], Preprocessing], Tensor]
"""Images of one size (B, C, H, W), uniform numbers for each, to (B, C, h, w)."""


class Augmentation:
    """What is done at random to training samples; the config of each kind of task is one.

    Everything is drawn from the seed of a sample, which stands for (seed, epoch, index), so that it
    depends on nothing else.

    `kind` is its name in files. With `groups_by_shape`, images of similar shape are put into one
    batch, to need less padding. Samples are mixed with others until this part of the training is
    over, `mixed_part`; 0 = never.
    """

    __slots__ = ()
    kind: ClassVar[str]
    groups_by_shape: ClassVar[bool] = False

    @property
    def mixed_part(self) -> float:
        """Part of the training after which no sample is mixed with others."""
        return 0.0

    @property
    def batch_transform(self) -> BatchTransform | None:
        """The same for a batch of images of one size at once; None if it needs single images."""
        return None

    def augment(
        self, sample: Sample, pre: Preprocessing, seed: int, skeleton: Skeleton | None = None
    ) -> Sample:
        """Change an image, as it is cached, and its annotations together, to the size of `pre`."""
        raise NotImplementedError

    def draw_others(self, seed: int, count: int) -> tuple[int, ...]:
        """Draw which of `count` images a sample is mixed with; none by default."""
        return ()

    def mix(
        self,
        samples: Sequence[Sample],
        pre: Preprocessing,
        seed: int,
        skeleton: Skeleton | None = None,
    ) -> Sample:
        """Like `augment`, for a sample and the others that were drawn for it."""
        return self.augment(samples[0], pre, seed, skeleton)

    def _check_shares(self, *names: str) -> None:
        for name in names:
            check_range(f"augment.{name}", getattr(self, name), 0, 1)

    def _check_scale(self, scale: tuple[float, float]) -> None:
        for value in scale:
            check_range("augment.scale", value, 0.01, 10)
        if scale[0] > scale[1]:
            message = f"augment.scale must rise, got {scale}."
            raise ConfigError(message)


def to_tensor(image: NDArray[Any], in_chans: int = 3) -> Real[Tensor, "C H W"]:
    """Turn a decoded image (H, W, 3) into a view, channels first: resizing is twice as fast so.

    Other channels than RGB are left as they are.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return to_luminance(tensor) if in_chans == 1 else tensor


def to_luminance(images: Tensor) -> Tensor:
    """One channel of red, green and blue, by the weights of ITU-R BT.601, cut to the type."""
    red, green, blue = images.unbind(dim=-3)
    light = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return light.unsqueeze(-3).to(images.dtype)


def to_shown(image: Real[Tensor, "C h w"]) -> NDArray[np.uint8]:
    """Turn pixels of any number of channels into (h, w, 3): the first three, or grey."""
    chosen = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    shown = chosen if chosen.dtype == torch.uint8 else chosen.round().clamp(0, 255)
    return shown.permute(1, 2, 0).to(torch.uint8).contiguous().cpu().numpy()


def normalise(
    images: Tensor, pre: Preprocessing, sizes: Int[Tensor, "B 2"] | None = None
) -> Float[Tensor, "B C H W"]:
    """Turn uint8 images into the input of the network; what lies beyond `sizes` becomes 0."""
    mean = torch.tensor(pre.mean, device=images.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(pre.std, device=images.device).view(1, -1, 1, 1) * 255
    if type(images) is Tensor and images.dtype == torch.uint8 and images.device.type == "cpu":
        # By NumPy, with the same bits: PyTorch's other threads would wait for more, busily, on the
        # cores of those who read images.
        array = images.numpy().astype(np.float32)
        array -= mean.numpy()
        array /= std.numpy()
        values = torch.from_numpy(array)
    else:
        values = images.to(torch.float32, copy=True).sub_(mean).div_(std)
    if sizes is None or (sizes.cpu() == torch.tensor(images.shape[-2:])).all():
        return values
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) < sizes[:, :1]  # B, H
    columns = torch.arange(width, device=images.device) < sizes[:, 1:]  # B, W
    return values * (rows[:, None, :, None] & columns[:, None, None, :])


def denormalise(images: Float[Tensor, "B C H W"], pre: Preprocessing) -> Float[Tensor, "B C H W"]:
    """Turn the input of a network back into values in [0, 255]."""
    mean, std = (
        torch.tensor(values, device=images.device).view(1, -1, 1, 1)
        for values in (pre.mean, pre.std)
    )
    return (images.float() * std + mean) * 255


def resize(images: Tensor, size: Size, interpolation: Interpolation) -> Tensor:
    """Resize with antialiasing; images of that size already are returned as they are."""
    if tuple(images.shape[-2:]) == size:
        return images
    batch = images if images.dim() == 4 else _as_batch(images)
    exact = images.dtype in (torch.float32, torch.float64)
    values = batch if exact or _resizes_bytes(images, interpolation) else batch.float()
    smooth = interpolation != "aliased"
    mode = interpolation if smooth else "bilinear"
    out = F.interpolate(values, size, mode=mode, align_corners=False, antialias=smooth)
    # Bicubic weights reach beyond the limits of pixels, where bytes that stayed so are cut already.
    if out.is_floating_point() and (images.is_floating_point() or images.dtype == torch.uint8):
        out.clamp_(0, 255)
    if out.dtype != images.dtype:
        out = (out if images.is_floating_point() else out.round_()).to(images.dtype)
    return out if images.dim() == 4 else out[0]


def resize_part(
    images: Tensor, size: Size, part: tuple[int, int, int, int], interpolation: Interpolation
) -> Tensor:
    """Resize, and cut out the part between top, left, bottom and right.

    Bytes are resized along lines and rounded, then along columns: each only where it is seen.
    """
    top, left, bottom, right = part
    before = (images.shape[-2], images.shape[-1])
    # Otherwise PyTorch has other code, which is wrong for views of one column.
    exact = images.shape[-3] <= 4 and _has_vectors() and _resizes_bytes(images, interpolation)
    if interpolation == "aliased" or not exact:
        return resize(images, size, interpolation)[..., top:bottom, left:right]
    name = f"_upsample_{interpolation}2d_aa"
    along = getattr(torch.ops.aten, name)
    out = images if images.dim() == 4 else _as_batch(images)
    for axis, end in ((1, right), (0, bottom)):
        if before[axis] != size[axis]:
            # What has its length already would be left as it is.
            shape = [*out.shape[-2:]]
            shape[axis] = end + (end == before[axis])
            scale = size[axis] / before[axis]
            out = along(out, shape, False, *((None, scale) if axis else (scale, None)))
        out = out[..., left:right] if axis else out[..., top:bottom, :]
    return out if images.dim() == 4 else out[0]


def _as_batch(image: Tensor) -> Tensor:
    """A batch of one image. Of channels that lie together, the result has them together too."""
    if image.unsqueeze(0).is_contiguous(memory_format=torch.channels_last):
        # By its strides alone one image may be either, and PyTorch would pick channels apart.
        return image.as_strided((1, *image.shape), (image.numel(), *image.stride()))
    return image.unsqueeze(0)


def _resizes_bytes(images: Tensor, interpolation: Interpolation) -> bool:
    """Whether PyTorch resizes bytes as they are, and well: bilinear ones by vector instructions."""
    if images.dtype != torch.uint8 or images.device.type != "cpu":
        return False
    by_vectors = _has_vectors() or platform.machine() in ("aarch64", "arm64")
    return interpolation == "bicubic" or by_vectors


def _has_vectors() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def scaled_size(size: Size, scale: float) -> Size:
    """(height, width) times a factor, in whole pixels."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
