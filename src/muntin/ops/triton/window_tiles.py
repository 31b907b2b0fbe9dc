# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What the kernels of window attention share: where tokens lie, how they are read, what they score.

Roll, padding and cut are arithmetic on the numbers of tokens; nothing is copied for them. A tile is
BLOCK tokens of one window, of one head; BLOCK is a power of two and may go beyond the N tokens of
the window. A token is `real` when the window has it, and `inside` when the map has it too: what is
real and not inside is padding.

Scores are logits times log2(e), so that the softmax is powers of two.

Letters: H and W sides of the map, N tokens of a window, h heads, d width of a head.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from muntin.ops.windows import MASKED

__all__ = [
    "LOG2E",
    "locate",
    "meet",
    "normalise",
    "normalise_backward",
    "read_bias",
    "read_part",
    "score",
    "store_pairs",
    "store_part",
]

LOG2E = tl.constexpr(1.4426950408889634)
_MASKED_LOG2 = tl.constexpr(MASKED * 1.4426950408889634)
_EPS = tl.constexpr(1e-12)  # as torch.nn.functional.normalize


@no_type_check
@triton.jit
def locate(
    window,
    tokens,
    height,
    width,
    shift_h,
    shift_w,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAD_FIRST: tl.constexpr,
):
    """Find tokens of a window in the map.

    Returns the image, and for each token its number in the image (row by row; anything where it is
    not inside), whether it is real, whether it is inside, and which region it is of: regions do not
    attend to each other.
    """
    # Windows down and across, padding included.
    rows = tl.cdiv(height, WINDOW_H)
    columns = tl.cdiv(width, WINDOW_W)
    image = window // (rows * columns)
    place = window % (rows * columns)
    y = place // columns * WINDOW_H + tokens // WINDOW_W
    x = place % columns * WINDOW_W + tokens % WINDOW_W
    real = tokens < WINDOW_H * WINDOW_W
    region = tokens * 0
    # Padding after the roll is decided before y and x are rolled back.
    mapped = (y < height) & (x < width)
    if SHIFTED:
        bottom = rows * WINDOW_H
        right = columns * WINDOW_W
        # Same regions as `muntin.ops.windows.shift_mask`.
        region = (y >= bottom - shift_h).to(tl.int32) * 2 + (x >= right - shift_w).to(tl.int32)
        if not PAD_FIRST:  # the map was rolled before it was padded
            bottom = height
            right = width
        y += shift_h % bottom
        x += shift_w % right
        # y - shift modulo the side, without a division.
        y = tl.where(y >= bottom, y - bottom, y)
        x = tl.where(x >= right, x - right, x)
        if PAD_FIRST:
            mapped = (y < height) & (x < width)
    return image, y * width + x, real, real & mapped, region


@no_type_check
@triton.jit
def read_part(
    base,
    fill,
    token,
    real,
    inside,
    part,
    head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
    FILLED: tl.constexpr,
):
    """Read queries (part 0), keys (1) or values (2) of a tile: BLOCK, d.

    `base` is the image's first number. Padded tokens hold `fill` where FILLED, else zeros.
    """
    # Channel order of qkv: part, head, d.
    channels = (part * HEADS + head) * HEAD_DIM + tl.arange(0, HEAD_DIM)
    offsets = token.to(tl.int64) * (PARTS * HEADS * HEAD_DIM)
    x = tl.load(base + offsets[:, None] + channels[None, :], mask=inside[:, None], other=0.0)
    if FILLED:
        values = tl.load(fill + channels).to(x.dtype)
        # Padded tokens hold the bias of the qkv projection.
        x = tl.where((real & (inside == 0))[:, None], values[None, :], x)
    return x


@no_type_check
@triton.jit
def normalise(x):
    """Bring rows to length 1; gives their lengths too."""
    wide = x.to(tl.float32)
    length = tl.sqrt(tl.sum(wide * wide, 1))
    return (wide / tl.maximum(length, _EPS)[:, None]).to(x.dtype), length


@no_type_check
@triton.jit
def normalise_backward(grad, unit, length):
    """Lead the gradient of rows of length 1 to what they were made of."""
    wide = unit.to(tl.float32)
    # d(x/|x|): remove the component along x, divide by |x|.
    along = tl.sum(grad * wide, 1)
    along = tl.where(length > _EPS, along, 0.0)
    return (grad - along[:, None] * wide) / tl.maximum(length, _EPS)[:, None]


@no_type_check
@triton.jit
def read_bias(bias, head, queries, keys, NUM_TOKENS: tl.constexpr):
    """Read the bias of a tile of pairs in units of scores; -inf for keys that are not real."""
    there = (queries < NUM_TOKENS)[:, None] & (keys < NUM_TOKENS)[None, :]
    offsets = head * NUM_TOKENS * NUM_TOKENS + queries[:, None] * NUM_TOKENS + keys[None, :]
    # Base-2 logits, see the text above.
    values = tl.load(bias + offsets, mask=there, other=0.0).to(tl.float32) * LOG2E
    return tl.where((keys < NUM_TOKENS)[None, :], values, float("-inf"))


@no_type_check
@triton.jit
def score(
    products,
    bias,
    query_region,
    key_region,
    factor,
    SHIFTED: tl.constexpr,
):
    """Make scores of the products of queries and keys: BLOCK, BLOCK in float32."""
    scores = products * factor + bias
    if SHIFTED:
        apart = query_region[:, None] != key_region[None, :]
        # -100 as in published models, not -inf: a fully masked row stays finite.
        scores += tl.where(apart, _MASKED_LOG2, 0.0)
    return scores


@no_type_check
@triton.jit
def meet(
    base,
    fill,
    bias,
    window,
    head,
    q,
    queries,
    query_region,
    keys,
    factor,
    height,
    width,
    shift_h,
    shift_w,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAD_FIRST: tl.constexpr,
    FILLED: tl.constexpr,
    COSINE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Read a tile of keys and values of a window; gives keys, values, products, scores."""
    _, token, real, inside, region = locate(
        window, keys, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
    )
    k = read_part(base, fill, token, real, inside, 1, head, HEADS, HEAD_DIM, 3, FILLED)
    v = read_part(base, fill, token, real, inside, 2, head, HEADS, HEAD_DIM, 3, FILLED)
    if COSINE:
        k, _ = normalise(k)
    added = read_bias(bias, head, queries, keys, WINDOW_H * WINDOW_W)
    products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    return k, v, products, score(products, added, query_region, region, factor, SHIFTED)


@no_type_check
@triton.jit
def store_part(
    base,
    values,
    token,
    inside,
    part,
    head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Write queries (part 0), keys (1) or values (2) of a tile, or what belongs to them."""
    channels = (part * HEADS + head) * HEAD_DIM + tl.arange(0, HEAD_DIM)
    offsets = token.to(tl.int64) * (PARTS * HEADS * HEAD_DIM)
    pointers = base + offsets[:, None] + channels[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask=inside[:, None])


@no_type_check
@triton.jit
def store_pairs(sums, values, place, queries, keys, NUM_TOKENS: tl.constexpr):
    """Write a tile of pairs to the matrix number `place` of `sums`."""
    first = place.to(tl.int64) * (NUM_TOKENS * NUM_TOKENS)
    # Tiles may reach beyond the N tokens of a window.
    there = (queries < NUM_TOKENS)[:, None] & (keys < NUM_TOKENS)[None, :]
    pairs = queries[:, None] * NUM_TOKENS + keys[None, :]
    tl.store(sums + first + pairs, values, mask=there)
