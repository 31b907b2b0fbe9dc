# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How a map is cut into windows: sizes, shift, padding, and the rules that published systems use.

Letters: B images, H and W sides of the map in tokens, M window side, N = M*M tokens of a window,
nW windows of an image, C channels.

A Swin block attends inside windows. When a side of the map is not a multiple of the window, or is
shorter than it, somebody has to decide what happens, and published systems decide differently
with the same weights. A `SizeRule` writes such a decision down; `SIZE_RULES` holds those of the
systems whose weights people have; `lay_out` turns rule, map and window into a `WindowLayout`,
plain numbers that every attention back end follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ShapeError
from muntin.ops.positions import Resampling
from muntin.shapes import Float, Size

__all__ = [
    "MASKED",
    "SIZE_RULES",
    "SizeRule",
    "SizeRuleName",
    "WindowLayout",
    "add_mask",
    "cut_heads",
    "cut_windows",
    "fit_patches",
    "join_heads",
    "join_windows",
    "lay_out",
    "merge_neighbours",
    "shift_mask",
    "sum_padding",
]

MASKED = -100.0
"""Added to the score of a pair that must not attend. Every published Swin uses -100, not -inf."""

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
    """What happens when the sizes do not come out even.

    Attributes:
        patch: When a side of the image is not a multiple of the patch: "pad" adds zeros right and
            below, "crop" drops the rest, "refuse" is an error.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowLayout:
    """Where the windows of one map lie. All numbers are tokens, (height, width).

    Attributes:
        size: The map.
        window: The window.
        shift: By how much the map is rolled up and left before it is cut; 0 = not shifted.
        pad: Rows added below and columns added right, to whole windows.
        pad_first: Whether that padding comes before the roll.
        built_window: The window on the map that the block was built for.
    """

    size: Size
    window: Size
    shift: Size
    pad: Size
    pad_first: bool
    built_window: Size

    @property
    def grid(self) -> Size:
        """Windows down and across."""
        return (
            (self.size[0] + self.pad[0]) // self.window[0],
            (self.size[1] + self.pad[1]) // self.window[1],
        )

    @property
    def num_windows(self) -> int:
        """Windows of one image, nW."""
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """Tokens of one window, N."""
        return self.window[0] * self.window[1]


def lay_out(
    size: Size, window: Size, shifted: bool, rule: SizeRule, *, built_size: Size | None = None
) -> WindowLayout:
    """Decide window, shift and padding for a map.

    Args:
        size: The map, (height, width) in tokens.
        window: The window that the block was given, (height, width) in tokens.
        shifted: Whether the block is one that shifts (by half a window, rounded down).
        rule: Which system's decisions to follow.
        built_size: The map, in tokens, that the block was built for; `size` when left out. Rules
            that shrink "built" read it, and it decides `built_window`.

    Returns:
        The numbers that a window attention back end needs.

    Source:
        Rules read from timm 1.0.31, torchvision 0.29.2, transformers 5.23 and
        microsoft/Swin-Transformer@f82860b; the first three compared live in
        tests/parity/test_swin_parity.py, tolerance 1e-5.

    Example:
        >>> lay_out((8, 20), (7, 7), True, SIZE_RULES["torchvision"]).pad
        (6, 1)
    """
    built_size = built_size or size
    decisive = built_size if rule.shrink == "built" else size
    fits = min(decisive) <= min(window)
    wh, ww = _shrink(window, decisive, rule)
    pad = (-size[0] % wh, -size[1] % ww)
    sh, sw = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
    if rule.shift == "side":
        padded = (size[0] + pad[0], size[1] + pad[1])
        covered = decisive if rule.shrink == "built" else padded
        sh = 0 if covered[0] <= wh else sh
        sw = 0 if covered[1] <= ww else sw
    elif rule.shift == "both" and fits:
        sh = sw = 0
    return WindowLayout(
        size=size,
        window=(wh, ww),
        shift=(sh, sw),
        pad=pad,
        pad_first=rule.pad == "before_shift",
        built_window=_shrink(window, built_size, rule),
    )


def _shrink(window: Size, size: Size, rule: SizeRule) -> Size:
    """The window on a map of this size."""
    if rule.shrink in ("side", "built"):
        return min(window[0], size[0]), min(window[1], size[1])
    if rule.shrink == "both" and min(size) <= min(window):
        return min(size), min(size)
    return window


def shift_mask(
    layout: WindowLayout, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "nW N N"] | None:
    """Scores to add so that tokens which the roll brought together do not attend to each other.

    Args:
        layout: The windows.
        device: Where to make it.
        dtype: Of which type; float32 when left out.

    Returns:
        0 where a pair may attend and `MASKED` where not; None when nothing is shifted.
    """
    if layout.shift == (0, 0):
        return None
    regions = []
    for axis in (0, 1):
        length = layout.size[axis] + layout.pad[axis]
        position = torch.arange(length, device=device)
        # Only the last window of an axis holds tokens of both ends of the map.
        wrapped = (position >= length - layout.shift[axis]) & (layout.shift[axis] > 0)
        regions.append(wrapped.long().view(layout.grid[axis], layout.window[axis]))
    rows, columns = regions
    region = rows[:, None, :, None] * 2 + columns[None, :, None, :]  # nH, nW, M, M
    region = region.reshape(layout.num_windows, layout.num_tokens)
    apart = region[:, :, None] != region[:, None, :]  # nW, N, N
    return apart.to(dtype or torch.float32) * MASKED


def add_mask(bias: Tensor, layout: WindowLayout) -> Float[Tensor, "nW h N N"]:
    """Bias plus shift mask; one window stands for all when nothing is shifted."""
    mask = shift_mask(layout, device=bias.device, dtype=bias.dtype)
    return bias[None] if mask is None else bias + mask[:, None]


def cut_heads(
    x: Float[Tensor, "B H W C"],
    layout: WindowLayout,
    parts: int,
    heads: int,
    fill: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, "parts B nW h N d"]:
    """Pad, roll and cut a map into windows, and its channels into parts and heads.

    Args:
        x: The map, channels last: parts one after another, heads one after another in each.
        layout: The windows.
        parts: Such as 3 for queries, keys and values.
        heads: Heads of each part.
        fill: What padded tokens hold, one value a channel; zeros when left out.

    Returns:
        The windows row by row, and their tokens row by row; one copy, contiguous.
    """
    batch, _, _, channels = x.shape
    if layout.pad_first:
        x = _roll(_pad(x, layout.pad, fill), layout.shift, -1)
    else:
        x = _pad(_roll(x, layout.shift, -1), layout.pad, fill)
    (rows, columns), (wh, ww) = layout.grid, layout.window
    width = channels // (parts * heads)
    x = x.reshape(batch, rows, wh, columns, ww, parts, heads, width)
    x = x.permute(5, 0, 1, 3, 6, 2, 4, 7)  # parts, B, rows, columns, h, M, M, d
    return x.reshape(parts, batch, rows * columns, heads, wh * ww, width).contiguous()


def join_heads(
    windows: Float[Tensor, "parts B nW h N d"], layout: WindowLayout
) -> Float[Tensor, "B H W C"]:
    """Put back what `cut_heads` took, and drop the padding."""
    x = _join(windows, layout)[:, : layout.size[0], : layout.size[1]]
    return x if layout.pad_first else _roll(x, layout.shift, 1)


def sum_padding(
    windows: Float[Tensor, "parts B nW h N d"], layout: WindowLayout
) -> Float[Tensor, " C"]:
    """Sum over the padded tokens that `join_heads` drops."""
    x, (height, width) = _join(windows, layout), layout.size
    return x[:, height:].sum((0, 1, 2)) + x[:, :height, width:].sum((0, 1, 2))


def _join(windows: Tensor, layout: WindowLayout) -> Tensor:
    """The padded map; rolled back if the padding came first."""
    parts, batch, _, heads, _, width = windows.shape
    (rows, columns), (wh, ww) = layout.grid, layout.window
    x = windows.reshape(parts, batch, rows, columns, heads, wh, ww, width)
    x = x.permute(1, 2, 5, 3, 6, 0, 4, 7)  # B, rows, M, columns, M, parts, h, d
    x = x.reshape(batch, rows * wh, columns * ww, parts * heads * width)
    return _roll(x, layout.shift, 1) if layout.pad_first else x


def cut_windows(
    x: Float[Tensor, "B H W C"], layout: WindowLayout, fill: Float[Tensor, " C"] | None = None
) -> Float[Tensor, "B nW N C"]:
    """Pad, roll and cut a map into windows; `cut_heads` with all channels in one."""
    return cut_heads(x, layout, 1, 1, fill)[0, :, :, 0]


def join_windows(
    windows: Float[Tensor, "B nW N C"], layout: WindowLayout
) -> Float[Tensor, "B H W C"]:
    """Put windows back where `cut_windows` took them from, and drop the padding."""
    return join_heads(windows[None, :, :, None], layout)


def fit_patches(
    images: Float[Tensor, "B C H W"], patch_size: int, how: Literal["pad", "crop", "refuse"]
) -> Float[Tensor, "B C h w"]:
    """Bring both sides of the images to multiples of the patch, as a size rule wants it.

    Args:
        images: The images.
        patch_size: Side of a patch in pixels.
        how: The `patch` field of a `SizeRule`.

    Returns:
        The images themselves when both sides are multiples.

    Raises:
        ShapeError: A side is no multiple and the rule refuses, or no patch is left.
    """
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        message = (
            f"images must be B, C, H, W of floating-point numbers, C, H and W above 0, got "
            f"{tuple(images.shape)} of {images.dtype}. Scale and normalise pixels first."
        )
        raise ShapeError(message)
    height, width = images.shape[-2:]
    short = (-height % patch_size, -width % patch_size)
    if short == (0, 0) and height and width:
        return images
    if how == "refuse" or min(height, width) < (1 if how == "pad" else patch_size):
        message = (
            f"images must have H and W that are multiples of patch_size={patch_size}, "
            f"got H={height}, W={width}, under a size rule that takes no other. "
            f'Pad them by {short} first, or give the model size_rule="muntin" '
            f"(muntin.zoo.change_model)."
        )
        raise ShapeError(message)
    if how == "pad":
        return F.pad(images, (0, short[1], 0, short[0]))
    return images[..., : height - height % patch_size, : width - width % patch_size]


def merge_neighbours(x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w C4"]:
    """Stack each 2 x 2 neighbourhood along the channels; odd sides get a row or column of zeros.

    The four tokens stand in the order (0,0), (1,0), (0,1), (1,1) of (row, column): column by
    column. Published weights depend on it.
    """
    batch, height, width, channels = x.shape
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        height, width = x.shape[1:3]
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    x = x.permute(0, 1, 3, 4, 2, 5)  # B, H/2, W/2, column, row, C
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def _pad(x: Tensor, pad: Size, fill: Tensor | None) -> Tensor:
    if pad == (0, 0):
        return x
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, pad[1], 0, pad[0]))
    if fill is None:
        return x
    rows = torch.arange(x.shape[1], device=x.device) >= height
    columns = torch.arange(x.shape[2], device=x.device) >= width
    outside = (rows[:, None] | columns[None, :]).to(x.dtype)  # H, W
    return x + outside[..., None] * fill.to(x.dtype)


def _roll(x: Tensor, shift: Size, direction: int) -> Tensor:
    if shift == (0, 0):
        return x
    return x.roll((direction * shift[0], direction * shift[1]), (1, 2))
