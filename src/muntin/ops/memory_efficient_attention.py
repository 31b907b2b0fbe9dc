# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Window attention with its gradient written out: one copy in, one copy out, and little kept.

Letters: B images, h heads, d width of a head, nW windows of an image, N tokens of a window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muntin.ops.windows import WindowLayout, add_mask, cut_heads, join_heads, sum_padding

__all__ = ["attend"]


def attend(
    qkv: Tensor, bias: Tensor, layout: WindowLayout, scale: float, fill: Tensor | None
) -> Tensor:
    """A back end of `window_attention`, without dropout."""
    out: Tensor = _MemoryEfficientAttention.apply(qkv, bias, fill, layout, scale)
    return out


def _weigh(parts: Tensor, bias: Tensor, layout: WindowLayout, scale: float) -> Tensor:
    """How much each token takes of each: B*nW*h, N, N."""
    q, k, v = parts.flatten(1, 3).unbind(0)  # B*nW*h, N, d each
    products = (q @ k.transpose(1, 2)).view(*parts.shape[1:5], -1)  # B, nW, h, N, N
    scores = torch.add(add_mask(bias, layout), products, alpha=scale)
    return scores.softmax(dim=-1).to(v.dtype).flatten(0, 2)


class _MemoryEfficientAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        qkv: Tensor,
        bias: Tensor,
        fill: Tensor | None,
        layout: WindowLayout,
        scale: float,
    ) -> Tensor:
        heads = bias.shape[0]
        parts = cut_heads(qkv, layout, 3, heads, fill)  # 3, B, nW, h, N, d
        v = parts[2].flatten(0, 2)  # B*nW*h, N, d
        weights = _weigh(parts, bias, layout, scale)
        ctx.save_for_backward(parts, bias)
        ctx.layout, ctx.scale, ctx.fills = layout, scale, fill is not None
        ctx.bias_dtype = bias.dtype
        return join_heads((weights @ v).view(1, *parts.shape[1:]), layout)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        (grad,) = grads
        layout: WindowLayout = ctx.layout
        parts, bias = ctx.saved_tensors
        weights = _weigh(parts, bias, layout, ctx.scale)
        heads = parts.shape[3]
        q, k, v = parts.flatten(1, 3).unbind(0)
        grad_out = cut_heads(grad, layout, 1, heads, None).flatten(0, 3)  # B*nW*h, N, d
        grad_parts = parts.new_empty(parts.shape)
        dq, dk, dv = grad_parts.flatten(1, 3).unbind(0)
        torch.bmm(weights.transpose(1, 2), grad_out, out=dv)
        grad_weights = grad_out @ v.transpose(1, 2)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        by_window = grad_scores.view(*parts.shape[1:5], -1)  # B, nW, h, N, N
        grad_bias = by_window.sum(dim=(0, 1), dtype=ctx.bias_dtype)
        grad_scores.mul_(ctx.scale)
        torch.bmm(grad_scores, k, out=dq)
        torch.bmm(grad_scores.transpose(1, 2), q, out=dk)
        grad_fill = sum_padding(grad_parts, layout) if ctx.fills and any(layout.pad) else None
        return join_heads(grad_parts, layout), grad_bias, grad_fill, None, None
