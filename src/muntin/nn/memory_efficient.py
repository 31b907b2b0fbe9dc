# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Memory-efficient layers: cheap intermediate values are recomputed in the backward pass.

The plain formulas are at the call sites (`muntin.nn.linear_layers`, `muntin.nn.mlp`,
`muntin.nn.drop_path`); tests compare both. Gradients are exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.nn.token_slices import (
    Given,
    Sums,
    cast,
    cast_layers,
    cut_slices,
    multiply,
    normalise,
    place_rows,
)
from muntin.shapes import Bool, Float

__all__ = ["add_kept", "applies", "apply_in_chunks", "has_hooks", "norm_linear", "norm_mlp"]

CHUNK_TOKENS = 16384
"""Tokens per chunk of attention on a CPU, times bytes per value; whole images."""

WIDEST_RECOMPUTED = 96
"""Maximum input channels per byte of the dtype for which fc1 of an MLP is recomputed."""


def applies(x: Tensor, *layers: nn.Module | None) -> bool:
    """Whether the memory-efficient form applies: plain layers in training, without hooks.

    Args:
        x: Input of the layers.
        layers: `nn.LayerNorm` and `nn.Linear`, or their replacements (such as adapters).
    """
    # Compiled graphs plan their own recomputation; without gradients nothing is stored anyway.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.is_meta:
        return False
    # Slices depend on the number of tokens: a recorded graph must not.
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return all(
        layer is None
        or (
            type(layer) in (nn.Linear, nn.LayerNorm)
            and layer.training
            and not has_hooks(layer)
            and _normalises_channels(layer)
        )
        for layer in layers
    )


def has_hooks(layer: nn.Module) -> bool:
    """Whether the layer has hooks, which must see its inputs and outputs."""
    everyone = torch.nn.modules.module
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or everyone._global_forward_hooks
        or everyone._global_forward_pre_hooks
        or everyone._global_backward_hooks
        or everyone._global_backward_pre_hooks
    )


def _normalises_channels(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.LayerNorm) or (
        len(layer.normalized_shape) == 1 and layer.weight is not None
    )


def norm_linear(
    x: Float[Tensor, "*tokens C"], norm: nn.LayerNorm, linear: nn.Linear
) -> Float[Tensor, "*tokens Co"]:
    """Compute ``linear(norm(x))``, storing `x` only."""
    given = Given(norm.weight, norm.bias, linear.weight, linear.bias)
    out: Tensor = _NormLinear.apply(x, norm.eps, *given[:4])
    return out


def norm_mlp(
    x: Float[Tensor, "*tokens C"], norm: nn.LayerNorm | None, fc1: nn.Linear, fc2: nn.Linear
) -> Float[Tensor, "*tokens Co"]:
    """Compute ``fc2(gelu(fc1(norm(x))))``, storing `x` and, for wide layers, the output of `fc1`.

    For narrow layers recomputation in slices is faster: hidden values never leave the cache.
    """
    gamma, beta, eps = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    recompute = fc1.in_features <= WIDEST_RECOMPUTED * _dtype_of_products(x).itemsize
    given = Given(gamma, beta, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    out: Tensor = _NormMlp.apply(x, eps, recompute, *given)
    return out


def add_kept(
    x: Float[Tensor, "B *rest"],
    branch: Callable[[Tensor], Tensor],
    kept: Bool[Tensor, " B"],
    scale: float,
) -> Float[Tensor, "B *rest"]:
    """Add a scaled branch to some images, without computing it for the others.

    Args:
        x: Input of the branch and of the shortcut.
        branch: Processes images independently.
        kept: Images that keep the branch.
        scale: Factor of the branch.

    Returns:
        A new map. If no image keeps the branch, one is computed with factor 0, for the gradients.
    """
    index = kept.nonzero()[:, 0]
    if len(index) == len(kept):
        # No image was dropped: no gather, one fused multiply-add.
        return torch.add(x, branch(x), alpha=scale)
    if not len(index):
        # One branch with factor 0, so that its parameters get a zero gradient, not None.
        index, scale = kept.new_zeros(1, dtype=torch.long), 0.0
    part = branch(x.index_select(0, index))
    dtype = torch.promote_types(x.dtype, part.dtype)
    return x.to(dtype).index_add(0, index, part.to(dtype), alpha=scale)


def apply_in_chunks(
    branch: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B *rest"],
    *,
    max_tokens: int = CHUNK_TOKENS,
) -> Float[Tensor, "B *rest2"]:
    """Apply a branch to a few images at a time on a CPU.

    Stored activations are the same; temporary memory is smaller and stays in the cache.

    Args:
        branch: Processes images independently.
        x: Input of the branch.
        max_tokens: Tokens per chunk, times bytes per value.
    """
    if x.device.type != "cpu" or not applies(x):
        return branch(x)
    # Tokens of one image: everything but batch and channels.
    tokens = max(1, x[:1].numel() // max(x.shape[-1], 1))
    count = max(1, max_tokens // _dtype_of_products(x).itemsize // tokens)
    return branch(x) if count >= len(x) else torch.cat([branch(part) for part in x.split(count)])


def _dtype_of_products(x: Tensor) -> torch.dtype:
    """Dtype of a linear layer under the current autocast state."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


class _NormLinear(torch.autograd.Function):
    """Stores the input of the norm; autograd would store its output too."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        x: Tensor,
        eps: float,
        *parameters: Tensor | None,
    ) -> Tensor:
        given = Given(*parameters)  # type: ignore[arg-type]
        dtype = _dtype_of_products(x)
        ctx.save_for_backward(x, *parameters)
        ctx.eps, ctx.dtype = eps, dtype
        tokens = x.reshape(-1, x.shape[-1])
        # Types are chosen explicitly: autocast would cast each slice again.
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = given.weight.to(dtype), cast(given.bias, dtype)
            out = tokens.new_empty(len(tokens), len(weight), dtype=dtype)
            for rows in cut_slices(tokens, given.weight, ctx.dtype):
                multiply(normalise(tokens[rows], given, eps, dtype)[0], weight, bias, out[rows])
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        (grad,) = grads
        x, *parameters = ctx.saved_tensors
        given = Given(*parameters)
        if torch.is_grad_enabled():  # create_graph=True: second derivative
            plain = _differentiate(ctx, grad, x, parameters, (0, *range(2, 6)))
            return plain[0], None, *plain[1:]
        wants_x, _, *wanted = ctx.needs_input_grad
        sums = Sums(given, (*wanted, False, False))
        # *tokens, C -> N, C: all leading axes are one.
        tokens, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = torch.empty_like(tokens) if wants_x else None
        with torch.autocast(x.device.type, enabled=False):
            weight = given.weight.to(ctx.dtype)
            # Recompute the norm of a slice, then d(linear) and d(norm) while it is in the cache.
            for rows in cut_slices(tokens, given.weight, ctx.dtype):
                read = normalise(tokens[rows], given, ctx.eps, ctx.dtype)
                piece = grad[rows].to(ctx.dtype)
                sums.add_product(2, piece, read.normed)
                if wants_x or wanted[0] or wanted[1]:
                    found = sums.go_through_norm(piece @ weight, read, given, wants_x)
                    grad_x = place_rows(found, rows, grad_x)
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        return grad_x, None, *sums.finish(given)[:4]


class _NormMlp(torch.autograd.Function):
    """Stores the input of the norm and, unless recomputed, the output of fc1."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 (autograd's own)
        x: Tensor,
        eps: float,
        recompute: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        given = Given(*parameters)  # type: ignore[arg-type]
        dtype = _dtype_of_products(x)
        tokens = x.reshape(-1, x.shape[-1])
        # Wide layers store fc1(x): recomputing that product would cost more than the memory.
        keeps = not recompute and any(ctx.needs_input_grad)
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, weight2, bias2 = cast_layers(given, dtype)
            out = tokens.new_empty(len(tokens), len(weight2), dtype=dtype)
            # N, hidden or 0, hidden: an empty tensor when it is recomputed.
            hidden = tokens.new_empty(len(tokens) if keeps else 0, len(weight), dtype=dtype)
            for rows in cut_slices(tokens, given.weight, dtype):
                read = normalise(tokens[rows], given, eps, dtype).normed
                between = hidden[rows] if keeps else read.new_empty(len(read), len(weight))
                multiply(read, weight, bias, between)
                multiply(F.gelu(between), weight2, bias2, out[rows])
        ctx.save_for_backward(x, hidden, *parameters)
        ctx.eps, ctx.recompute, ctx.dtype = eps, recompute, dtype
        return out.view(*x.shape[:-1], len(weight2))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        (grad,) = grads
        x, hidden, *parameters = ctx.saved_tensors
        given, dtype = Given(*parameters), ctx.dtype
        if torch.is_grad_enabled():  # create_graph=True: second derivative
            plain = _differentiate(ctx, grad, x, parameters, (0, *range(3, 9)))
            return plain[0], None, None, *plain[1:]
        wants_x, _, _, *wanted = ctx.needs_input_grad
        sums = Sums(given, tuple(wanted))
        tokens, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = torch.empty_like(tokens) if wants_x else None
        with torch.autocast(x.device.type, enabled=False):
            weight, bias, weight2, _ = cast_layers(given, dtype)
            for rows in cut_slices(tokens, given.weight, dtype):
                read = normalise(tokens[rows], given, ctx.eps, dtype)
                # The input of GELU, stored or recomputed.
                between = F.linear(read.normed, weight, bias) if ctx.recompute else hidden[rows]
                piece = grad[rows].to(dtype)
                sums.add_product(4, piece, F.gelu(between))
                if not (wants_x or any(wanted[:4])):
                    continue
                # d fc2, then d GELU: N, C -> N, hidden.
                piece = torch.ops.aten.gelu_backward(piece @ weight2, between)
                sums.add_product(2, piece, read.normed)
                if wants_x or wanted[0] or wanted[1]:
                    found = sums.go_through_norm(piece @ weight, read, given, wants_x)
                    grad_x = place_rows(found, rows, grad_x)
        grad_x = None if grad_x is None else grad_x.view(x.shape)
        return grad_x, None, None, *sums.finish(given)


def _differentiate(
    ctx: Any,  # noqa: ANN401 (autograd's own)
    grad: Tensor,
    x: Tensor,
    parameters: list[Tensor | None],
    places: tuple[int, ...],
) -> list[Tensor | None]:
    """Gradients of `x` and the parameters by the plain formula, differentiable again."""
    given = Given(*parameters)  # type: ignore[arg-type]
    dtype = ctx.dtype
    with torch.autocast(x.device.type, enabled=False):
        read = x
        if given.gamma is not None:
            read = F.layer_norm(
                x.to(given.gamma.dtype), x.shape[-1:], given.gamma, given.beta, ctx.eps
            )
        out = F.linear(read.to(dtype), given.weight.to(dtype), cast(given.bias, dtype))
        if given.weight2 is not None:
            out = F.linear(F.gelu(out), given.weight2.to(dtype), cast(given.bias2, dtype))
        inputs = [x, *parameters]
        wanted = [
            one
            for one, place in zip(inputs, places, strict=True)
            if one is not None and ctx.needs_input_grad[place]
        ]
        found = iter(torch.autograd.grad(out, wanted, grad.to(dtype), create_graph=True))
    return [next(found) if ctx.needs_input_grad[place] else None for place in places]
