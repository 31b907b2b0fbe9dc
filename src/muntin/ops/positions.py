# SPDX-License-Identifier: Apache-2.0
"""Positions: the relative bias of a window, its offsets, and sizes that do not fit.

Published systems crop, pad, shrink the window or raise an error where sides of images and maps do
not divide evenly, differently with the same weights: a `SizeRule` says which.

Letters: M window side, N = M*M tokens of a window, h heads, C channels.
"""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ShapeError
from muntin.shapes import Float, Size

Resampling = Literal["bicubic", "antialiased", "aligned", "offset", "linear"]
TableInterpolation = Literal["bicubic", "geometric", "linear"]


def expand_relative_position_bias(
    table: Float[Tensor, "positions h"], *, table_window: Size, window: Size
) -> Float[Tensor, "h N N"]:
    """Spread a relative-position table over all pairs of tokens in a window; rows are queries.

    Row ``(dy + M - 1) * (2M - 1) + (dx + M - 1)`` of the table holds the bias of a query that lies
    dy rows below and dx columns right of its key. A window, (height, width) in tokens, that is
    smaller than the table's reads the middle of the table; a larger one is a `ShapeError`.

    There is no index list: each axis is spread by re-reading a repeated row with a stride that is
    one longer, so the gradient is made of sums in a fixed order and is the same bits in every run.
    The gradient of ``table[index]`` is not (on several CPU threads, or on a GPU).
    """
    th, tw = table_window
    positions = (2 * th - 1) * (2 * tw - 1)
    if table.shape[0] != positions or window[0] > th or window[1] > tw:
        message = (
            f"table must have {positions} rows for table_window={table_window} and window must not "
            f"be larger, got {table.shape[0]} rows and window={window}. Resample the table first."
        )
        raise ShapeError(message)
    heads = table.shape[1]
    wh, ww = window
    grid = table.t().reshape(heads, 2 * th - 1, 2 * tw - 1)
    grid = grid[:, th - wh : th + wh - 1, tw - ww : tw + ww - 1]  # h, 2M-1, 2M-1
    grid = _expand_axis(grid.transpose(1, 2), wh)  # h, 2Mx-1, My, My'
    grid = _expand_axis(grid.permute(0, 2, 3, 1), ww)  # h, My, My', Mx, Mx'
    return grid.permute(0, 1, 3, 2, 4).reshape(heads, wh * ww, wh * ww)


def _expand_axis(rows: Tensor, side: int) -> Tensor:
    """(..., 2M-1) -> (..., M, M): entry [query, key] is rows[query - key + M - 1]."""
    length = 2 * side - 1
    lead = rows.shape[:-1]
    # Row q of the result is rows[q : q + M] with the keys reversed. Written one after another,
    # copies of the row have period 2M-1; cut at 2M instead, each line starts one entry later.
    copies = rows.unsqueeze(-2).expand(*lead, side + 1, length).reshape(*lead, -1)
    lines = copies[..., : side * (length + 1)].reshape(*lead, side, length + 1)
    return lines[..., :side].flip(-1)


def resample_offsets(
    table: Float[Tensor, "positions h"],
    *,
    old: Size,
    new: Size,
    how: TableInterpolation = "bicubic",
) -> Float[Tensor, "new_positions h"]:
    """Stretch a relative position bias table from one window to another, sides apart.

    Rows are in the order of `expand_relative_position_bias`, windows (height, width) in tokens.
    "bicubic" uses an even grid (align_corners=False), as microsoft/Swin-Transformer@f82860b
    (utils.py). "geometric" keeps small offsets in place and spaces large ones in a geometric
    sequence, as microsoft/SimMIM@d3e29bc and timm 1.0.31 (`resize_rel_pos_bias_table`, linear
    between them), compared in tests/weights/test_parameter_resizing.py; it suits larger windows.
    "linear" is transformers' way with the tables of BEiT.
    """
    if _are_equal(old, new, how):
        return table
    grid = table.t().reshape(1, -1, 2 * old[0] - 1, 2 * old[1] - 1).float()
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    if how == "geometric":
        rows, columns = (
            torch.tensor(_space_geometrically(*map(int, sides)), device=table.device)
            for sides in zip(grid.shape[2:], size, strict=True)
        )
        grid = rows @ grid @ columns.t()
    else:
        mode = "bilinear" if how == "linear" else how
        grid = F.interpolate(grid, size=size, mode=mode)  # 1, h, 2M-1, 2M-1
    return grid.flatten(2)[0].t().to(table.dtype)


@lru_cache(32)
def _space_geometrically(old: int, new: int) -> list[list[float]]:
    """Factors of linear interpolation along an axis: a row for each new offset.

    Old offsets are at 0, 1, 1 + q, 1 + q + q^2 ...; q makes the last one reach the end.
    """
    low, high = 1.01, 1.5
    for _ in range(40):  # bisection; 40 halvings exhaust the precision needed
        q = (low + high) / 2
        reaches = sum(q**k for k in range(old // 2))
        low, high = (low, q) if reaches > new // 2 else (q, high)
    steps = list(itertools.accumulate(q**k for k in range(old // 2)))
    places = [*(-step for step in reversed(steps)), 0.0, *steps]
    factors = [[0.0] * old for _ in range(new)]
    for row, wanted in zip(factors, range(-(new // 2), new // 2 + 1), strict=True):
        inside = min(max(wanted, places[0]), places[-1])
        right = min(bisect.bisect_left(places, inside), old - 1)
        gap = places[right] - places[right - 1] if right else 1.0
        part = (inside - places[right - 1]) / gap if right else 1.0
        row[right - 1] = 1 - part  # of a single place, overwritten by its own factor
        row[right] = part
    return factors


def log_offsets(
    window: Size,
    reference: Size,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "positions 2"]:
    """Offsets between the tokens of a window, on a log scale: what Swin V2's bias is made from.

    Rows are in the order of `expand_relative_position_bias`. An offset of 0 maps to 0, the largest
    offset of the reference window, that of the pre-training, to +-log2(9) / 3, about 1.06. Liu et
    al. 2022 (arXiv 2111.09883), section 3.3, equation 4, on offsets scaled to [-8, 8] as in
    microsoft/Swin-Transformer@f82860b.
    """
    axes = []
    for side, known in zip(window, reference, strict=True):
        offset = torch.arange(1 - side, side, device=device, dtype=torch.float32)
        offset = 8 * offset / max(known - 1, 1)
        axes.append(offset.sign() * torch.log2(offset.abs() + 1) / math.log2(8))
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([rows, columns], dim=-1).flatten(0, 1).to(dtype or torch.float32)


RESAMPLINGS: dict[Resampling, dict[str, Any]] = {
    # align_corners=False: DeiT, MAE, T2T-ViT, transformers and OpenMMLab.
    "bicubic": {"mode": "bicubic"},
    # Filters when shrinking, and has other weights when growing: timm 1.0.31
    # (`resample_abs_pos_embed`), compared in tests/parity/test_vit_parity.py.
    "antialiased": {"mode": "bicubic", "antialias": True},
    # Corners stay where they are: torchvision 0.29 (`interpolate_embeddings`).
    "aligned": {"mode": "bicubic", "align_corners": True},
    # By (side + 0.1) / old side instead of the sides: facebookresearch/dino and dinov2.
    "offset": {"mode": "bicubic"},
    # google-research/vision_transformer (`scipy.ndimage.zoom`, order 1).
    "linear": {"mode": "bilinear", "align_corners": True},
}
"""How position embeddings are resized, and who does it so: arguments of `F.interpolate`."""


def resample_grid(
    embedding: Float[Tensor, "1 N C"],
    *,
    old: Size,
    new: Size,
    num_prefix: int = 0,
    how: Resampling = "antialiased",
) -> Float[Tensor, "1 N2 C"]:
    """Resize learned position embeddings to another grid; prefix tokens are kept as they are.

    Prefix tokens (class, distillation) come first, then the grid row by row; `how` is a key of
    `RESAMPLINGS`.
    """
    expected = num_prefix + old[0] * old[1]
    if embedding.shape[1] != expected:
        message = (
            f"embedding must have {expected} tokens for a grid of {old} and {num_prefix} prefix "
            f"tokens, got {embedding.shape[1]}. Check img_size and patch_size."
        )
        raise ShapeError(message)
    if _are_equal(old, new, how):
        return embedding
    prefix, grid = embedding[:, :num_prefix], embedding[:, num_prefix:]
    image = grid.reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # 1, C, H, W
    # In the default memory order PyTorch 2.15 gets a grid that is one token wide wrong.
    image = image.contiguous(memory_format=torch.channels_last)
    if how == "offset":
        scale = [(int(after) + 0.1) / before for before, after in zip(old, new, strict=True)]
        image = F.interpolate(image, scale_factor=scale, mode="bicubic")
    else:
        image = F.interpolate(image, size=new, **RESAMPLINGS[how])
    grid = image.permute(0, 2, 3, 1).reshape(1, math.prod(new), -1).to(embedding.dtype)
    return torch.cat([prefix, grid], dim=1)


def resample_line(
    vectors: Float[Tensor, "positions C"], length: int
) -> Float[Tensor, "new_positions C"]:
    """Resize vectors of evenly spaced offsets linearly, as facebookresearch/detectron2@02b5c4e."""
    if _are_equal(vectors.shape[:1], (length,), "linear"):
        return vectors
    return F.interpolate(vectors.t()[None], size=length, mode="linear")[0].t()


def _are_equal(old: tuple[int, ...], new: tuple[int, ...], how: str) -> bool:
    """Whether nothing is to be resized; False for a free size of an exported graph.

    There a comparison would fix the size. Resizing to the old one has weights of 1 and 0, with two
    exceptions, whose graphs do have a fixed size.
    """
    if not torch.compiler.is_exporting() or how in ("offset", "geometric"):
        return old == new
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(a == b) for a, b in zip(old, new, strict=True))


SizeRuleName = Literal[
    "muntin",
    "microsoft",
    "torchvision",
    "transformers",
    "transformers_v2",
    "transformers_registers",
    "mmpretrain",
    "openmmlab",
    "timm",
    "facebook",
    "dino",
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
        positions: How absolute position embeddings are resized; a key of `RESAMPLINGS`.
        tables: How relative position bias tables are resized; see `resample_offsets`.
        patch_vit: What `patch` is for a plain ViT, where the system treats it otherwise.
    """

    patch: Literal["pad", "crop", "refuse"]
    pad: Literal["before_shift", "after_shift"] = "before_shift"
    shrink: Literal["never", "side", "both", "built"] = "side"
    shift: Literal["never", "side", "both"] = "side"
    positions: Resampling = "bicubic"
    tables: TableInterpolation = "bicubic"
    patch_vit: Literal["", "pad", "crop", "refuse"] = ""


SIZE_RULES: dict[SizeRuleName, SizeRule] = {
    # Ours: no padding is computed where a smaller window will do; at every size where the
    # published classification models are defined it gives what they give.
    "muntin": SizeRule(patch="pad", positions="antialiased"),
    "microsoft": SizeRule(patch="refuse", shrink="both", shift="both"),
    "torchvision": SizeRule(patch="crop", shrink="never", positions="aligned"),
    "transformers": SizeRule(
        patch="pad", shrink="both", shift="both", tables="linear", patch_vit="crop"
    ),
    # Its Swin V2 decides once, from the size that it was built for, and its Swin anew each time.
    "transformers_v2": SizeRule(patch="pad", shrink="built"),
    # Its DINOv2 with registers, a plain ViT.
    "transformers_registers": SizeRule(
        patch="crop", shrink="both", shift="both", positions="antialiased"
    ),
    # Classifiers of mmpretrain: they leave the shift out where a map is not larger than a window.
    "mmpretrain": SizeRule(patch="pad", shrink="never", shift="both"),
    # The detection and segmentation forks, mmdet, mmseg and detectron2.
    "openmmlab": SizeRule(patch="pad", shrink="never", shift="never"),
    "timm": SizeRule(
        patch="refuse",
        pad="after_shift",
        shrink="built",
        positions="antialiased",
        tables="geometric",
    ),
    # Plain ViTs of DeiT, MAE, BEiT and what was written from them; then those of DINO and DINOv2.
    "facebook": SizeRule(patch="refuse", tables="geometric"),
    "dino": SizeRule(patch="refuse", positions="offset"),
    # Has plain ViTs only; their convolution drops what is no whole patch.
    "google": SizeRule(patch="crop", positions="linear"),
}


def fit_patches(
    images: Float[Tensor, "B C H W"],
    patch_size: int,
    how: Literal["pad", "crop", "refuse"],
    margin: int = 0,
) -> Float[Tensor, "B C h w"]:
    """Pad or crop images to multiples of the patch size; `how` is a `SizeRule.patch`.

    Patches with a margin (pixels of zeros around the image) are left to their convolution, which
    drops what is no whole patch: ViTPose, in every system.
    """
    if images.ndim != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        message = (
            f"images must be floating-point with shape B, C, H, W and C, H, W above 0, got "
            f"{tuple(images.shape)} of {images.dtype}. Scale and normalise pixels first."
        )
        raise ShapeError(message)
    height, width = images.shape[-2:]
    short = (-height % patch_size, -width % patch_size)
    if (short == (0, 0) and height and width) or (margin and min(height, width) >= patch_size):
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
