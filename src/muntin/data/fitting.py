# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A picture as evaluation and prediction see it."""

from __future__ import annotations

from torch import Tensor

from muntin.data.joint import fit_scene
from muntin.data.label_maps import fit_window
from muntin.data.subjects import fit_subject
from muntin.data.transforms import Preprocessing, fit_picture
from muntin.shapes import Size, UInt8
from muntin.targets import Keypoints, Target

__all__ = ["fit"]


def fit(
    picture: UInt8[Tensor, "C H W"],
    original: Size,
    pre: Preprocessing,
    target: Target | None = None,
) -> UInt8[Tensor, "C h w"]:
    """Resize and crop a picture as its preprocessing says.

    Args:
        picture: As it is kept, perhaps smaller than it was.
        original: (height, width) that it had.
        pre: What to do.
        target: Of a crop of an instance, its keypoints: they hold the frame of the crop.
    """
    if pre.fit == "subject":
        assert isinstance(target, Keypoints), "a crop has a frame"
        return fit_subject(picture, target.frame.double().numpy(), pre)
    if pre.fit == "window":
        return fit_window(picture, original, pre)
    return fit_scene(picture, pre) if pre.fit == "inside" else fit_picture(picture, pre)
