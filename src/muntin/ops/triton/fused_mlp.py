# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The MLP branch of a block in one kernel, for narrow stages: norm, fc1, GELU, fc2, shortcut.

Hidden channels are made and used up a block at a time, so they are never written. A program holds
its rows and the sums of all their outputs; widths of Swin are a power of two or three times one, so
both lie in one part or in three of equal width and nothing is computed in vain.

Letters: M rows, C channels, D hidden channels.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from muntin.ops.triton.gelu import gelu
from muntin.ops.triton.launches import mlp_launch, parts_of
from muntin.ops.triton.tile_products import multiply, narrow, precision_of

__all__ = ["run_mlp"]


@triton.jit
@no_type_check
def _statistics(a, b, c, C: tl.constexpr, PARTS: tl.constexpr, eps):
    """Mean and reciprocal deviation of rows that lie in one part or in three."""
    total = tl.sum(a, 1)
    if PARTS == 3:
        total += tl.sum(b, 1) + tl.sum(c, 1)
    mean = total / C
    gap = a - mean[:, None]
    squares = tl.sum(gap * gap, 1)
    if PARTS == 3:
        gap = b - mean[:, None]
        squares += tl.sum(gap * gap, 1)
        gap = c - mean[:, None]
        squares += tl.sum(gap * gap, 1)
    return mean, tl.rsqrt(squares / C + eps)


@triton.jit
@no_type_check
def _finish(
    acc, x, mean, rate, gamma, beta, out, place, lane, here,
    POST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Norm behind, shortcut and store of one part."""
    if POST:
        scale = tl.load(gamma + lane).to(tl.float32)
        shift = tl.load(beta + lane).to(tl.float32)
        acc = (acc - mean[:, None]) * rate[:, None] * scale[None, :] + shift[None, :]
    acc += x.to(tl.float32)
    tl.store(out + place, narrow(acc, out, PRECISION), mask=here[:, None])


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def mlp_kernel(
    x, weight1, bias1, sums, weight2, bias2, gamma, beta, out, num_rows, eps,
    C: tl.constexpr, D: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    POST: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    """Some rows from end to end; C = PARTS * WIDTH, and HIDDEN divides D."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, WIDTH)
    here = first + row < num_rows
    place = (first + row)[:, None] * C + lane[None, :]
    a = tl.load(x + place, mask=here[:, None], other=0.0)
    b = a
    c = a
    if PARTS == 3:
        b = tl.load(x + place + WIDTH, mask=here[:, None], other=0.0)
        c = tl.load(x + place + 2 * WIDTH, mask=here[:, None], other=0.0)
    # Pre-norm statistics; with POST they are recomputed from the output below.
    mean, rate = _statistics(a.to(tl.float32), b.to(tl.float32), c.to(tl.float32), C, PARTS, eps)
    # The accumulators start from the bias of fc2.
    acc = tl.zeros((ROWS, WIDTH), dtype=tl.float32) + tl.load(bias2 + lane)[None, :]
    acc_b = acc
    acc_c = acc
    if PARTS == 3:
        acc_b = tl.zeros((ROWS, WIDTH), dtype=tl.float32) + tl.load(bias2 + WIDTH + lane)[None, :]
        acc_c = (
            tl.zeros((ROWS, WIDTH), dtype=tl.float32) + tl.load(bias2 + 2 * WIDTH + lane)[None, :]
        )
    for start in range(0, D, HIDDEN):
        unit = start + tl.arange(0, HIDDEN)
        # fc1, transposed by its strides: no copy of the weight.
        into = weight1 + unit[None, :] * C + lane[:, None]  # WIDTH, HIDDEN
        h = multiply(a, tl.load(into), tl.zeros((ROWS, HIDDEN), dtype=tl.float32), PRECISION)
        if PARTS == 3:
            h = multiply(b, tl.load(into + WIDTH), h, PRECISION)
            h = multiply(c, tl.load(into + 2 * WIDTH), h, PRECISION)
        if not POST:
            # norm(x) W1 = r (x W1 - m s), as in fused_linear.
            h = (h - mean[:, None] * tl.load(sums + unit)[None, :]) * rate[:, None]
        h = narrow(gelu(h + tl.load(bias1 + unit)[None, :]), x, PRECISION)
        # fc2 of this block of hidden channels, added to all C outputs.
        back = weight2 + lane[None, :] * D + unit[:, None]  # HIDDEN, WIDTH
        acc = multiply(h, tl.load(back), acc, PRECISION)
        if PARTS == 3:
            acc_b = multiply(h, tl.load(back + WIDTH * D), acc_b, PRECISION)
            acc_c = multiply(h, tl.load(back + 2 * WIDTH * D), acc_c, PRECISION)
    if POST:
        # Post-norm (Swin V2): statistics of the finished rows.
        mean, rate = _statistics(acc, acc_b, acc_c, C, PARTS, eps)
    _finish(acc, a, mean, rate, gamma, beta, out, place, lane, here, POST, PRECISION)
    if PARTS == 3:
        place += WIDTH
        lane += WIDTH
        _finish(acc_b, b, mean, rate, gamma, beta, out, place, lane, here, POST, PRECISION)
        place += WIDTH
        lane += WIDTH
        _finish(acc_c, c, mean, rate, gamma, beta, out, place, lane, here, POST, PRECISION)


def run_mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    sums: Tensor | None,
    weight2: Tensor,
    bias2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    eps: float,
) -> Tensor:
    """Launch the kernel; see `muntin.ops.fused_layers` for what the arguments mean.

    Args:
        x: Contiguous: *rows, C.
        weight1: D, C, contiguous, of the type of x, as is `weight2`: C, D.
        bias1: D, float32, as are all vectors.
        sums: Of `weight1` over C; without it rows are normalised behind, by `gamma` and `beta`.
        weight2: C, D.
        bias2: C.
        gamma: Scale of the norm behind.
        beta: Its shift.
        eps: Of whichever norm there is.
    """
    d, c = weight1.shape
    out = torch.empty_like(x)
    rows = x.numel() // c
    if rows == 0:
        return out
    parts = parts_of(c)
    launch = mlp_launch(rows, c, d, item_bytes=x.element_size())
    with torch.cuda.device_of(x):
        mlp_kernel[(-(-rows // launch.rows),)](
            *(x, weight1, bias1, out if sums is None else sums, weight2, bias2),
            *(out if gamma is None else gamma, out if beta is None else beta, out, rows, eps),
            C=c, D=d, PARTS=parts, WIDTH=c // parts, POST=sums is None,
            PRECISION=precision_of(x.dtype), ROWS=launch.rows, HIDDEN=launch.columns,
            num_warps=launch.warps, num_stages=launch.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out
