# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A norm and the residual behind it, for rows too wide to normalise where they are made.

Letters: M rows, N channels.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from muntin.ops.triton.launches import norm_launch
from muntin.ops.triton.tile_products import narrow, precision_of

__all__ = ["run_norm"]


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def norm_kernel(
    x, gamma, beta, residual, out, num_rows, eps,
    N: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """ROWS whole rows; COLUMNS is N or more."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    # COLUMNS is a power of two: lanes beyond N are masked out of the sums.
    inside = column < N
    shown = (first + row < num_rows)[:, None] & inside[None, :]
    place = (first + row)[:, None] * N + column[None, :]
    values = tl.load(x + place, mask=shown, other=0.0).to(tl.float32)
    # Rows lie in registers, so mean and variance take two exact passes.
    mean = tl.sum(values, 1) / N
    gap = tl.where(inside[None, :], values - mean[:, None], 0.0)
    rate = tl.rsqrt(tl.sum(gap * gap, 1) / N + eps)
    scale = tl.load(gamma + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=inside, other=0.0).to(tl.float32)
    values = gap * rate[:, None] * scale[None, :] + shift[None, :]
    # The shortcut is added in float32, before the only rounding.
    if RESIDUAL:
        values += tl.load(residual + place, mask=shown, other=0.0).to(tl.float32)
    tl.store(out + place, narrow(values, out, PRECISION), mask=shown)


def run_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None, *, eps: float
) -> Tensor:
    """Launch the kernel.

    Args:
        x: Contiguous: *rows, N.
        gamma: Scale, N, float32.
        beta: Shift, the same.
        residual: As x; added to what is normalised.
        eps: Added to the variance.
    """
    n = x.shape[-1]
    out = torch.empty_like(x)
    rows = x.numel() // n
    if rows == 0:
        return out
    launch = norm_launch(n)
    with torch.cuda.device_of(x):
        norm_kernel[(-(-rows // launch.rows),)](
            *(x, gamma, beta, out if residual is None else residual, out, rows, eps),
            N=n, RESIDUAL=residual is not None, PRECISION=precision_of(x.dtype),
            ROWS=launch.rows, COLUMNS=launch.columns,
            num_warps=launch.warps, enable_fp_fusion=True,
        )  # fmt: skip
    return out
