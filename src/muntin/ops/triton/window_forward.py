# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Kernels of window attention, forward.

`attend_whole` holds all pairs of a window of at most 64 tokens at once; a program takes one window
after another for one head, so that the bias is read once. `attend_tiled` is for larger windows: a
program takes some queries of one window, and meets the keys tile by tile with a running softmax.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from muntin.ops.triton.window_tiles import (
    LOG2E,
    locate,
    meet,
    normalise,
    read_bias,
    read_part,
    score,
    store_part,
)

__all__ = ["attend_tiled", "attend_whole"]


@no_type_check
@triton.jit(do_not_specialize=["windows", "slots", "height", "width", "shift_h", "shift_w"])
def attend_whole(
    qkv,
    bias,
    fill,
    temperature,
    out,
    windows,
    slots,
    height,
    width,
    shift_h,
    shift_w,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    BLOCK: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAD_FIRST: tl.constexpr,
    FILLED: tl.constexpr,
    COSINE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the output of the windows slot, slot + slots, ... for one head."""
    program = tl.program_id(0)
    head = program % HEADS
    tokens = tl.arange(0, BLOCK)
    added = read_bias(bias, head, tokens, tokens, WINDOW_H * WINDOW_W)
    # Base 2: exp2 is one instruction, exp is two.
    factor = scale * LOG2E
    if COSINE:
        factor *= tl.load(temperature + head).to(tl.float32)
    for window in tl.range(program // HEADS, windows, slots, num_stages=STAGES):
        image, token, real, inside, region = locate(
            window, tokens, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
        )
        # int64: offsets of large batches pass 2**31.
        first = image.to(tl.int64) * height * width * (HEADS * HEAD_DIM)
        base = qkv + first * 3
        q = read_part(base, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 3, FILLED)
        k = read_part(base, fill, token, real, inside, 1, head, HEADS, HEAD_DIM, 3, FILLED)
        v = read_part(base, fill, token, real, inside, 2, head, HEADS, HEAD_DIM, 3, FILLED)
        if COSINE:
            q, _ = normalise(q)
            k, _ = normalise(k)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = score(products, added, region, region, factor, SHIFTED)
        # Subtract the maximum of the row: no overflow.
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        total = tl.sum(weights, 1)
        # Normalised after the product: N x d divisions instead of N x N.
        result = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION) / total[:, None]
        store_part(out + first, result, token, inside, 0, head, HEADS, HEAD_DIM, 1)


@no_type_check
@triton.jit(do_not_specialize=["height", "width", "shift_h", "shift_w"])
def attend_tiled(
    qkv,
    bias,
    fill,
    temperature,
    out,
    height,
    width,
    shift_h,
    shift_w,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAD_FIRST: tl.constexpr,
    FILLED: tl.constexpr,
    COSINE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the output of QUERIES tokens of one window for one head."""
    NUM_TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (NUM_TOKENS + QUERIES - 1) // QUERIES
    program = tl.program_id(0)
    head = program // TILES % HEADS
    window = program // (TILES * HEADS)
    queries = program % TILES * QUERIES + tl.arange(0, QUERIES)
    image, token, real, inside, region = locate(
        window, queries, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
    )
    first = image.to(tl.int64) * height * width * (HEADS * HEAD_DIM)
    base = qkv + first * 3
    q = read_part(base, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 3, FILLED)
    factor = scale * LOG2E
    if COSINE:
        factor *= tl.load(temperature + head).to(tl.float32)
        q, _length = normalise(q)
    # Running softmax (Milakov and Gimelshein 2018; FlashAttention).
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    result = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    for start in tl.range(0, NUM_TOKENS, KEYS, num_stages=STAGES):
        keys = start + tl.arange(0, KEYS)
        _, v, _, scores = meet(
            base, fill, bias, window, head, q, queries, region, keys, factor,
            height, width, shift_h, shift_w, HEADS, HEAD_DIM, WINDOW_H, WINDOW_W,
            SHIFTED, PAD_FIRST, FILLED, COSINE, PRECISION,
        )  # fmt: skip
        # Every tile has a real key, so no row is all -inf.
        grown = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - grown[:, None])
        # Rescale what was summed with the smaller maximum.
        shrink = tl.exp2(largest - grown)
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None]
        result += tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        largest = grown
    result = result / total[:, None]
    store_part(out + first, result, token, inside, 0, head, HEADS, HEAD_DIM, 1)
