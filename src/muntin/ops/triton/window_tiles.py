# SPDX-License-Identifier: Apache-2.0
"""What the kernels of window attention share: where tokens lie, how they are read, what they score.

Roll, padding and cut are arithmetic on the numbers of tokens; nothing is copied for them. A tile
holds tokens of one window, of one head; its size is a power of two and may go beyond the N tokens
of the window. A token is `real` when the window has it, and `inside` when the map has it too: what
is real and not inside is padding.

Between functions, a tile is a tuple: the first number of its image in a map of C channels, the
number of each token in the image, `real` and `inside`.

Scores are logits times log2(e), so that the softmax is powers of two.

Letters: H and W sides of the map, C channels, N tokens of a window, h heads, d width of a head.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

from muntin.ops.windows import MASKED

LOG2E = tl.constexpr(1.4426950408889634)
_MASKED_LOG2 = tl.constexpr(MASKED * 1.4426950408889634)
_EPS = tl.constexpr(1e-12)  # as torch.nn.functional.normalize


@no_type_check
@triton.jit
def take_tile(SIZE: tl.constexpr, SPEC: tl.constexpr):
    """Head, window and tokens of this program, one of those that share a window's tokens."""
    TILES: tl.constexpr = (SPEC.window_h * SPEC.window_w + SIZE - 1) // SIZE
    program = tl.program_id(0)
    head = program // TILES % SPEC.heads
    window = program // (TILES * SPEC.heads)
    return head, window, program % TILES * SIZE + tl.arange(0, SIZE)


@no_type_check
@triton.jit
def locate(window, tokens, height, width, SPEC: tl.constexpr):
    """Find tokens of a window in the map.

    Returns the tile, and which region each token is of: regions do not attend to each other. The
    number of a token that is not inside may be anything.
    """
    # Windows down and across, padding included.
    rows = tl.cdiv(height, SPEC.window_h)
    columns = tl.cdiv(width, SPEC.window_w)
    image = window // (rows * columns)
    place = window % (rows * columns)
    y = place // columns * SPEC.window_h + tokens // SPEC.window_w
    x = place % columns * SPEC.window_w + tokens % SPEC.window_w
    real = tokens < SPEC.window_h * SPEC.window_w
    region = tokens * 0
    # Padding after the roll is decided before y and x are rolled back.
    mapped = (y < height) & (x < width)
    if SPEC.shift_h or SPEC.shift_w:
        bottom = rows * SPEC.window_h
        right = columns * SPEC.window_w
        # Same regions as `muntin.ops.windows.shift_mask`.
        region = (y >= bottom - SPEC.shift_h).to(tl.int32) * 2 + (x >= right - SPEC.shift_w).to(
            tl.int32
        )
        if not SPEC.pad_first:  # the map was rolled before it was padded
            bottom = height
            right = width
        y += SPEC.shift_h % bottom
        x += SPEC.shift_w % right
        # y - shift modulo the side, without a division.
        y = tl.where(y >= bottom, y - bottom, y)
        x = tl.where(x >= right, x - right, x)
        if SPEC.pad_first:
            mapped = (y < height) & (x < width)
    # int64: offsets of large batches pass 2**31.
    first = image.to(tl.int64) * height * width * (SPEC.heads * SPEC.head_dim)
    return (first, y * width + x, real, real & mapped), region


@no_type_check
@triton.jit
def read_part(qkv, fill, tile, part, head, SPEC: tl.constexpr):
    """Read queries (part 0), keys (1) or values (2) of a tile: BLOCK, d.

    Padded tokens hold `fill` where there is padding to fill, else zeros.
    """
    _, _, real, inside = tile
    pointers, channels = _address(qkv, tile, part, head, 3, SPEC)
    x = tl.load(pointers, mask=inside[:, None], other=0.0)
    if SPEC.filled:
        values = tl.load(fill + channels).to(x.dtype)
        # Padded tokens hold the bias of the qkv projection.
        x = tl.where((real & (inside == 0))[:, None], values[None, :], x)
    return x


@no_type_check
@triton.jit
def _address(base, tile, part, head, PARTS: tl.constexpr, SPEC: tl.constexpr):
    """Give pointers to one of the parts of a map, BLOCK, d, and the channels: d."""
    first, token, _, _ = tile
    # Channel order of qkv: part, head, d.
    channels = (part * SPEC.heads + head) * SPEC.head_dim + tl.arange(0, SPEC.head_dim)
    offsets = token.to(tl.int64) * (PARTS * SPEC.heads * SPEC.head_dim)
    return base + first * PARTS + offsets[:, None] + channels[None, :], channels


@no_type_check
@triton.jit
def read_query_or_key(qkv, fill, tile, part, head, SPEC: tl.constexpr):
    """Read queries (part 0) or keys (1), brought to length 1 for cosines; their lengths too."""
    x = read_part(qkv, fill, tile, part, head, SPEC)
    length = 1.0
    if SPEC.cosine:
        wide = x.to(tl.float32)
        length = tl.sqrt(tl.sum(wide * wide, 1))
        x = (wide / tl.maximum(length, _EPS)[:, None]).to(x.dtype)
    return x, length


@no_type_check
@triton.jit
def read_gradient(grad, tile, head, SPEC: tl.constexpr):
    """Read the gradient of the output, which has one part; zeros where tokens are not inside."""
    pointers, _ = _address(grad, tile, 0, head, 1, SPEC)
    return tl.load(pointers, mask=tile[3][:, None], other=0.0)


@no_type_check
@triton.jit
def read_scale(temperature, head, scale, SPEC: tl.constexpr):
    """Give what products are multiplied by: the scale, and the temperature of cosines."""
    if SPEC.cosine:
        scale *= tl.load(temperature + head).to(tl.float32)
    return scale


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
def read_bias(bias, head, queries, keys, SPEC: tl.constexpr):
    """Read the bias of a tile of pairs in units of scores; -inf for keys that are not real."""
    num_tokens = SPEC.window_h * SPEC.window_w
    there = (queries < num_tokens)[:, None] & (keys < num_tokens)[None, :]
    offsets = head * num_tokens * num_tokens + queries[:, None] * num_tokens + keys[None, :]
    # Base-2 logits, see the text above.
    values = tl.load(bias + offsets, mask=there, other=0.0).to(tl.float32) * LOG2E
    return tl.where((keys < num_tokens)[None, :], values, float("-inf"))


@no_type_check
@triton.jit
def score(q, k, bias, query_region, key_region, factor, SPEC: tl.constexpr):
    """Give the products of queries and keys, and the scores made of them: float32 both."""
    products = tl.dot(q, tl.trans(k), input_precision=SPEC.precision)
    scores = products * factor + bias
    if SPEC.shift_h or SPEC.shift_w:
        apart = query_region[:, None] != key_region[None, :]
        # -100 as in published models, not -inf: a fully masked row stays finite.
        scores += tl.where(apart, _MASKED_LOG2, 0.0)
    return products, scores


@no_type_check
@triton.jit
def grow(largest, scores):
    """Take a step of a running softmax (Milakov and Gimelshein 2018; FlashAttention).

    Returns the maximum of each row so far, weights relative to it, and what brings earlier sums to
    it.
    """
    # Every tile has a real key, so no row is all -inf.
    grown = tl.maximum(largest, tl.max(scores, 1))
    return grown, tl.exp2(scores - grown[:, None]), tl.exp2(largest - grown)


@no_type_check
@triton.jit
def meet(
    qkv,
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
    SPEC: tl.constexpr,
):
    """Read a tile of keys and values of a window; gives keys, values, products, scores."""
    tile, region = locate(window, keys, height, width, SPEC)
    k, _ = read_query_or_key(qkv, fill, tile, 1, head, SPEC)
    v = read_part(qkv, fill, tile, 2, head, SPEC)
    added = read_bias(bias, head, queries, keys, SPEC)
    products, scores = score(q, k, added, query_region, region, factor, SPEC)
    return k, v, products, scores


@no_type_check
@triton.jit
def store_part(target, values, tile, part, head, PARTS: tl.constexpr, SPEC: tl.constexpr):
    """Write queries (part 0), keys (1) or values (2) of a tile, or what belongs to them."""
    pointers, _ = _address(target, tile, part, head, PARTS, SPEC)
    tl.store(pointers, values.to(target.dtype.element_ty), mask=tile[3][:, None])


@no_type_check
@triton.jit
def store_pairs(sums, values, place, queries, keys, SPEC: tl.constexpr):
    """Write a tile of pairs to the matrix number `place` of `sums`."""
    num_tokens = SPEC.window_h * SPEC.window_w
    first = place.to(tl.int64) * (num_tokens * num_tokens)
    # Tiles may reach beyond the N tokens of a window.
    there = (queries < num_tokens)[:, None] & (keys < num_tokens)[None, :]
    pairs = queries[:, None] * num_tokens + keys[None, :]
    tl.store(sums + first + pairs, values, mask=there)


@no_type_check
@triton.jit
def sum_outside(values, tile):
    """Sum rows of padded tokens: they are copies of `fill`, so their gradients add up in it."""
    outside = (tile[2] & (tile[3] == 0))[:, None]
    return tl.sum(tl.where(outside, values, 0.0), 0)


@no_type_check
@triton.jit
def store_fill(sums, keys, values, slot, head, SPEC: tl.constexpr):
    """Write sums of keys and values of padded tokens: `sums` is slots, 2, h, d."""
    channels = head * SPEC.head_dim + tl.arange(0, SPEC.head_dim)
    target = sums + slot.to(tl.int64) * (2 * SPEC.heads * SPEC.head_dim) + channels
    tl.store(target, keys)
    tl.store(target + SPEC.heads * SPEC.head_dim, values)
