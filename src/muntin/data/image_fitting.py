# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Fit an image for evaluation and prediction."""

from __future__ import annotations

from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from muntin.data.keypoint_transforms import warp_crop
from muntin.data.transforms import Preprocessing, resize, scaled_size
from muntin.shapes import Size, UInt8
from muntin.targets import Keypoints, Target

__all__ = ["center_crop", "fit"]


def fit(
    image: UInt8[Tensor, "C H W"],
    original: Size,
    pre: Preprocessing,
    target: Target | None = None,
) -> UInt8[Tensor, "C h w"]:
    """Resize and crop an image, perhaps kept smaller than `original`, according to `pre`.

    The target of a crop of an instance holds the frame of the crop.
    """
    if pre.fit == "instance_crop":
        assert isinstance(target, Keypoints), "a crop has a frame"
        return warp_crop(image, target.frame.double().numpy(), pre)
    if pre.fit == "center_crop":
        return center_crop(image, pre)
    size = original if pre.fit == "sliding_window" else (image.shape[1], image.shape[2])
    return resize(image, scaled_size(size, pre.scale_of(size)), pre.interpolation)


def center_crop(image: UInt8[Tensor, "C H W"], pre: Preprocessing) -> UInt8[Tensor, "C h w"]:
    """Resize an image and read the middle, as evaluation and prediction do.

    The image is scaled, keeping its proportions, until `img_size / crop_fraction` just fits inside;
    then `img_size` is cut from the middle.
    """
    height, width = image.shape[-2:]
    target = pre.img_size
    if (height, width) != target or pre.crop_fraction != 1:
        scale = max(target[0] / height, target[1] / width) / pre.crop_fraction
        size = [max(target[0], round(height * scale)), max(target[1], round(width * scale))]
        image = resize(image, (size[0], size[1]), pre.interpolation)
    return tvf.center_crop(image, list(target))
