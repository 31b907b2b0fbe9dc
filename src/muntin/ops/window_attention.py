# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Window attention: one entry, several back ends that must agree.

Letters: B images, H and W sides of the map in tokens, C channels, h heads, d width of a head, nW
windows of an image, N tokens of a window.

The entry reads the map as the qkv projection leaves it and writes the map as the output
projection wants it, so a back end may do shift, cut, bias, mask, softmax and the way back in one
go. `reference` says what is meant; `sdpa` gives the same to PyTorch's fused attention; `lean` is
the formula with its gradient written out, which copies less and keeps less. A new back end is a
function with the same arguments and a row in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.errors import ConfigError, ShapeError, unknown_name
from muntin.ops.windows import WindowLayout, cut_heads, join_heads, shift_mask, sum_padding
from muntin.shapes import Float

__all__ = ["BACKENDS", "BackendName", "window_attention"]

BackendName = Literal["auto", "reference", "sdpa", "lean"]


def window_attention(
    qkv: Float[Tensor, "B H W C3"],
    bias: Float[Tensor, "h N N"],
    layout: WindowLayout,
    *,
    scale: float,
    fill: Float[Tensor, " C3"] | None = None,
    dropout: float = 0.0,
    backend: BackendName = "auto",
) -> Float[Tensor, "B H W C"]:
    """Multi-head self-attention inside the windows of a map.

    Args:
        qkv: Queries, keys and values of every token, in this order along the channels, each
            split into heads.
        bias: Relative position bias, logits added before the softmax; one matrix a head.
        layout: Where the windows lie; `layout.size` is (H, W).
        scale: Queries are multiplied by it, 1/sqrt(d) in the paper.
        fill: What `qkv` is at a padded token: the bias of the qkv projection, since published
            systems pad its input with zeros. Padded tokens are attended to, as they do. Zeros
            when left out.
        dropout: Probability of dropping an attention weight; 0 outside training.
        backend: "auto" takes the fastest one that qualifies.

    Returns:
        The values, averaged with the attention weights, of every token.

    Raises:
        ConfigError: `backend` is unknown.
        ShapeError: `qkv` is not the map of `layout`, or its channels do not split into heads.

    Source:
        Liu et al. 2021 (arXiv 2103.14030), section 3.2, equation 4. Compared with timm 1.0.31,
        torchvision 0.29.2 and transformers 5.23 in tests/parity/test_swin_parity.py.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(unknown_name("attention back end", backend, ["auto", *BACKENDS]))
    heads = bias.shape[0]
    if tuple(qkv.shape[1:3]) != layout.size or qkv.shape[3] % (3 * heads):
        message = (
            f"qkv must be B, {layout.size[0]}, {layout.size[1]}, 3*heads*d with heads={heads}, "
            f"got {tuple(qkv.shape)}. Lay out the windows for the map at hand."
        )
        raise ShapeError(message)
    run = BACKENDS[_choose(qkv, bias) if backend == "auto" else backend]
    return run(qkv, bias, layout, scale, fill, dropout)


def _choose(qkv: Tensor, bias: Tensor) -> str:
    """Pick a back end for "auto"."""
    # On the CPU, SDPA is fused only when nothing needs a gradient.
    learns = torch.is_grad_enabled() and (qkv.requires_grad or bias.requires_grad)
    if qkv.device.type != "cpu" or not learns:
        return "sdpa"
    return "reference" if torch.compiler.is_compiling() else "lean"


def _reference(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
) -> Tensor:
    heads = bias.shape[0]
    q, k, v = cut_heads(qkv, layout, 3, heads, fill).unbind(0)  # B, nW, h, N, d each
    scores = (q * scale) @ k.transpose(-2, -1) + _add_mask(bias, layout)  # B, nW, h, N, N
    weights = scores.softmax(dim=-1).to(v.dtype)
    if dropout:
        weights = F.dropout(weights, dropout)
    return join_heads((weights @ v)[None], layout)


def _sdpa(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
) -> Tensor:
    heads = bias.shape[0]
    # The windows of an image are shown as so many more heads: then bias + mask is one matrix a
    # "head" and is broadcast over the images, not copied for each.
    parts = cut_heads(qkv, layout, 3, heads, fill).flatten(2, 3)  # 3, B, nW*h, N, d
    q, k, v = parts.unbind(0)
    added = _add_mask(bias, layout).expand(layout.num_windows, -1, -1, -1)  # nW, h, N, N
    added = added.flatten(0, 1).to(q.dtype)  # nW*h, N, N
    out = F.scaled_dot_product_attention(q, k, v, added[None], dropout, scale=scale)
    return join_heads(out.unflatten(1, (layout.num_windows, heads))[None], layout)


def _lean(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
) -> Tensor:
    if dropout:
        return _reference(qkv, bias, layout, scale, fill, dropout)
    out: Tensor = _LeanAttention.apply(qkv, bias, fill, layout, scale)
    return out


def _add_mask(bias: Tensor, layout: WindowLayout) -> Float[Tensor, "nW h N N"]:
    """Bias plus shift mask; one window stands for all when nothing is shifted."""
    mask = shift_mask(layout, device=bias.device, dtype=bias.dtype)
    return bias[None] if mask is None else bias + mask[:, None]


def _weigh(parts: Tensor, bias: Tensor, layout: WindowLayout, scale: float) -> Tensor:
    """How much each token takes of each: B*nW*h, N, N."""
    q, k, v = parts.flatten(1, 3).unbind(0)  # B*nW*h, N, d each
    products = (q @ k.transpose(1, 2)).view(*parts.shape[1:5], -1)  # B, nW, h, N, N
    scores = torch.add(_add_mask(bias, layout), products, alpha=scale)
    return scores.softmax(dim=-1).to(v.dtype).flatten(0, 2)


class _LeanAttention(torch.autograd.Function):
    """The formula of `_reference`: one copy in, one copy out, and the same on the way back."""

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


BackEnd = Callable[[Tensor, Tensor, WindowLayout, float, Tensor | None, float], Tensor]

BACKENDS: dict[str, BackEnd] = {"reference": _reference, "sdpa": _sdpa, "lean": _lean}
