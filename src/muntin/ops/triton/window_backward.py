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
    normalise_backward,
    read_bias,
    read_gradient,
    read_part,
    read_query_or_key,
    read_scale,
    score,
    store_fill,
    store_pairs,
    store_part,
    sum_outside,
)


@no_type_check
@triton.jit(do_not_specialize=["windows", "slots", "height", "width"])
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
    scale,
    SPEC: tl.constexpr,
):
    """Write the gradient of the windows slot, slot + slots, ... for one head, and this slot's sums.

    The sums are slots, h, N, N of the bias, slots, 2, h, d of keys and values of padded tokens (the
    queries have none: nobody reads what they attend to), and slots, h of the temperature.
    """
    # Triton 3.6 takes shapes of constants only, not of fields.
    BLOCK: tl.constexpr = SPEC.block
    HEAD_DIM: tl.constexpr = SPEC.head_dim
    program = tl.program_id(0)
    head = program % SPEC.heads
    tokens = tl.arange(0, BLOCK)
    # Once per program: all its windows share the bias of the head.
    added = read_bias(bias, head, tokens, tokens, SPEC)
    factor = read_scale(temperature, head, scale, SPEC)
    sum_bias = tl.zeros((BLOCK, BLOCK), tl.float32)
    sum_keys = tl.zeros((HEAD_DIM,), tl.float32)
    sum_values = tl.zeros((HEAD_DIM,), tl.float32)
    sum_cosines = tl.zeros((BLOCK,), tl.float32)
    # Fixed stride `slots`: which program sums which window never depends on timing.
    for window in tl.range(program // SPEC.heads, windows, slots, num_stages=SPEC.stages):
        tile, region = locate(window, tokens, height, width, SPEC)
        q, length_q = read_query_or_key(qkv, fill, tile, 0, head, SPEC)
        k, length_k = read_query_or_key(qkv, fill, tile, 1, head, SPEC)
        v = read_part(qkv, fill, tile, 2, head, SPEC)
        g = read_gradient(grad, tile, head, SPEC)
        products, scores = score(q, k, added, region, region, factor * LOG2E, SPEC)
        grad_scores, grad_v = _back_to_whole_rows(scores, v, g, SPEC)
        if SPEC.learns_bias:
            sum_bias += grad_scores
        # Tensor cores take the half type; the sums above stay in float32.
        small = grad_scores.to(q.dtype)
        grad_q = tl.dot(small, k, input_precision=SPEC.precision) * factor
        grad_k = tl.dot(tl.trans(small), q, input_precision=SPEC.precision) * factor
        if SPEC.cosine:
            # d loss / d temperature = sum(dS * cos); scaled once at the end.
            sum_cosines += tl.sum(grad_scores * products, 1)
            grad_k = normalise_backward(grad_k, k, length_k)
            grad_q = normalise_backward(grad_q, q, length_q)
        if SPEC.learns_fill:
            sum_keys += sum_outside(grad_k, tile)
            sum_values += sum_outside(grad_v, tile)
        store_part(grad_qkv, grad_q, tile, 0, head, 3, SPEC)
        store_part(grad_qkv, grad_k, tile, 1, head, 3, SPEC)
        store_part(grad_qkv, grad_v, tile, 2, head, 3, SPEC)
    if SPEC.learns_bias:
        store_pairs(sums_bias, sum_bias, program, tokens, tokens, SPEC)
    if SPEC.learns_fill:
        store_fill(sums_fill, sum_keys, sum_values, program // SPEC.heads, head, SPEC)
    if SPEC.cosine:
        tl.store(sums_temperature + program, tl.sum(sum_cosines, 0) * scale)


@no_type_check
@triton.jit
def _back_to_whole_rows(scores, v, g, SPEC: tl.constexpr):
    """Lead the gradient `g` of the output to scores of whole rows, and to values."""
    # Recomputed softmax; cheaper than storing N x N weights per window.
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    weights = weights / tl.sum(weights, 1)[:, None]
    grad_v = tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=SPEC.precision)
    # Rows beyond the map have no gradient, and neither have their scores.
    grad_weights = tl.dot(g, tl.trans(v), input_precision=SPEC.precision)
    # Softmax backward: dS = W * (dW - rowsum(W * dW)).
    mean = tl.sum(weights * grad_weights, 1)
    return weights * (grad_weights - mean[:, None]), grad_v
