# SPDX-License-Identifier: Apache-2.0
"""Window attention with an explicit backward pass, for training on a CPU.

Autograd copies more than it computes here: a cyclic shift is two copies, heads are a third, and
gradients of queries, keys and values are stacked afterwards. Here one gather of rows does all of
that in each direction, and gradients are written where they belong.

Letters: B images, h heads, d width of a head, nW windows of an image, N tokens of a window.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from muntin.ops.windows import WindowLayout, add_mask, order_tokens, pad_map
from muntin.shapes import Float, Int


def attend(
    qkv: Tensor, bias: Tensor, layout: WindowLayout, scale: float, fill: Tensor | None
) -> Tensor:
    """A back end of `window_attention`, without dropout."""
    out: Tensor = _ExplicitAttention.apply(qkv, bias, fill, layout, scale)
    return out


class _ExplicitAttention(torch.autograd.Function):
    """The formula of the reference; saves queries, keys, values and attention weights."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        qkv: Tensor,
        bias: Tensor,
        fill: Tensor | None,
        layout: WindowLayout,
        scale: float,
    ) -> Tensor:
        parts = _cut(pad_map(qkv, layout.pad, fill), layout, 3, bias.shape[0])
        q, k, v = parts.flatten(1, 3).unbind(0)  # B*nW*h, N, d each
        shape = (*parts.shape[1:5], -1)  # B, nW, h, N, N
        if bias.dtype == qkv.dtype:
            # One product that starts from the bias: no further pass over the scores.
            added = (add_mask(bias, layout) / scale).expand(*shape[:3], -1, -1).flatten(0, 2)
            scores = torch.baddbmm(added, q, k.transpose(1, 2), beta=scale, alpha=scale)
        else:
            # Half precision: scores are summed, and their softmax is computed, in that of the bias.
            products = (q @ k.transpose(1, 2)).view(shape)
            scores = torch.add(add_mask(bias, layout), products, alpha=scale).flatten(0, 2)
        weights = scores.softmax(dim=-1).to(v.dtype)
        ctx.save_for_backward(parts, weights)
        ctx.layout, ctx.scale, ctx.bias_dtype = layout, scale, bias.dtype
        ctx.fills = fill is not None and any(layout.pad)
        return _crop(_join((weights @ v).view(1, *parts.shape[1:]), layout), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        layout: WindowLayout = ctx.layout
        parts, weights = ctx.saved_tensors
        q, k, v = parts.flatten(1, 3).unbind(0)
        grad = pad_map(grads[0], layout.pad, None)
        grad_out = _cut(grad, layout, 1, parts.shape[3]).flatten(0, 3)  # B*nW*h, N, d
        grad_parts = torch.empty_like(parts)
        dq, dk, dv = grad_parts.flatten(1, 3).unbind(0)
        torch.bmm(weights.transpose(1, 2), grad_out, out=dv)
        grad_weights = grad_out @ v.transpose(1, 2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        by_window = grad_scores.view(*parts.shape[1:5], -1)  # B, nW, h, N, N
        grad_bias = by_window.sum(dim=(0, 1), dtype=ctx.bias_dtype)
        torch.baddbmm(dq, grad_scores, k, beta=0, alpha=ctx.scale, out=dq)
        torch.baddbmm(dk, grad_scores.transpose(1, 2), q, beta=0, alpha=ctx.scale, out=dk)
        grad_qkv = _join(grad_parts, layout)
        height, width = layout.size
        grad_fill = None
        if ctx.fills:
            grad_fill = grad_qkv[:, height:].sum((0, 1, 2))
            grad_fill = grad_fill + grad_qkv[:, :height, width:].sum((0, 1, 2))
        return _crop(grad_qkv, layout), grad_bias, grad_fill, None, None


def _cut(
    x: Float[Tensor, "B Hp Wp C"], layout: WindowLayout, parts: int, heads: int
) -> Float[Tensor, "parts B nW h N d"]:
    """`muntin.ops.windows.cut_heads` of a padded map, in one gather of rows of d numbers."""
    rows = x.reshape(-1, x.shape[3] // (parts * heads))
    index = _cut_index(layout, parts, len(x), heads, x.device)
    windows = rows.index_select(0, index)
    return windows.view(parts, len(x), layout.num_windows, heads, layout.num_tokens, -1)


def _join(
    windows: Float[Tensor, "parts B nW h N d"], layout: WindowLayout
) -> Float[Tensor, "B Hp Wp C"]:
    """Inverse of `_cut`."""
    parts, batch, _, heads, _, width = windows.shape
    index = _join_index(layout, parts, batch, heads, windows.device)
    rows = windows.view(-1, width).index_select(0, index)
    height, wide = (side + more for side, more in zip(layout.size, layout.pad, strict=True))
    return rows.view(batch, height, wide, parts * heads * width)


def _crop(x: Float[Tensor, "B Hp Wp C"], layout: WindowLayout) -> Float[Tensor, "B H W C"]:
    return x[:, : layout.size[0], : layout.size[1]]


# The indices depend on few numbers that repeat in every step; a row of them takes 4 bytes beside
# the 4 * d bytes of the row that it moves.
@lru_cache(maxsize=32)
def _cut_index(
    layout: WindowLayout, parts: int, batch: int, heads: int, device: torch.device
) -> Int[Tensor, " rows"]:
    """Row of the map, ordered B, token, part, head, for each row of the windows."""
    tokens = order_tokens(layout)  # nW, N
    image = torch.arange(batch).view(-1, 1, 1, 1) * tokens.numel()
    token = (image + tokens[:, None]) * parts * heads  # B, nW, 1, N
    part = torch.arange(parts).view(-1, 1, 1, 1, 1) * heads
    index = token + part + torch.arange(heads)[:, None]  # parts, B, nW, h, N
    return index.flatten().to(device, torch.int32)


@lru_cache(maxsize=32)
def _join_index(
    layout: WindowLayout, parts: int, batch: int, heads: int, device: torch.device
) -> Int[Tensor, " rows"]:
    """Row of the windows for each row of the map: inverse of `_cut_index`."""
    return _cut_index(layout, parts, batch, heads, device).argsort().to(torch.int32)
