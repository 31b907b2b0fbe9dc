# SPDX-License-Identifier: Apache-2.0
"""Positions: the relative bias of a window, its offsets, and what is resized to another grid.

Letters: M window side, N = M*M tokens of a window, h heads, C channels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ShapeError
from muntin.shapes import Float, Size

Resampling = Literal["bicubic", "antialiased", "linear"]


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
    table: Float[Tensor, "positions h"], *, old: Size, new: Size
) -> Float[Tensor, "new_positions h"]:
    """Stretch a relative-position table bicubically from one window to another, sides apart.

    Rows are in the order of `expand_relative_position_bias`, windows (height, width) in tokens.
    """
    if old == new:
        return table
    grid = table.t().reshape(1, -1, 2 * old[0] - 1, 2 * old[1] - 1).float()
    size = (2 * new[0] - 1, 2 * new[1] - 1)
    grid = F.interpolate(grid, size=size, mode="bicubic")  # 1, h, 2M-1, 2M-1
    return grid.flatten(2)[0].t().to(table.dtype)


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


def resample_grid(
    embedding: Float[Tensor, "1 N C"],
    *,
    old: Size,
    new: Size,
    num_prefix: int = 0,
    how: Resampling = "antialiased",
) -> Float[Tensor, "1 N2 C"]:
    """Resize learned position embeddings to another grid; prefix tokens are kept as they are.

    Prefix tokens (class, distillation) come first, then the grid row by row. "bicubic" is
    align_corners=False (DeiT, MAE and transformers); "antialiased" filters when shrinking, as timm
    1.0.31 (`resample_abs_pos_embed`), compared in tests/parity/test_vit_parity.py; "linear" keeps
    the corners where they are, as google-research/vision_transformer (`scipy.ndimage.zoom`, order
    1).
    """
    expected = num_prefix + old[0] * old[1]
    if embedding.shape[1] != expected:
        message = (
            f"embedding must have {expected} tokens for a grid of {old} and {num_prefix} prefix "
            f"tokens, got {embedding.shape[1]}. Check img_size and patch_size."
        )
        raise ShapeError(message)
    if old == new:
        return embedding
    prefix, grid = embedding[:, :num_prefix], embedding[:, num_prefix:]
    image = grid.reshape(1, *old, -1).permute(0, 3, 1, 2).float()  # 1, C, H, W
    # In the default memory order PyTorch 2.15 gets a grid that is one token wide wrong.
    image = image.contiguous(memory_format=torch.channels_last)
    if how == "linear":
        image = F.interpolate(image, size=new, mode="bilinear", align_corners=True)
    else:
        image = F.interpolate(image, size=new, mode="bicubic", antialias=how == "antialiased")
    grid = image.permute(0, 2, 3, 1).reshape(1, math.prod(new), -1).to(embedding.dtype)
    return torch.cat([prefix, grid], dim=1)
