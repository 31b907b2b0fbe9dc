# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Patches of pixels become tokens: read as they lie, projected and normalised in one kernel.

Letters: M patches, K pixel values of a patch (channel, row, column), N channels out.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from muntin.ops.triton.fused_linear import norm_rows
from muntin.ops.triton.launches import patch_launch
from muntin.ops.triton.tile_products import multiply, narrow, precision_of
from muntin.shapes import Size

__all__ = ["run_patches"]


@triton.jit(do_not_specialize=["num_rows"])
@no_type_check
def patch_kernel(
    images, weight, bias, fill, gamma, beta, out,
    num_rows, height, width, grid_height, grid_width, by_image, by_channel, by_row, by_column, eps,
    K: tl.constexpr, N: tl.constexpr, PATCH: tl.constexpr, BIAS: tl.constexpr,
    POST: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """ROWS patches, and COLUMNS of their channels; all of them where a norm follows."""
    tiles: tl.constexpr = (N + COLUMNS - 1) // COLUMNS
    program = tl.program_id(0)
    first = program // tiles * ROWS
    row = tl.arange(0, ROWS)
    column = program % tiles * COLUMNS + tl.arange(0, COLUMNS)
    here = first + row < num_rows
    inside = column < N
    # Patch number -> image, and its upper left pixel.
    image = (first + row) // (grid_height * grid_width)
    rest = (first + row) % (grid_height * grid_width)
    y = rest // grid_width * PATCH
    x = rest % grid_width * PATCH
    # Strides are arguments: NCHW and NHWC are read without a copy.
    corner = image.to(tl.int64) * by_image + y.to(tl.int64) * by_row + x * by_column
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for k in range(0, K, DEPTH):
        index = k + tl.arange(0, DEPTH)
        # Weight order of a convolution: channel, row i, column j.
        channel = index // (PATCH * PATCH)
        i = index // PATCH % PATCH
        j = index % PATCH
        used = index < K
        shown = (y[:, None] + i[None, :] < height) & (x[:, None] + j[None, :] < width)
        shown = shown & here[:, None] & used[None, :]
        offset = channel.to(tl.int64) * by_channel + i * by_row + j * by_column
        # Pixels beyond the image count as `fill` (the mean), 0 after normalisation.
        pixel = tl.load(images + corner[:, None] + offset[None, :], mask=shown, other=0)
        beyond = tl.load(fill + channel, mask=used, other=0.0)
        pixel = tl.where(shown, pixel.to(tl.float32), beyond[None, :])
        w = tl.load(
            weight + column[None, :] * K + index[:, None],
            mask=inside[None, :] & used[:, None],
            other=0.0,
        )
        # uint8 pixels are exact in bfloat16 and float16.
        acc = multiply(narrow(pixel, weight, PRECISION), w, acc, PRECISION)
    if BIAS:
        acc += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if POST:
        acc = norm_rows(acc, inside, gamma, beta, column, eps, N)
    place = (first.to(tl.int64) + row)[:, None] * N + column[None, :]
    tl.store(out + place, narrow(acc, out, PRECISION), mask=here[:, None] & inside[None, :])


def run_patches(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fill: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    patch: int,
    grid: Size,
    eps: float,
) -> Tensor:
    """Launch the kernel.

    Args:
        images: B, channels, height, width, of any number type and any strides.
        weight: N, channels * patch * patch, contiguous; its type is that of the tokens.
        bias: N, float32, as are all vectors.
        fill: What a pixel beyond the image counts as, one a channel.
        gamma: Scale of the norm behind, if there is one.
        beta: Its shift.
        patch: Side of a patch in pixels.
        grid: Patches down and across.
        eps: Of the norm.
    """
    n, k = weight.shape
    out = weight.new_empty((images.shape[0], *grid, n))
    rows = out.numel() // n
    if rows == 0:
        return out
    launch = patch_launch(rows, k, n, item_bytes=weight.element_size(), whole=gamma is not None)
    tiles = -(-rows // launch.rows) * -(-n // launch.columns)
    with torch.cuda.device_of(images):
        patch_kernel[(tiles,)](
            *(images, weight, out if bias is None else bias, fill),
            *(out if gamma is None else gamma, out if beta is None else beta, out),
            *(rows, images.shape[2], images.shape[3], *grid, *images.stride(), eps),
            K=k, N=n, PATCH=patch, BIAS=bias is not None, POST=gamma is not None,
            PRECISION=precision_of(weight.dtype),
            ROWS=launch.rows, COLUMNS=launch.columns, DEPTH=launch.depth,
            num_warps=launch.warps, num_stages=launch.stages, enable_fp_fusion=True,
        )  # fmt: skip
    return out
