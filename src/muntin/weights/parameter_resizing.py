# SPDX-License-Identifier: Apache-2.0
"""Resize tensors learned with another window, image or patch size, or channel count."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ShapeError
from muntin.ops.positions import Resampling, resample_grid, resample_offsets
from muntin.shapes import Float, Size


def embed_table(
    table: Float[Tensor, "positions h"], *, window: Size, full: Size
) -> Float[Tensor, "full_positions h"]:
    """Pad the relative position bias table of a window to that of a larger window.

    `table` stays unchanged in the center; larger offsets repeat the value of the nearest known one.
    Windows are (height, width) in tokens.
    """
    rows, columns = full[0] - window[0], full[1] - window[1]
    grid = table.t().reshape(1, -1, 2 * window[0] - 1, 2 * window[1] - 1)
    grid = F.pad(grid.float(), (columns, columns, rows, rows), mode="replicate")  # 1, h, 2M-1, 2M-1
    return grid.flatten(2)[0].t().to(table.dtype)


def crop_table(
    table: Float[Tensor, "full_positions h"], *, window: Size, full: Size
) -> Float[Tensor, "positions h"]:
    """Crop a relative position bias table to the center, which a smaller window reads."""
    rows, columns = full[0] - window[0], full[1] - window[1]
    grid = table.view(2 * full[0] - 1, 2 * full[1] - 1, -1)
    grid = grid[rows : grid.shape[0] - rows, columns : grid.shape[1] - columns]
    return grid.flatten(0, 1)


TableInterpolation = Literal["bicubic", "geometric"]


def resample_table(
    table: Float[Tensor, "positions h"],
    *,
    window: Size,
    old: Size | None = None,
    method: TableInterpolation = "bicubic",
) -> Float[Tensor, "new_positions h"]:
    """Interpolate the relative position bias table of a window for another one, sides apart.

    Windows are (height, width) in tokens; `old` is that of the table, by default a square.
    "bicubic"
    uses an even grid (align_corners=False), as microsoft/Swin-Transformer@f82860b (utils.py).
    "geometric" keeps small offsets in place and spaces large ones in a geometric sequence, as
    microsoft/SimMIM@d3e29bc and timm 1.0.31 (`resize_rel_pos_bias_table`); it suits larger windows.
    """
    span = math.isqrt(table.shape[0])
    old = ((span + 1) // 2,) * 2 if old is None else old
    if (2 * old[0] - 1) * (2 * old[1] - 1) != table.shape[0]:
        message = (
            f"table must have (2M-1)^2 rows for a square window of side M, got {table.shape[0]}. "
            f"Build the model with the window size that the table was trained with."
        )
        raise ShapeError(message)
    if method == "bicubic":
        return resample_offsets(table, old=old, new=window)
    grid = table.t().reshape(-1, 2 * old[0] - 1, 2 * old[1] - 1).float()
    rows, columns = (
        _interpolate_geometrically(2 * before - 1, 2 * after - 1).to(table.device)
        for before, after in zip(old, window, strict=True)
    )
    return (rows @ grid @ columns.t()).flatten(1).t().to(table.dtype)


def resample_positions(
    embedding: Float[Tensor, "1 N C"],
    *,
    new: Size,
    num_prefix: int,
    method: Resampling,
    old: Size | None = None,
) -> Float[Tensor, "1 N2 C"]:
    """Interpolate the position embeddings of a grid, by default a square one, for another grid."""
    tokens = embedding.shape[1] - num_prefix
    side = math.isqrt(max(tokens, 0))
    old = (side, side) if old is None else old
    if math.prod(old) != tokens or not tokens:
        message = (
            f"position embeddings must have {num_prefix} prefix tokens and a square grid, got "
            f"{embedding.shape[1]} tokens. Build the model with the class token and img_size of "
            f"the weights."
        )
        raise ShapeError(message)
    return resample_grid(embedding, old=old, new=new, num_prefix=num_prefix, how=method)


def _interpolate_geometrically(old: int, new: int) -> Float[Tensor, "new old"]:
    """Linear interpolation along one axis, from uneven places of old offsets to new ones.

    Old offsets are at 0, 1, 1 + q, 1 + q + q^2 ...; q makes the last one reach the end.
    """
    if old == 1:  # a grid one token wide: its one offset is that of any other
        return torch.ones(new, 1)
    low, high = 1.01, 1.5
    for _ in range(40):  # bisection; 40 halvings exhaust the precision needed
        q = (low + high) / 2
        reaches = sum(q**k for k in range(old // 2))
        low, high = (low, q) if reaches > new // 2 else (q, high)
    steps = torch.tensor([q**k for k in range(old // 2)], dtype=torch.float64)
    places = torch.cat([-steps.cumsum(0).flip(0), steps.new_zeros(1), steps.cumsum(0)])
    wanted = torch.arange(-(new // 2), new // 2 + 1, dtype=torch.float64)
    wanted = wanted.clamp(places[0], places[-1]).contiguous()
    right = torch.searchsorted(places, wanted).clamp(1, old - 1)
    part = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    weights = torch.zeros(new, old, dtype=torch.float64)
    rows = torch.arange(new)
    weights[rows, right - 1] = 1 - part
    weights[rows, right] = part
    return weights.float()


def resample_patches(
    kernel: Float[Tensor, "C in_chans p1 p2"], size: Size
) -> Float[Tensor, "C in_chans q1 q2"]:
    """Resize a patch embedding to a (height, width) in pixels: resized patches keep their tokens.

    Beyer et al. 2023, "FlexiViT" (arXiv 2212.08013), section 3.4: the pseudo-inverse of the bicubic
    resize of a patch. Compared with timm 1.0.31 (`resample_patch_embed`).
    """
    old = (kernel.shape[2], kernel.shape[3])
    if old == size:
        return kernel
    pixels = torch.eye(old[0] * old[1], dtype=torch.float64).view(-1, 1, *old)
    resize = F.interpolate(pixels, size=size, mode="bicubic", antialias=True).flatten(1).t()
    # Shrinking loses some pixel patterns: their singular values are near 0, and inverting them
    # would amplify noise.
    inverse = torch.linalg.pinv(resize.t(), rtol=1e-6).float().to(kernel.device)
    resized = kernel.flatten(2).float() @ inverse.t()
    return resized.unflatten(2, size).to(kernel.dtype)


def adapt_channels(
    kernel: Float[Tensor, "C in_chans p1 p2"], in_chans: int
) -> Float[Tensor, "C new_chans p1 p2"]:
    """Adapt a patch embedding to other input channels, as timm 1.0.31 (`adapt_input_conv`).

    For one channel (gray), the kernel's channels are summed. For more channels, they are repeated
    cyclically and scaled so that tokens keep their magnitude.
    """
    known = kernel.shape[1]
    if in_chans == known:
        return kernel
    if in_chans == 1:
        return kernel.float().sum(dim=1, keepdim=True).to(kernel.dtype)
    repeats = -(-in_chans // known)
    wide = kernel.float().repeat(1, repeats, 1, 1)[:, :in_chans] * (known / in_chans)
    return wide.to(kernel.dtype)
