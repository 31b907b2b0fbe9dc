# SPDX-License-Identifier: Apache-2.0
"""The backward pass of window attention: whole windows, and windows tile by tile.

Scores and weights are made again from what the forward pass read. For windows of at most 64 tokens
a program takes one window after another for one head and sums the gradients of bias, padding and
temperature as it goes, in an order that is always the same: no atomics, the same bits in every run.
What the programs summed is added up by whoever launches them.

Larger windows have three kernels, each with one kind of sum in registers: queries (and what the
softmax of each row needs), keys and values, bias. None adds to what another wrote.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from muntin.ops.triton.window_tiles import (
    LOG2E,
    grow,
    locate,
    meet,
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
    take_tile,
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


@no_type_check
@triton.jit(do_not_specialize=["height", "width"])
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
    scale,
    SPEC: tl.constexpr,
):
    """Write the gradient of a tile of queries of one window for one head.

    Writes too, for the kernels that follow, what makes weights of scores (`peaks`: a weight is 2 to
    the score less the peak) and the mean gradient of a row's weights (`means`): windows, h, N each.
    """
    QUERIES: tl.constexpr = SPEC.queries
    HEAD_DIM: tl.constexpr = SPEC.head_dim
    NUM_TOKENS: tl.constexpr = SPEC.window_h * SPEC.window_w
    head, window, queries = take_tile(QUERIES, SPEC)
    tile, region = locate(window, queries, height, width, SPEC)
    q, length = read_query_or_key(qkv, fill, tile, 0, head, SPEC)
    g = read_gradient(grad, tile, head, SPEC)
    factor = read_scale(temperature, head, scale, SPEC)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mean = tl.zeros((QUERIES,), tl.float32)
    # First pass over keys: softmax statistics and sum(W * dW) of each row.
    for start in tl.range(0, NUM_TOKENS, SPEC.keys, num_stages=SPEC.stages):
        keys = start + tl.arange(0, SPEC.keys)
        _, v, _, scores = meet(
            qkv, fill, bias, window, head, q, queries, region, keys, factor * LOG2E,
            height, width, SPEC,
        )  # fmt: skip
        largest, weights, shrink = grow(largest, scores)
        grad_weights = tl.dot(g, tl.trans(v), input_precision=SPEC.precision)
        total = total * shrink + tl.sum(weights, 1)
        mean = mean * shrink + tl.sum(weights * grad_weights, 1)
    mean = mean / total
    # W = 2 ** (S - peak): the normaliser is folded into the peak.
    peak = largest + tl.log2(total)
    rows = (window * SPEC.heads + head).to(tl.int64) * NUM_TOKENS
    tl.store(peaks + rows + queries, peak, mask=tile[2])
    tl.store(means + rows + queries, mean, mask=tile[2])
    grad_q = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    cosines = tl.zeros((QUERIES,), tl.float32)
    # Second pass: dS = W * (dW - mean), dQ = dS K.
    for start in tl.range(0, NUM_TOKENS, SPEC.keys, num_stages=SPEC.stages):
        keys = start + tl.arange(0, SPEC.keys)
        k, v, products, scores = meet(
            qkv, fill, bias, window, head, q, queries, region, keys, factor * LOG2E,
            height, width, SPEC,
        )  # fmt: skip
        _, grad_scores = _back_to_scores(scores, peak, mean, v, g, SPEC)
        grad_q += tl.dot(grad_scores.to(k.dtype), k, input_precision=SPEC.precision)
        if SPEC.cosine:
            cosines += tl.sum(grad_scores * products, 1)
    grad_q = grad_q * factor
    if SPEC.cosine:
        tl.store(sums_temperature + tl.program_id(0), tl.sum(cosines, 0) * scale)
        # Cosine: the gradient goes through q / |q|.
        grad_q = normalise_backward(grad_q, q, length)
    store_part(grad_qkv, grad_q, tile, 0, head, 3, SPEC)


@no_type_check
@triton.jit(do_not_specialize=["height", "width"])
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
    scale,
    SPEC: tl.constexpr,
):
    """Write the gradient of a tile of keys and values of one window for one head.

    `sums_fill` is windows, tiles, 2, h, d: the gradients of padded keys and values.
    """
    KEYS: tl.constexpr = SPEC.keys
    HEAD_DIM: tl.constexpr = SPEC.head_dim
    NUM_TOKENS: tl.constexpr = SPEC.window_h * SPEC.window_w
    head, window, keys = take_tile(KEYS, SPEC)
    tile, region = locate(window, keys, height, width, SPEC)
    k, length = read_query_or_key(qkv, fill, tile, 1, head, SPEC)
    v = read_part(qkv, fill, tile, 2, head, SPEC)
    factor = read_scale(temperature, head, scale, SPEC)
    # Row of the statistics: window * heads + head.
    rows = (window * SPEC.heads + head).to(tl.int64) * NUM_TOKENS
    grad_k = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    grad_v = tl.zeros((KEYS, HEAD_DIM), tl.float32)
    # dV = W^T dO and dK = dS^T Q, summed over tiles of queries.
    for start in tl.range(0, NUM_TOKENS, SPEC.queries, num_stages=SPEC.stages):
        queries = start + tl.arange(0, SPEC.queries)
        others, other = locate(window, queries, height, width, SPEC)
        q, _ = read_query_or_key(qkv, fill, others, 0, head, SPEC)
        g = read_gradient(grad, others, head, SPEC)
        # A weight of a query that is not real is 0: 2 to the power of -inf.
        peak = tl.load(peaks + rows + queries, mask=others[2], other=float("inf"))
        mean = tl.load(means + rows + queries, mask=others[2], other=0.0)
        added = read_bias(bias, head, queries, keys, SPEC)
        _, scores = score(q, k, added, other, region, factor * LOG2E, SPEC)
        weights, grad_scores = _back_to_scores(scores, peak, mean, v, g, SPEC)
        grad_v += tl.dot(tl.trans(weights.to(g.dtype)), g, input_precision=SPEC.precision)
        small = grad_scores.to(q.dtype)
        grad_k += tl.dot(tl.trans(small), q, input_precision=SPEC.precision)
    grad_k = grad_k * factor
    if SPEC.cosine:
        grad_k = normalise_backward(grad_k, k, length)
    if SPEC.learns_fill:
        tiles = tl.cdiv(NUM_TOKENS, KEYS)
        slot = window * tiles + tl.program_id(0) % tiles
        store_fill(
            sums_fill, sum_outside(grad_k, tile), sum_outside(grad_v, tile), slot, head, SPEC
        )
    store_part(grad_qkv, grad_k, tile, 1, head, 3, SPEC)
    store_part(grad_qkv, grad_v, tile, 2, head, 3, SPEC)


@no_type_check
@triton.jit(do_not_specialize=["windows", "slots", "height", "width"])
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
    scale,
    SPEC: tl.constexpr,
):
    """Sum the gradient of a tile of the bias over the windows slot, slot + slots, ...

    `sums_bias` is slots, h, N, N.
    """
    QUERIES: tl.constexpr = SPEC.queries
    KEYS: tl.constexpr = SPEC.keys
    NUM_TOKENS: tl.constexpr = SPEC.window_h * SPEC.window_w
    ACROSS: tl.constexpr = (NUM_TOKENS + KEYS - 1) // KEYS
    TILES: tl.constexpr = ACROSS * ((NUM_TOKENS + QUERIES - 1) // QUERIES)
    program = tl.program_id(0)
    head = program // TILES % SPEC.heads
    # A program owns one tile of the N x N bias of one head.
    place = program % TILES
    queries = place // ACROSS * QUERIES + tl.arange(0, QUERIES)
    keys = place % ACROSS * KEYS + tl.arange(0, KEYS)
    factor = read_scale(temperature, head, scale, SPEC)
    # Float32 sum over windows in a fixed order; no atomics.
    summed = tl.zeros((QUERIES, KEYS), tl.float32)
    for window in tl.range(program // (TILES * SPEC.heads), windows, slots, num_stages=SPEC.stages):
        tile, region = locate(window, queries, height, width, SPEC)
        q, _ = read_query_or_key(qkv, fill, tile, 0, head, SPEC)
        g = read_gradient(grad, tile, head, SPEC)
        _, v, _, scores = meet(
            qkv, fill, bias, window, head, q, queries, region, keys, factor * LOG2E,
            height, width, SPEC,
        )  # fmt: skip
        rows = (window * SPEC.heads + head).to(tl.int64) * NUM_TOKENS
        peak = tl.load(peaks + rows + queries, mask=tile[2], other=float("inf"))
        mean = tl.load(means + rows + queries, mask=tile[2], other=0.0)
        _, grad_scores = _back_to_scores(scores, peak, mean, v, g, SPEC)
        summed += grad_scores
    store_pairs(sums_bias, summed, program // TILES, queries, keys, SPEC)


@no_type_check
@triton.jit
def _back_to_scores(scores, peak, mean, v, g, SPEC: tl.constexpr):
    """Give the weights of a tile of pairs, and the gradient of its scores."""
    weights = tl.exp2(scores - peak[:, None])
    grad_weights = tl.dot(g, tl.trans(v), input_precision=SPEC.precision)
    # Softmax backward: dS = W * (dW - rowsum(W * dW)).
    return weights, weights * (grad_weights - mean[:, None])
