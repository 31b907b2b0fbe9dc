# SPDX-License-Identifier: Apache-2.0
"""Size rules: how published systems treat images and maps whose sides do not divide evenly.

Systems crop, pad, shrink the window or raise an error, differently with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ShapeError
from muntin.ops.positions import Resampling
from muntin.shapes import Float

SizeRuleName = Literal[
    "muntin",
    "microsoft",
    "torchvision",
    "transformers",
    "transformers_v2",
    "mmpretrain",
    "openmmlab",
    "timm",
    "google",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeRule:
    """How sizes that do not divide evenly are handled.

    Attributes:
        patch: When a side of the image is not a multiple of the patch: "pad" adds zeros at the
            right and below, "crop" drops the remainder, "refuse" raises an error.
        pad: Whether the map is padded to whole windows before or after the cyclic shift.
        shrink: When the window becomes smaller. "never"; "side": a side of the window that is
            longer than that side of the map shrinks to it; "both": when the shorter side of the map
            is not longer than the window, both sides of the window become that side;
            "built": as "side", but decided once from `img_size`, whatever image comes.
        shift: When the shift is left out. "never"; "side": along a side that one window covers;
            "both": along both sides as soon as the shorter side of the map is not longer than the
            window.
        positions: How absolute position embeddings are resized; see `resample_grid`.
        patch_vit: What `patch` is for a plain ViT, where the system treats it otherwise.
    """

    patch: Literal["pad", "crop", "refuse"]
    pad: Literal["before_shift", "after_shift"]
    shrink: Literal["never", "side", "both", "built"]
    shift: Literal["never", "side", "both"]
    positions: Resampling = "bicubic"
    patch_vit: Literal["", "pad", "crop", "refuse"] = ""


SIZE_RULES: dict[SizeRuleName, SizeRule] = {
    # Ours: no padding is computed where a smaller window will do; at every size where the
    # published classification models are defined it gives what they give.
    "muntin": SizeRule(
        patch="pad", pad="before_shift", shrink="side", shift="side", positions="antialiased"
    ),
    "microsoft": SizeRule(patch="refuse", pad="before_shift", shrink="both", shift="both"),
    "torchvision": SizeRule(patch="crop", pad="before_shift", shrink="never", shift="side"),
    "transformers": SizeRule(
        patch="pad", pad="before_shift", shrink="both", shift="both", patch_vit="crop"
    ),
    # Its Swin V2 decides once, from the size that it was built for, and its Swin anew each time.
    "transformers_v2": SizeRule(patch="pad", pad="before_shift", shrink="built", shift="side"),
    # Classifiers of mmpretrain: they leave the shift out where a map is not larger than a window.
    "mmpretrain": SizeRule(patch="pad", pad="before_shift", shrink="never", shift="both"),
    # The detection and segmentation forks, mmdet, mmseg and detectron2.
    "openmmlab": SizeRule(patch="pad", pad="before_shift", shrink="never", shift="never"),
    "timm": SizeRule(
        patch="refuse", pad="after_shift", shrink="built", shift="side", positions="antialiased"
    ),
    # Has plain ViTs only; their convolution drops what is no whole patch.
    "google": SizeRule(
        patch="crop", pad="before_shift", shrink="side", shift="side", positions="linear"
    ),
}


def fit_patches(
    images: Float[Tensor, "B C H W"], patch_size: int, how: Literal["pad", "crop", "refuse"]
) -> Float[Tensor, "B C h w"]:
    """Pad or crop images to multiples of the patch size; `how` is a `SizeRule.patch`."""
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        message = (
            f"images must be floating-point with shape B, C, H, W and C, H, W above 0, got "
            f"{tuple(images.shape)} of {images.dtype}. Scale and normalise pixels first."
        )
        raise ShapeError(message)
    height, width = images.shape[-2:]
    short = (-height % patch_size, -width % patch_size)
    if short == (0, 0) and height and width:
        return images
    if how == "refuse" or min(height, width) < (1 if how == "pad" else patch_size):
        message = (
            f"images must have H and W that are multiples of patch_size={patch_size} under this "
            f"size rule, got H={height}, W={width}. Pad them by {short} first, or change the model "
            f'to size_rule="muntin" (muntin.zoo.change_model).'
        )
        raise ShapeError(message)
    if how == "pad":
        return F.pad(images, (0, short[1], 0, short[0]))
    return images[..., : height - height % patch_size, : width - width % patch_size]
