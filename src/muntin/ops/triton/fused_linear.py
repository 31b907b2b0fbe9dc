# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A linear layer with what stands before and behind it: norm, 2 x 2 neighbours, GELU, residual.

The norm before the product costs no pass of its own. With m and r the mean and the reciprocal
deviation of a row, norm(x) W = r * (x W - m * s), where s holds the sums of W over its inputs; so
the product reads the rows as they lie, and the statistics are summed up while they pass. Nothing is
rounded on the way, and s is summed from the rounded weights, so what cancels does so exactly.

Letters: M rows, K channels in, N channels out.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from muntin.ops.triton.gelu import gelu
from muntin.ops.triton.launches import linear_launch
from muntin.ops.triton.tile_products import multiply, narrow, precision_of
from muntin.shapes import Size

__all__ = ["norm_rows", "run_linear"]


@triton.jit
@no_type_check
def _corner(number, height, width):
    """Where the 2 x 2 neighbours of some rows begin, and how many there are down and across."""
    high = (height + 1) // 2
    wide = (width + 1) // 2
    image = number // (high * wide)
    rest = number % (high * wide)
    y = rest // wide * 2
    x = rest % wide * 2
    token = (image.to(tl.int64) * height + y) * width + x
    return token, height - y, width - x


@triton.jit
@no_type_check
def norm_rows(acc, inside, gamma, beta, column, eps, N: tl.constexpr):
    """Normalise whole rows, which are wider than N."""
    mean = tl.sum(tl.where(inside[None, :], acc, 0.0), 1) / N
    # Two passes over registers: the variance does not cancel.
    gap = tl.where(inside[None, :], acc - mean[:, None], 0.0)
    rate = tl.rsqrt(tl.sum(gap * gap, 1) / N + eps)
    scale = tl.load(gamma + column, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(beta + column, mask=inside, other=0.0).to(tl.float32)
    return gap * rate[:, None] * scale[None, :] + shift[None, :]


@triton.jit
@no_type_check
def _finish(
    acc, bias, gamma, beta, inside, column, eps,
    N: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr, POST: tl.constexpr,
):  # fmt: skip
    """What each row takes after the product: bias, GELU, norm."""
    if BIAS:
        acc += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GELU:
        acc = gelu(acc)
    if POST:
        acc = norm_rows(acc, inside, gamma, beta, column, eps, N)
    return acc


@triton.jit(do_not_specialize=["num_rows", "image_rows", "height", "width"])
@no_type_check
def linear_kernel(
    x, weight, bias, sums, residual, factor, gamma, beta, out,
    num_rows, image_rows, height, width, eps,
    K: tl.constexpr, N: tl.constexpr,
    MERGE: tl.constexpr, NORM: tl.constexpr, BIAS: tl.constexpr, GELU: tl.constexpr,
    POST: tl.constexpr, RESIDUAL: tl.constexpr, FACTOR: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of ROWS x COLUMNS of the output; DEPTH divides K, and K / 4 for neighbours."""
    tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    SEGMENT: tl.constexpr = K // 4 if MERGE else K
    program = tl.program_id(0)
    first = program // tiles * ROWS
    row = tl.arange(0, ROWS)
    column = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    # Masks of the last tile of rows and of columns.
    here = first + row < num_rows
    inside = column < N
    lane = tl.arange(0, DEPTH)
    if MERGE:
        token, below, right = _corner(first + row, height, width)
    else:
        # int64: rows times channels passes 2**31 on large batches.
        token = first.to(tl.int64) + row
        below = row
        right = row
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    if NORM:
        # Sums of squares are taken from a value of the row, or they would cancel.
        pivot = tl.load(x + token * SEGMENT, mask=here, other=0.0).to(tl.float32)
        # Running sums of (x - pivot) and (x - pivot)^2 over K.
        total = tl.zeros((ROWS,), dtype=tl.float32)
        squares = tl.zeros((ROWS,), dtype=tl.float32)
    for k in range(0, K, DEPTH):
        if MERGE:
            part = k // SEGMENT  # upper left, lower left, upper right, lower right
            down = part % 2
            across = part // 2
            # Where this DEPTH-wide slice of one of the four tokens lies; odd sides read zeros.
            source = (token + down * width + across) * SEGMENT + (k - part * SEGMENT)
            there = here & (down < below) & (across < right)
        else:
            source = token * SEGMENT + k
            there = here
        a = tl.load(x + source[:, None] + lane[None, :], mask=there[:, None], other=0.0)
        w = tl.load(
            weight + column[None, :] * K + (k + lane)[:, None], mask=inside[None, :], other=0.0
        )
        if NORM:
            # Statistics ride along with the product: x is read once.
            gap = a.to(tl.float32) - pivot[:, None]
            total += tl.sum(gap, 1)
            squares += tl.sum(gap * gap, 1)
        acc = multiply(a, w, acc, PRECISION)
    if NORM:
        mean = total / K
        # Rounding may make the variance slightly negative.
        rate = tl.rsqrt(tl.maximum(squares / K - mean * mean, 0.0) + eps)
        whole = tl.load(sums + column, mask=inside, other=0.0)
        # norm(x) W = r (x W - m s), see the text above.
        acc = (acc - (mean + pivot)[:, None] * whole[None, :]) * rate[:, None]
    acc = _finish(acc, bias, gamma, beta, inside, column, eps, N, BIAS, GELU, POST)
    place = (first.to(tl.int64) + row)[:, None] * N + column[None, :]
    shown = here[:, None] & inside[None, :]
    if FACTOR:
        kept = tl.load(factor + (first + row) // image_rows, mask=here, other=0.0)
        acc *= kept.to(tl.float32)[:, None]
    if RESIDUAL:
        acc += tl.load(residual + place, mask=shown, other=0.0).to(tl.float32)
    tl.store(out + place, narrow(acc, out, PRECISION), mask=shown)


def run_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sums: Tensor | None,
    residual: Tensor | None,
    factor: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    eps: float,
    gelu: bool,
    merged: Size | None = None,
) -> Tensor:
    """Launch the kernel; see `muntin.ops.fused_layers` for what the arguments mean.

    Args:
        x: Contiguous: *rows, K; or B, H, W, K / 4 where neighbours are merged.
        weight: N, K, contiguous, of the type of x.
        bias: N, float32, as are `sums`, `gamma` and `beta`.
        sums: Of the weights over K, if rows are normalised before.
        residual: *rows, N, added last.
        factor: One number an image, multiplied before the residual is added.
        gamma: Scale of the norm behind, if there is one.
        beta: Its shift.
        eps: Of whichever norm there is.
        gelu: Whether it follows.
        merged: Height and width of the map whose neighbours are merged.
    """
    n, k = weight.shape
    if merged is None:
        out = x.new_empty((*x.shape[:-1], n))
        height = width = 1
    else:
        height, width = merged
        out = x.new_empty((x.shape[0], (height + 1) // 2, (width + 1) // 2, n))
    rows = out.numel() // n
    if rows == 0:
        return out
    segment = k if merged is None else k // 4
    launch = linear_launch(
        rows, segment, k, n, item_bytes=x.element_size(), whole=gamma is not None
    )
    grid = (-(-rows // launch.rows) * -(-n // launch.columns),)
    with torch.cuda.device_of(x):
        linear_kernel[grid](
            *(x, weight, *(out if part is None else part for part in (bias, sums, residual))),
            *(*(out if part is None else part for part in (factor, gamma, beta)), out),
            *(rows, rows // max(x.shape[0], 1), height, width, eps),
            K=k, N=n,
            MERGE=merged is not None, NORM=sums is not None, BIAS=bias is not None, GELU=gelu,
            POST=gamma is not None, RESIDUAL=residual is not None, FACTOR=factor is not None,
            PRECISION=precision_of(x.dtype),
            ROWS=launch.rows, COLUMNS=launch.columns, DEPTH=launch.depth,
            num_warps=launch.warps, num_stages=launch.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out
