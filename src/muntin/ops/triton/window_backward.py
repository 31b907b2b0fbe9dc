# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The backward pass of window attention for windows of at most 64 tokens.

Scores and weights are made again from what the forward pass read. A program takes one window after
another for one head and sums the gradients of bias, padding and temperature as it goes, in an
order that is always the same: no atomics, the same bits in every run. What the programs summed
is added up by whoever launches them.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from muntin.ops.triton.window_tiles import (
    LOG2E,
    locate,
    normalise,
    normalise_backward,
    read_bias,
    read_part,
    score,
    store_pairs,
    store_part,
)

__all__ = ["attend_whole_backward"]


@no_type_check
@triton.jit(do_not_specialize=["windows", "slots", "height", "width", "shift_h", "shift_w"])
def attend_whole_backward(
    grad,
    qkv,
    bias,
    fill,
    temperature,
    grad_qkv,
    sums_bias,
    sums_fill,
    sums_temperature,
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
    LEARNS_BIAS: tl.constexpr,
    LEARNS_FILL: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Write the gradient of the windows slot, slot + slots, ... for one head, and this slot's sums.

    The sums are slots, h, N, N of the bias, slots, 2, h, d of keys and values of padded tokens (the
    queries have none: nobody reads what they attend to), and slots, h of the temperature.
    """
    NUM_TOKENS: tl.constexpr = WINDOW_H * WINDOW_W
    program = tl.program_id(0)
    head = program % HEADS
    tokens = tl.arange(0, BLOCK)
    # Once per program: all its windows share the bias of the head.
    added = read_bias(bias, head, tokens, tokens, NUM_TOKENS)
    factor = scale
    if COSINE:
        factor *= tl.load(temperature + head).to(tl.float32)
    sum_bias = tl.zeros((BLOCK, BLOCK), tl.float32)
    sum_keys = tl.zeros((HEAD_DIM,), tl.float32)
    sum_values = tl.zeros((HEAD_DIM,), tl.float32)
    sum_cosines = tl.zeros((BLOCK,), tl.float32)
    # Fixed stride `slots`: which program sums which window never depends on timing.
    for window in tl.range(program // HEADS, windows, slots, num_stages=STAGES):
        image, token, real, inside, region = locate(
            window, tokens, height, width, shift_h, shift_w, WINDOW_H, WINDOW_W, SHIFTED, PAD_FIRST
        )
        first = image.to(tl.int64) * height * width * (HEADS * HEAD_DIM)
        base = qkv + first * 3
        q = read_part(base, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 3, FILLED)
        k = read_part(base, fill, token, real, inside, 1, head, HEADS, HEAD_DIM, 3, FILLED)
        v = read_part(base, fill, token, real, inside, 2, head, HEADS, HEAD_DIM, 3, FILLED)
        # The output has one part (PARTS = 1); padded rows read 0.
        g = read_part(grad + first, fill, token, real, inside, 0, head, HEADS, HEAD_DIM, 1, False)
        if COSINE:
            q, length_q = normalise(q)
            k, length_k = normalise(k)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = score(products, added, region, region, factor * LOG2E, SHIFTED)
        # Recomputed softmax; cheaper than storing N x N weights per window.
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        weights = weights / tl.sum(weights, 1)[:, None]
        grad_v = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=PRECISION)
        # Rows beyond the map have no gradient, and neither have their scores.
        grad_weights = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        # Softmax backward: dS = W * (dW - rowsum(W * dW)).
        mean = tl.sum(weights * grad_weights, 1)
        grad_scores = weights * (grad_weights - mean[:, None])
        if LEARNS_BIAS:
            sum_bias += grad_scores
        # Tensor cores take the half type; the sums above stay in float32.
        small = grad_scores.to(q.dtype)
        grad_q = tl.dot(small, k, input_precision=PRECISION) * factor
        grad_k = tl.dot(tl.trans(small), q, input_precision=PRECISION) * factor
        if COSINE:
            # d loss / d temperature = sum(dS * cos); scaled once at the end.
            sum_cosines += tl.sum(grad_scores * products, 1)
            grad_k = normalise_backward(grad_k, k, length_k)
            grad_q = normalise_backward(grad_q, q, length_q)
        if LEARNS_FILL:
            outside = (real & (inside == 0))[:, None]
            # Padded keys and values are copies of `fill`: their gradients add up in it.
            sum_keys += tl.sum(tl.where(outside, grad_k, 0.0), 0)
            sum_values += tl.sum(tl.where(outside, grad_v, 0.0), 0)
        target = grad_qkv + first * 3
        store_part(target, grad_q, token, inside, 0, head, HEADS, HEAD_DIM, 3)
        store_part(target, grad_k, token, inside, 1, head, HEADS, HEAD_DIM, 3)
        store_part(target, grad_v, token, inside, 2, head, HEADS, HEAD_DIM, 3)
    if LEARNS_BIAS:
        store_pairs(sums_bias, sum_bias, program, tokens, tokens, NUM_TOKENS)
    if LEARNS_FILL:
        slot = sums_fill + (program // HEADS).to(tl.int64) * (2 * HEADS * HEAD_DIM)
        channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
        tl.store(slot + channels, sum_keys)
        tl.store(slot + HEADS * HEAD_DIM + channels, sum_values)
    if COSINE:
        tl.store(sums_temperature + program, tl.sum(sum_cosines, 0) * scale)
