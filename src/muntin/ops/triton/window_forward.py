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
    grow,
    locate,
    meet,
    read_bias,
    read_part,
    read_query_or_key,
    read_scale,
    score,
    store_part,
    take_tile,
)


@no_type_check
@triton.jit(do_not_specialize=["windows", "slots", "height", "width"])
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
    scale,
    SPEC: tl.constexpr,
):
    """Write the output of the windows slot, slot + slots, ... for one head."""
    program = tl.program_id(0)
    head = program % SPEC.heads
    tokens = tl.arange(0, SPEC.block)
    added = read_bias(bias, head, tokens, tokens, SPEC)
    # Base 2: exp2 is one instruction, exp is two.
    factor = read_scale(temperature, head, scale * LOG2E, SPEC)
    for window in tl.range(program // SPEC.heads, windows, slots, num_stages=SPEC.stages):
        tile, region = locate(window, tokens, height, width, SPEC)
        q, _ = read_query_or_key(qkv, fill, tile, 0, head, SPEC)
        k, _ = read_query_or_key(qkv, fill, tile, 1, head, SPEC)
        v = read_part(qkv, fill, tile, 2, head, SPEC)
        _, scores = score(q, k, added, region, region, factor, SPEC)
        # Subtract the maximum of the row: no overflow.
        weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
        total = tl.sum(weights, 1)
        # Normalised after the product: N x d divisions instead of N x N.
        result = tl.dot(weights.to(v.dtype), v, input_precision=SPEC.precision) / total[:, None]
        store_part(out, result, tile, 0, head, 1, SPEC)


@no_type_check
@triton.jit(do_not_specialize=["height", "width"])
def attend_tiled(
    qkv,
    bias,
    fill,
    temperature,
    out,
    height,
    width,
    scale,
    SPEC: tl.constexpr,
):
    """Write the output of a tile of queries of one window for one head."""
    # Triton 3.6 takes shapes of constants only, not of fields.
    QUERIES: tl.constexpr = SPEC.queries
    HEAD_DIM: tl.constexpr = SPEC.head_dim
    NUM_TOKENS: tl.constexpr = SPEC.window_h * SPEC.window_w
    head, window, queries = take_tile(QUERIES, SPEC)
    tile, region = locate(window, queries, height, width, SPEC)
    q, _length = read_query_or_key(qkv, fill, tile, 0, head, SPEC)
    factor = read_scale(temperature, head, scale * LOG2E, SPEC)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    result = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    for start in tl.range(0, NUM_TOKENS, SPEC.keys, num_stages=SPEC.stages):
        keys = start + tl.arange(0, SPEC.keys)
        _, v, _, scores = meet(
            qkv, fill, bias, window, head, q, queries, region, keys, factor,
            height, width, SPEC,
        )  # fmt: skip
        largest, weights, shrink = grow(largest, scores)
        total = total * shrink + tl.sum(weights, 1)
        result = result * shrink[:, None]
        result += tl.dot(weights.to(v.dtype), v, input_precision=SPEC.precision)
    store_part(out, result / total[:, None], tile, 0, head, 1, SPEC)
