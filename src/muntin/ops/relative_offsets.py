# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Offsets between tokens: a log scale for them, and their tables for another window.

Letters: M window side, h heads.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.shapes import Float, Size

__all__ = ["log_offsets", "resample_offsets"]


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
