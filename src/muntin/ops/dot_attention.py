# SPDX-License-Identifier: Apache-2.0
"""Scaled dot-product attention that can be traced, transformed and differentiated twice.

PyTorch's fused kernels, which training uses, have a first derivative only and none of the forward
mode. Where more is asked for, the plain formula takes their place.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.jit._trace import is_tracing
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

    Without dropout, derivatives of every order exist.
    """
    run: Callable[..., Tensor] = partial(
        F.scaled_dot_product_attention, dropout_p=dropout, scale=scale
    )

    def compute_plainly(*inputs: Tensor | None) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return run(*inputs)

    if is_transformed():
        return compute_plainly(q, k, v, bias)
    out = run(q, k, v, bias)
    if is_recorded(q) or out.grad_fn is None or dropout:
        return out
    # A fused kernel is one node of the graph, at its end or before a change of shape.
    nodes = (out.grad_fn, *(node for node, _ in out.grad_fn.next_functions if node is not None))
    fused = any(node.name().startswith("ScaledDotProduct") for node in nodes)
    return differentiate_by(compute_plainly, out, q, k, v, bias) if fused else out


def is_recorded(x: Tensor) -> bool:
    """Whether operations on `x` are recorded or transformed instead of only computed.

    Numbers read from it would become constants of a graph, and what is made must not be kept.
    """
    if torch.compiler.is_compiling() or is_tracing() or is_transformed():
        return True
    return x.is_meta or type(x) is not Tensor  # a subclass may hold no numbers (FakeTensor)


def is_transformed() -> bool:
    """Whether `torch.func` (vmap, grad, jvp) or forward-mode differentiation is at work."""
    if torch.compiler.is_compiling():
        return False
    forward_mode = torch.autograd.forward_ad._current_level >= 0
    return forward_mode or torch._C._are_functorch_transforms_active()


def differentiate_by(formula: Callable[..., Tensor], out: Tensor, *inputs: Tensor | None) -> Tensor:
    """Return `out`, which is ``formula(*inputs)`` computed with one derivative only.

    Its gradient is that of `out` or, if it must have a graph itself, that of the formula.
    """
    attached: Tensor = _Attention.apply(out, formula, *inputs)
    return attached


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, formula: Any, *inputs: Tensor | None) -> Tensor:  # noqa: ANN401 (autograd's own)
        ctx.formula = formula
        ctx.save_for_backward(*inputs)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # noqa: ANN401 (autograd's own)
        # Autograd enables gradients here only for create_graph=True.
        if not torch.is_grad_enabled():
            return grads[0], None, *(None for _ in ctx.saved_tensors)
        saved = ctx.saved_tensors
        given = [one for one in saved if one is not None]

        def compute(*given: Tensor) -> Any:  # noqa: ANN401 (of the formula)
            rest = iter(given)
            return ctx.formula(*(None if one is None else next(rest) for one in saved))

        slopes = iter(torch.func.vjp(compute, *given)[1](grads[0]))
        return None, None, *(None if one is None else next(slopes) for one in saved)
