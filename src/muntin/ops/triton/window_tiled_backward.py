# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The backward pass of window attention for windows of more than 64 tokens, tile by tile.

Three kernels, each with one kind of sum in registers: queries (and what the softmax of each row
needs), keys and values, bias. Each makes the scores again; none adds to what another wrote.
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
    normalise_backward,
    read_bias,
    read_part,
    score,
    store_pairs,
    store_part,
)

__all__ = [
    "attend_tiled_backward_bias",
    "attend_tiled_backward_keys",
    "attend_tiled_backward_queries",
]


@no_type_check
@triton.jit(do_not_specialize=["height", "width", "shift_h", "shift_w"])
def attend_tiled_backward_queries(
    grad,
    qkv,
    bias,
    fill,
    temperature,
    grad_qkv,
    peaks,
    means,
    sums_temperature,
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
    """Write the gradient of QUERIES queries of one window for one head.

    Writes too, for the kernels that follow, what makes weights of scores (`peaks`: a weight is 2 to
    the score less the peak) and the mean gradient of a row's weights (`means`): windows, h, N each.
    """
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
    # Three parts (q, k, v) of the same tokens.
    base = qkv + first * 3
    q = read_part(base, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 3, FILLED)
    g = read_part(grad + first, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 1, False)
    factor = scale
    if COSINE:
        factor *= tl.load(temperature + head).to(tl.float32)
        q, length = normalise(q)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mean = tl.zeros((QUERIES,), tl.float32)
    # First pass over keys: softmax statistics and sum(W * dW) of each row.
    for start in tl.range(0, NUM_TOKENS, KEYS, num_stages=STAGES):
        keys = start + tl.arange(0, KEYS)
        _, v, _, scores = meet(
            base, fill, bias, window, head, q, queries, region, keys, factor * LOG2E,
            height, width, shift_h, shift_w, HEADS, HEAD_DIM, WINDOW_H, WINDOW_W,
            SHIFTED, PAD_FIRST, FILLED, COSINE, PRECISION,
        )  # fmt: skip
        grown = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - grown[:, None])
        # Running softmax: rescale earlier sums to the new maximum.
        shrink = tl.exp2(largest - grown)
        grad_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink + tl.sum(weights * grad_weights, 1)
        largest = grown
    mean = mean / total
    # W = 2 ** (S - peak): the normaliser is folded into the peak.
    peak = largest + tl.log2(total)
    rows = (program // TILES).to(tl.int64) * NUM_TOKENS
    tl.store(peaks + rows + queries, peak, mask=real)
    tl.store(means + rows + queries, mean, mask=real)
    grad_q = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    cosines = tl.zeros((QUERIES,), tl.float32)
    # Second pass: dS = W * (dW - mean), dQ = dS K.
    for start in tl.range(0, NUM_TOKENS, KEYS, num_stages=STAGES):
        keys = start + tl.arange(0, KEYS)
        k, v, products, scores = meet(
            base, fill, bias, window, head, q, queries, region, keys, factor * LOG2E,
            height, width, shift_h, shift_w, HEADS, HEAD_DIM, WINDOW_H, WINDOW_W,
            SHIFTED, PAD_FIRST, FILLED, COSINE, PRECISION,
        )  # fmt: skip
        grad_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        grad_scores = tl.exp2(scores - peak[:, None]) * (grad_weights - mean[:, None])
        grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision=PRECISION)
        if COSINE:
            cosines += tl.sum(grad_scores * products, 1)
    if COSINE:
        tl.store(sums_temperature + program, tl.sum(cosines, 0) * scale)
        # Cosine: the gradient goes through q / |q|.
        grad_q = normalise_backward(grad_q * factor, q, length)
    else:
        grad_q = grad_q * factor
    store_part(grad_qkv + first * 3, grad_q, token, inside, 0, head, HEADS, HEAD_DIM, 3)


@no_type_check
@triton.jit(do_not_specialize=["height", "width", "shift_h", "shift_w"])
def attend_tiled_backward_keys(
    grad,
    qkv,
    bias,
    fill,
    temperature,
    grad_qkv,
    peaks,
    means,
    sums_fill,
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
    LEARNS_FILL: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the gradient of KEYS keys and values of one window for one head.

    `sums_fill` is windows, tiles, 2, h, d: the gradients of padded keys and values.
    """
    NUM_TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    TILES: tl.constexpr = (NUM_TOKENS + KEYS - 1) // KEYS
    program = tl.program_id(0)
    head = program // TILES % HEADS
    window = program // (TILES * HEADS)
    keys = program % TILES * KEYS + tl.arange(0, KEYS)
    image, token, real, inside, region = locate(
        window, keys, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
    )
    first = image.to(tl.int64) * height * width * (HEADS * HEAD_DIM)
    base = qkv + first * 3
    k = read_part(base, fill, token, real, inside, 1, head, HEADS, HEAD_DIM, 3, FILLED)
    v = read_part(base, fill, token, real, inside, 2, head, HEADS, HEAD_DIM, 3, FILLED)
    factor = scale
    if COSINE:
        factor *= tl.load(temperature + head).to(tl.float32)
        k, length = normalise(k)
    # Row of the statistics: window * HEADS + head.
    rows = (program // TILES).to(tl.int64) * NUM_TOKENS
    grad_k = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    grad_v = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    # dV = W^T dO and dK = dS^T Q, summed over tiles of queries.
    for start in tl.range(0, NUM_TOKENS, QUERIES, num_stages=STAGES):
        queries = start + tl.arange(0, QUERIES)
        _, place, there, within, other = locate(
            window, queries, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
        )
        q = read_part(base, fill, place, there, within, 0, head, HEADS, HEAD_DIM, 3, FILLED)
        g = read_part(grad + first, fill, place, there, within, 0, head, HEADS, HEAD_DIM, 1, False)
        if COSINE:
            q, _ = normalise(q)
        # A weight of a query that is not real is 0: 2 to the power of -inf.
        peak = tl.load(peaks + rows + queries, mask=there, other=float("inf"))
        mean = tl.load(means + rows + queries, mask=there, other=0.0)
        added = read_bias(bias, head, queries, keys, NUM_TOKENS)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = score(products, added, other, region, factor * LOG2E, SHIFTED)
        weights = tl.exp2(scores - peak[:, None])
        grad_v += tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=PRECISION)
        grad_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        grad_scores = (weights * (grad_weights - mean[:, None])).to(q.dtype)
        grad_k += tl.dot(tl.trans(grad_scores), q, input_precision=PRECISION)
    grad_k = grad_k * factor
    if COSINE:
        grad_k = normalise_backward(grad_k, k, length)
    if LEARNS_FILL:
        # Padded tokens are copies of `fill`; their gradients belong to it.
        outside = (real & (inside == 0))[:, None]
        channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
        tile = window.to(tl.int64) * TILES + program % TILES
        sums = sums_fill + tile * (2 * HEADS * HEAD_DIM) + channels
        tl.store(sums, tl.sum(tl.where(outside, grad_k, 0.0), 0))
        tl.store(sums + HEADS * HEAD_DIM, tl.sum(tl.where(outside, grad_v, 0.0), 0))
    store_part(grad_qkv + first * 3, grad_k, token, inside, 1, head, HEADS, HEAD_DIM, 3)
    store_part(grad_qkv + first * 3, grad_v, token, inside, 2, head, HEADS, HEAD_DIM, 3)


@no_type_check
@triton.jit(do_not_specialize=["windows", "slots", "height", "width", "shift_h", "shift_w"])
def attend_tiled_backward_bias(
    grad,
    qkv,
    bias,
    fill,
    temperature,
    peaks,
    means,
    sums_bias,
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
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAD_FIRST: tl.constexpr,
    FILLED: tl.constexpr,
    COSINE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sum the gradient of a tile of the bias over the windows slot, slot + slots, ...

    `sums_bias` is slots, h, N, N.
    """
    NUM_TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    ACROSS: tl.constexpr = (NUM_TOKENS + KEYS - 1) // KEYS
    TILES: tl.constexpr = ACROSS * ((NUM_TOKENS + QUERIES - 1) // QUERIES)
    program = tl.program_id(0)
    head = program // TILES % HEADS
    # A program owns one tile of the N x N bias of one head.
    tile = program % TILES
    queries = tile // ACROSS * QUERIES + tl.arange(0, QUERIES)
    keys = tile % ACROSS * KEYS + tl.arange(0, KEYS)
    factor = scale
    if COSINE:
        factor *= tl.load(temperature + head).to(tl.float32)
    # Float32 sum over windows in a fixed order; no atomics.
    summed = tl.zeros((QUERIES, KEYS), tl.float32)
    for window in tl.range(program // (TILES * HEADS), windows, slots, num_stages=STAGES):
        image, token, real, inside, region = locate(
            window, queries, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
        )
        first = image.to(tl.int64) * height * width * (HEADS * HEAD_DIM)
        base = qkv + first * 3
        q = read_part(base, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 3, FILLED)
        g = read_part(grad + first, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 1, False)
        if COSINE:
            q, _ = normalise(q)
        _, v, _, scores = meet(
            base, fill, bias, window, head, q, queries, region, keys, factor * LOG2E,
            height, width, shift_h, shift_w, HEADS, HEAD_DIM, WINDOW_H, WINDOW_W,
            SHIFTED, PAD_FIRST, FILLED, COSINE, PRECISION,
        )  # fmt: skip
        rows = (window * HEADS + head).to(tl.int64) * NUM_TOKENS
        peak = tl.load(peaks + rows + queries, mask=real, other=float("inf"))
        mean = tl.load(means + rows + queries, mask=real, other=0.0)
        grad_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        summed += tl.exp2(scores - peak[:, None]) * (grad_weights - mean[:, None])
    store_pairs(sums_bias, summed, program // TILES, queries, keys, NUM_TOKENS)
