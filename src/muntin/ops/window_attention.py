# SPDX-License-Identifier: Apache-2.0
"""Window attention: one function, several equivalent back ends.

Letters: B images, H and W sides of the map in tokens, C channels, h heads, d width of a head, nW
windows of an image, N tokens of a window.

`window_attention` reads the map as the qkv projection leaves it and writes the map as the output
projection reads it, so a back end can fuse shift, partition, bias, mask, softmax and the reversal:

- `reference` is the definition;
- `sdpa` calls PyTorch's fused attention;
- `lean` is for a CPU, where copies take longer than products: a cyclic shift is two copies, heads
  are a third. Here one gather of rows does all of that in each direction. What needs no gradient
  goes to PyTorch's fused attention; in training the backward pass is explicit, and gradients are
  written where they belong;
- `fused` (`triton/window_*.py`) is one Triton kernel.

A new back end is a function with the same arguments and a row in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import is_tracing

from muntin.batch_rows import drop_rows
from muntin.errors import ConfigError, ShapeError, unknown_name
from muntin.ops.dot_attention import attend, differentiate_by, is_recorded, is_transformed
from muntin.ops.triton import window_support
from muntin.ops.windows import WindowLayout, add_mask, cut_heads, join_heads, window_order
from muntin.shapes import Float

BackendName = Literal["auto", "reference", "sdpa", "lean", "fused"]


def window_attention(
    qkv: Float[Tensor, "B H W C3"],
    bias: Float[Tensor, "h N N"],
    layout: WindowLayout,
    *,
    scale: float,
    fill: Float[Tensor, " C3"] | None = None,
    temperature: Float[Tensor, "h 1 1"] | None = None,
    dropout: float = 0.0,
    backend: BackendName = "auto",
) -> Float[Tensor, "B H W C"]:
    """Multi-head self-attention inside the windows of a map, before the output projection.

    `qkv` holds queries, keys and values in this order, each split into heads; `scale` is the factor
    of the queries, 1/sqrt(d) in the paper. `fill` is `qkv` at padded tokens: the bias of the
    projection, since published systems pad its input with zeros and attend to padded tokens;
    default: zeros. With `temperature`, attention is by cosines (Swin V2): queries and keys are
    L2-normalised per head, `fill` included, and queries are multiplied by it.

    "auto" selects the fastest back end that applies: on a GPU in half precision "fused", unless the
    environment variable MUNTIN_FUSED is 0 at the first call. Exported graphs use "reference"
    instead of "fused". One that is unknown, or cannot run here, is a `ConfigError`.

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
            f"got {tuple(qkv.shape)}. Create the layout for this map size."
        )
        raise ShapeError(message)
    if backend == "auto":
        backend = _choose(qkv, bias, layout, dropout)
    elif backend == "fused" and (torch.compiler.is_exporting() or is_transformed()):
        backend = "reference"
    # The kernel normalises queries and keys itself, with their lengths in registers.
    if backend == "fused":
        return _fused(qkv, bias, layout, scale, fill, dropout, temperature)
    if temperature is not None:
        qkv = _normalise(qkv, temperature)
        fill = None if fill is None else _normalise(fill, temperature)
    return BACKENDS[backend](qkv, bias, layout, scale, fill, dropout)


def find_obstacle(qkv: Tensor, bias: Tensor, layout: WindowLayout, dropout: float = 0.0) -> str:
    """Return why "fused" cannot run this call of `window_attention`; empty if it can."""
    width = qkv.shape[3] // (3 * bias.shape[0])
    device = (qkv.device.type, qkv.device.index)
    return window_support.find_obstacle(device, qkv.dtype, width, int(layout.num_tokens), dropout)


def _choose(qkv: Tensor, bias: Tensor, layout: WindowLayout, dropout: float) -> BackendName:
    """Select the back end of "auto"."""
    if is_tracing():
        return "reference"  # a trace is checked without gradients, and must be the same graph
    if qkv.device.type != "cpu":
        half = qkv.is_cuda and qkv.dtype != torch.float32
        half = half and not (torch.compiler.is_exporting() or is_transformed())
        return "fused" if half and not find_obstacle(qkv, bias, layout, dropout) else "sdpa"
    if not is_recorded(qkv):
        return "lean"
    # On the CPU, SDPA is fused only when nothing needs a gradient.
    return "reference" if _learns(qkv, bias) else "sdpa"


def _learns(qkv: Tensor, bias: Tensor) -> bool:
    return torch.is_grad_enabled() and (qkv.requires_grad or bias.requires_grad)


def _normalise(
    qkv: Float[Tensor, "*map C3"], temperature: Float[Tensor, "h 1 1"]
) -> Float[Tensor, "*map C3"]:
    """L2-normalise queries and keys per head, and multiply queries by the temperature."""
    # Not unflatten, after which the older ONNX exporter takes the batch size for a constant.
    parts = qkv.reshape(*qkv.shape[:-1], 3, temperature.shape[0], -1)
    q, k, v = parts.unbind(-3)  # *map, h, d each
    q = F.normalize(q, dim=-1) * temperature[..., 0].to(q.dtype)
    return torch.stack([q, F.normalize(k, dim=-1), v], dim=-3).flatten(-3)


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
    scores = (q * scale) @ k.transpose(-2, -1) + add_mask(bias, layout)  # B, nW, h, N, N
    weights = scores.softmax(dim=-1).to(v.dtype)
    if dropout:
        weights = drop_rows(partial(F.dropout, p=dropout), weights)
    return join_heads((weights @ v)[None], layout)


def _sdpa(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
    ways: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (cut_heads, join_heads),
) -> Tensor:
    (cut, join), heads = ways, bias.shape[0]
    # Windows become heads: bias + mask is then one matrix per "head", broadcast over images
    # instead of copied.
    parts = cut(qkv, layout, 3, heads, fill).flatten(2, 3)  # 3, B, nW*h, N, d
    q, k, v = parts.unbind(0)
    added = add_mask(bias, layout).expand(layout.num_windows, -1, -1, -1)  # nW, h, N, N
    added = added.flatten(0, 1).to(q.dtype)  # nW*h, N, N
    out = attend(q, k, v, added[None], dropout=dropout, scale=scale)
    return join(out.unflatten(1, (layout.num_windows, heads))[None], layout)


def _lean(qkv: Tensor, bias: Tensor, layout: WindowLayout, *others: Any) -> Tensor:
    scale, fill, dropout = others
    if dropout or is_recorded(qkv):  # not covered by the explicit gradient
        return _reference(qkv, bias, layout, scale, fill, dropout)
    if _learns(qkv, bias):
        out: Tensor = _ExplicitAttention.apply(qkv, bias, fill, layout, scale)[0]
        return out
    return _sdpa(qkv, bias, layout, scale, fill, dropout, (_cut, _join))


def _fused(
    qkv: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    scale: float,
    fill: Tensor | None,
    dropout: float,
    temperature: Tensor | None = None,
) -> Tensor:
    obstacle = find_obstacle(qkv, bias, layout, dropout)
    if obstacle:
        message = f'{obstacle}, for attention="fused". Use "auto" instead.'
        raise ConfigError(message)
    geometry = [*layout.size, *layout.window, *layout.shift, *layout.pad, int(layout.pad_first)]
    tensors = (qkv, bias, fill, temperature)
    out: Tensor = torch.ops.muntin.window_attention(*tensors, geometry, scale)
    if is_recorded(qkv) or out.grad_fn is None:
        return out
    return differentiate_by(partial(_compute_plainly, layout, scale), out, *tensors)


def _compute_plainly(
    layout: WindowLayout, scale: float, qkv: Tensor, bias: Tensor, *others: Tensor | None
) -> Tensor:
    return window_attention(
        qkv, bias, layout, scale=scale, fill=others[0], temperature=others[1], backend="reference"
    )


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "reference": _reference,
    "sdpa": _sdpa,
    "lean": _lean,
    "fused": _fused,
}


class _ExplicitAttention(torch.autograd.Function):
    """The formula of the reference; saves queries, keys, values and attention weights.

    These are outputs too, so that a gradient with a graph of its own depends on them.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        qkv: Tensor,
        bias: Tensor,
        fill: Tensor | None,
        layout: WindowLayout,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        parts = _cut(qkv, layout, 3, bias.shape[0], fill).contiguous()
        q, k, v = parts.flatten(1, 3).unbind(0)  # B*nW*h, N, d each
        shape = (*parts.shape[1:5], -1)  # B, nW, h, N, N
        if bias.dtype == qkv.dtype:
            # One product that starts from the bias: no further pass over the scores.
            added = (add_mask(bias, layout) / scale).expand(*shape[:3], -1, -1)
            scores = added.flatten(0, 2).contiguous()  # of one head it would share its memory
            scores.baddbmm_(q, k.transpose(1, 2), beta=scale, alpha=scale)
        else:
            # Half precision: scores are summed, and their softmax is computed, in that of the bias.
            products = (q @ k.transpose(1, 2)).view(shape)
            scores = torch.add(add_mask(bias, layout), products, alpha=scale).flatten(0, 2)
        _silence(scores.view(shape), layout)
        weights = scores.softmax(dim=-1).to(v.dtype)
        ctx.save_for_backward(parts, weights)
        ctx.layout, ctx.scale, ctx.bias_dtype = layout, scale, bias.dtype
        ctx.fills = fill is not None and any(layout.pad)
        ctx.set_materialize_grads(False)
        out = _join((weights @ v).view(1, *parts.shape[1:]), layout)
        return out, parts, weights

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        layout: WindowLayout = ctx.layout
        parts, weights = ctx.saved_tensors
        of_out, of_parts, of_weights = grads
        q, k, v = parts.flatten(1, 3).unbind(0)
        if of_out is None:
            of_out = parts.new_zeros(parts.shape[1], *layout.size, parts.shape[3] * parts.shape[5])
        grad_out = _cut(of_out, layout, 1, parts.shape[3], None)
        grad_out = grad_out.flatten(0, 3)  # B*nW*h, N, d
        grad_weights = grad_out @ v.transpose(1, 2)
        if of_weights is not None:
            grad_weights = grad_weights + of_weights
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        by_window = grad_scores.view(*parts.shape[1:5], -1)  # B, nW, h, N, N
        grad_bias = by_window.sum(dim=(0, 1), dtype=ctx.bias_dtype)
        products = (
            (grad_scores, k, ctx.scale),
            (grad_scores.transpose(1, 2), q, ctx.scale),
            (weights.transpose(1, 2), grad_out, 1.0),
        )
        if torch.is_grad_enabled() or of_parts is not None:
            stacked = torch.stack([factor * (one @ other) for one, other, factor in products])
            grad_parts = stacked.view_as(parts) + (0 if of_parts is None else of_parts)
        else:
            # In place: no copy of three gradients into one, but no second derivative either.
            grad_parts = torch.empty_like(parts)
            for place, (one, other, factor) in zip(grad_parts.flatten(1, 3), products, strict=True):
                torch.baddbmm(place, one, other, beta=0, alpha=factor, out=place)
        grad_fill = None
        if ctx.fills:
            grad_fill = _by_token(grad_parts)[window_order(layout) < 0].sum((0, 2)).flatten()
        return _join(grad_parts, layout), grad_bias, grad_fill, None, None


def _silence(scores: Float[Tensor, "B nW h N N"], layout: WindowLayout) -> None:
    """Let weights of masked pairs be zero, in place, where they would be below 1e-34.

    exp(-100) is a subnormal number, with which some processors compute a hundred times as slowly.
    """
    rows, columns = layout.grid
    by_row = scores.unflatten(1, (rows, columns))
    # Only the last windows of an axis are masked.
    for masked in (by_row[:, -1], by_row[:, :-1, -1]) if any(layout.shift) else ():
        masked -= masked.amax(dim=-1, keepdim=True)
        masked.masked_fill_(masked <= -80.0, -torch.inf)


def _cut(
    x: Float[Tensor, "B H W C"],
    layout: WindowLayout,
    parts: int,
    heads: int,
    fill: Float[Tensor, " C"] | None,
) -> Float[Tensor, "parts B nW h N d"]:
    """`cut_heads` in one gather of rows of d numbers; a view where one window is the map."""
    (batch, height, width), size = x.shape[:3], x.shape[3] // (parts * heads)
    if layout.num_windows == 1 and not any((*layout.shift, *layout.pad)):
        whole = x.reshape(batch, 1, height * width, parts, heads, size)
        return whole.permute(3, 0, 1, 4, 2, 5)
    count = partial(torch.arange, dtype=torch.int32)
    order = window_order(layout)
    # Rows are ordered by image, token, part and head. The index is made of small ones by addition,
    # so that it costs as little as one that is kept; at first any row will do for padding.
    tokens = order.int().clamp(min=0).unsqueeze(1)  # nW, 1, N
    tokens = tokens + count(batch).view(-1, 1, 1, 1) * (height * width)  # B, nW, 1, N
    rows = tokens * parts + count(parts).view(-1, 1, 1, 1, 1)  # parts, B, nW, 1, N
    rows = rows * heads + count(heads).view(-1, 1)  # parts, B, nW, h, N
    windows = x.reshape(-1, size).index_select(0, rows.flatten()).view(*rows.shape, size)
    if any(layout.pad):
        rest = (
            windows.new_zeros(()) if fill is None else fill.to(x.dtype).view(parts, 1, heads, size)
        )
        _by_token(windows)[order < 0] = rest
    return windows


def _join(
    windows: Float[Tensor, "parts B nW h N d"], layout: WindowLayout
) -> Float[Tensor, "B H W C"]:
    """Inverse of `_cut`, from windows that lie in memory in any order without gaps."""
    parts, batch, _, heads, _, width = windows.shape
    channels = parts * heads * width
    if layout.num_windows == 1 and not any((*layout.shift, *layout.pad)):
        return windows.permute(1, 2, 4, 0, 3, 5).reshape(batch, *layout.size, channels)
    count = partial(torch.arange, dtype=torch.int32)
    of_part, of_image, of_window, of_head, of_token = (
        count(size).mul_(stride // width)
        for size, stride in zip(windows.shape[:5], windows.stride(), strict=False)
    )
    order = window_order(layout)
    known = order >= 0
    tokens = count(layout.size[0] * layout.size[1])
    tokens[order[known]] = (of_window[:, None] + of_token)[known]
    rows = of_image.view(-1, 1, 1, 1) + tokens.view(-1, 1, 1)  # B, H*W, 1, 1
    rows = rows + (of_part[:, None] + of_head)  # B, H*W, parts, h
    flat = windows.as_strided((windows.numel() // width, width), (width, 1))
    return flat.index_select(0, rows.flatten()).view(batch, *layout.size, channels)


def _by_token(windows: Float[Tensor, "parts B nW h N d"]) -> Float[Tensor, "nW N parts B h d"]:
    return windows.permute(2, 4, 0, 1, 3, 5)
