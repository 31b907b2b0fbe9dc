# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention that can be traced, transformed and differentiated twice.

PyTorch's fused kernels have a first derivative only, and none of the forward mode. Training uses
them; where more is asked for, the plain formula takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from muntin.shapes import Float


def attend(
    q: Float[Tensor, "*heads N d"],
    k: Float[Tensor, "*heads M d"],
    v: Float[Tensor, "*heads M e"],
    bias: Tensor | None = None,
    *,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Float[Tensor, "*heads N e"]:
    """Attend as `F.scaled_dot_product_attention` does; `bias` is added to the scores.

    Derivatives of every order exist, without dropout; so do `torch.func`'s transforms.
    """
    plain = partial(_attend_plainly, dropout=dropout, scale=scale)
    inputs = (q, k, v) if bias is None else (q, k, v, bias)
    if is_transformed():
        return plain(*inputs)
    out = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=scale)
    if is_recorded(q) or out.grad_fn is None or dropout:
        return out
    # A fused kernel is one node of the graph, at its end or before a change of shape.
    nodes = (out.grad_fn, *(node for node, _ in out.grad_fn.next_functions if node is not None))
    fused = any(node.name().startswith("ScaledDotProduct") for node in nodes)
    return differentiate_by(plain, out, *inputs) if fused else out


def _attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, **options: Any
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(
            q, k, v, bias, options["dropout"], scale=options["scale"]
        )


def is_recorded(x: Tensor) -> bool:
    """Whether operations are recorded or transformed instead of only computed.

    Numbers read from a tensor would then become constants of a graph, and a tensor that is made
    must not be kept for later calls.
    """
    compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    # A subclass of Tensor may hold no numbers (FakeTensor).
    return compiled or x.is_meta or type(x) is not Tensor or is_transformed()


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp) or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._are_functorch_transforms_active()


def differentiate_by(formula: Callable[..., Tensor], out: Tensor, *inputs: Tensor) -> Tensor:
    """Return `out`, equal to ``formula(*inputs)`` and computed with one derivative only.

    The first derivative stays that of `out`. With ``create_graph=True`` it is computed from the
    formula, so that it can be differentiated again.
    """
    attached: Tensor = _Attention.apply(out, formula, *inputs)
    return attached


class _Attention(torch.autograd.Function):
    """Identity, whose gradient goes to `out` or, if it must have a graph, to the inputs."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, formula: Callable[..., Tensor], *inputs: Tensor) -> Tensor:  # noqa: ANN401 (autograd's own)
        ctx.formula = formula
        ctx.save_for_backward(*inputs)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        inputs = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return grads[0], None, *[None for _ in inputs]
        _, pull = torch.func.vjp(ctx.formula, *inputs)
        return None, None, *pull(grads[0])
