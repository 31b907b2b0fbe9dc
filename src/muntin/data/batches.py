# SPDX-License-Identifier: Apache-2.0
"""Images as evaluation and prediction fit them, and batches of one size or with padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.keypoint_transforms import warp_crop
from muntin.data.transforms import Preprocessing, resize, resize_part, scaled_size
from muntin.shapes import Float, Int, Real, Size
from muntin.targets import Keypoints, LabelMap, Target

PAD_TO = 32
"""Sides of padded images are multiples of this many pixels: the stride of the coarsest map."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Images, not yet normalised, and their indices in the listing.

    Images of several sizes are padded at the right and at the bottom: `sizes` are those inside,
    `originals` those of the files. The weight is 0 for an image that could not be read, or that
    only fills up the share of a process, else 1; `num_real` counts images over all processes.
    `targets` are what is known of images beyond their labels, where there is more.
    """

    images: Real[Tensor, "B C H W"]
    sizes: Int[Tensor, "B 2"]
    originals: Int[Tensor, "B 2"]
    indices: Int[Tensor, " B"]
    weights: Float[Tensor, " B"]
    num_real: int
    targets: tuple[Target, ...] | None = None
    pad_to: int = PAD_TO

    @property
    def labels(self) -> list[NDArray[np.int16]]:
        """Class of each pixel; in evaluation, of each original."""
        return [one.labels.numpy() for one in self.targets or () if isinstance(one, LabelMap)]

    def select(self, rows: Int[Tensor, " R"]) -> Batch:
        """Keep some of the images, without the padding that only others need."""
        sizes = self.sizes[rows]
        images = self.images[rows]
        if self.targets is not None and len(rows):
            high, wide = (_padded(int(side), self.pad_to) for side in sizes.amax(dim=0))
            images = images[:, :, :high, :wide]
        return replace(
            self,
            images=images,
            sizes=sizes,
            originals=self.originals[rows],
            indices=self.indices[rows],
            weights=self.weights[rows],
            targets=None if self.targets is None else tuple(self.targets[i] for i in rows.tolist()),
        )


def split_by_size(batch: Batch) -> Iterator[Batch]:
    """Split a batch: predictions for an image must not depend on the padding that others need."""
    padded = [tuple(_padded(side, batch.pad_to) for side in size) for size in batch.sizes.tolist()]
    if batch.targets is None or len(set(padded)) <= 1:
        yield batch
        return
    for size in dict.fromkeys(padded):
        yield batch.select(torch.tensor([i for i, one in enumerate(padded) if one == size]))


def evaluation_batch(pre: Preprocessing, wanted: int = 64) -> int:
    """Choose a batch size at which large images and their objects fit into memory."""
    if pre.fit == "sliding_window":
        return 1  # images of any size
    wanted = min(wanted, 16) if pre.fit == "letterbox" else wanted
    return max(1, min(wanted, wanted * 256 * 256 // (pre.img_size[0] * pre.img_size[1])))


def fit(
    image: Real[Tensor, "C H W"],
    original: Size,
    pre: Preprocessing,
    target: Target | None = None,
) -> Real[Tensor, "C h w"]:
    """Resize and crop an image, perhaps kept smaller than `original`, according to `pre`.

    The target of a crop of an instance holds the frame of the crop.
    """
    if pre.fit == "instance_crop":
        assert isinstance(target, Keypoints), "a crop has a frame"
        return warp_crop(image, target.frame.double().numpy(), pre)
    if pre.fit in ("center_crop", "stretch"):
        return center_crop(image, pre)
    size = original if pre.fit == "sliding_window" else (image.shape[1], image.shape[2])
    scaled = pre.edge_size(size) if any(pre.edges) else scaled_size(size, pre.scale_of(size))
    return resize(image, scaled, pre.interpolation)


def center_crop(image: Real[Tensor, "C H W"], pre: Preprocessing) -> Real[Tensor, "C h w"]:
    """Resize an image and read the middle, as evaluation and prediction do.

    The image is scaled, keeping its proportions unless it is to be stretched, until
    `resize_to` or `img_size / crop_fraction` just fits inside, or its shorter side is `short_side`;
    then `img_size` is cut from the middle.
    """
    target = pre.img_size
    size = resized_size((image.shape[-2], image.shape[-1]), pre)
    if pre.crop_rounding == "before":  # negative where zeros are added
        top, left = int((size[0] - target[0]) / 2), int((size[1] - target[1]) / 2)
    else:
        top, left = (_middle(*pair) for pair in zip(size, target, strict=True))
    bottom, right = top + target[0], left + target[1]
    part = (max(top, 0), max(left, 0), min(bottom, size[0]), min(right, size[1]))
    inside = resize_part(image, size, part, pre.interpolation)
    beyond = (-left, right - size[1], -top, bottom - size[0])
    return F.pad(inside, [max(0, count) for count in beyond]) if max(beyond) > 0 else inside


def _middle(have: int, wanted: int) -> int:
    """Where a cut of the middle begins; negative where zeros are added on both sides."""
    return round((have - wanted) / 2) if have >= wanted else -((wanted - have) // 2)


def resized_size(size: Size, pre: Preprocessing) -> Size:
    """Size that `center_crop` gives an image of this size before it cuts; all (height, width)."""
    target = pre.img_size
    if pre.short_side:
        short = min(size)
        high, wide = (int(pre.short_side * side / short) for side in size)
        return high, wide
    if max(pre.resize_to):
        high, wide = pre.resize_to
        if pre.fit == "center_crop":  # in the order of timm's operations, which round alike
            ratio = min(size[0] / high, size[1] / wide)
            high, wide = round(size[0] / ratio), round(size[1] / ratio)
        return high, wide
    if pre.fit == "center_crop":
        if size == target and pre.crop_fraction == 1:
            return size
        factor = max(target[0] / size[0], target[1] / size[1]) / pre.crop_fraction
        factors = (factor * size[0], factor * size[1])
    else:
        factors = (target[0] / pre.crop_fraction, target[1] / pre.crop_fraction)
    return max(target[0], round(factors[0])), max(target[1], round(factors[1]))


def stack_images(images: list[Tensor], pre: Preprocessing) -> Real[Tensor, "B C H W"]:
    """Stack images; crops are never padded: it would move the grid of their heatmaps."""
    if pre.one_size:
        # NumPy picks channels apart in two thirds of the time that PyTorch needs.
        return torch.from_numpy(np.stack([image.numpy() for image in images]))
    least = pre.img_size if pre.pad_to_size else (0, 0)
    return pad_images(images, least, pre.pad_to)


def pad_images(
    images: list[Tensor], least: Size = (0, 0), pad_to: int = PAD_TO
) -> Real[Tensor, "B C H W"]:
    """Stack images of several sizes, padded at the right and at the bottom, at least to a size."""
    high, wide = (
        max(_padded(max(image.shape[dim] for image in images), pad_to), side)
        for dim, side in zip((1, 2), least, strict=True)
    )
    padded = images[0].new_zeros(len(images), images[0].shape[0], high, wide)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return padded


def padded_size(image: Real[Tensor, "C H W"], pad_to: int = PAD_TO) -> Size:
    """(height, width) of an image after padding."""
    return _padded(image.shape[1], pad_to), _padded(image.shape[2], pad_to)


def _padded(side: int, pad_to: int) -> int:
    return -(-side // pad_to) * pad_to
