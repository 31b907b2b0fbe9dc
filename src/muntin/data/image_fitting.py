# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Fit an image for evaluation and prediction."""

from __future__ import annotations

from torch import Tensor

from muntin.data.detection_transforms import letterbox
from muntin.data.keypoint_transforms import warp_crop
from muntin.data.segmentation_transforms import rescale
from muntin.data.transforms import Preprocessing, center_crop
from muntin.shapes import Size, UInt8
from muntin.targets import Keypoints, Target

__all__ = ["fit"]


def fit(
    image: UInt8[Tensor, "C H W"],
    original: Size,
    pre: Preprocessing,
    target: Target | None = None,
) -> UInt8[Tensor, "C h w"]:
    """Resize and crop an image according to its preprocessing.

    Args:
        image: As it is kept, perhaps smaller than it was.
        original: (height, width) that it had.
        pre: What to do.
        target: Of a crop of an instance, its keypoints: they hold the frame of the crop.
    """
    if pre.fit == "instance_crop":
        assert isinstance(target, Keypoints), "a crop has a frame"
        return warp_crop(image, target.frame.double().numpy(), pre)
    if pre.fit == "sliding_window":
        return rescale(image, original, pre)
    return letterbox(image, pre) if pre.fit == "letterbox" else center_crop(image, pre)
