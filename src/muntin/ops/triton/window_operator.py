# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The fused kernels of window attention as PyTorch operators.

`torch.ops.muntin.window_attention` is there once `register` has run. Its arguments are those of
`window_calls.WindowCall`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from muntin.errors import MuntinError
from muntin.ops.triton.window_calls import WindowCall

__all__ = ["register"]

# SymInt geometry: one compiled graph serves maps of any size.
_ARGUMENTS = (
    "Tensor qkv, Tensor bias, Tensor? fill, Tensor? temperature, SymInt[] geometry, float scale"
)


@functools.cache
def register() -> None:
    """Make `torch.ops.muntin.window_attention` known to PyTorch, with its gradient."""
    forward, backward = "muntin::window_attention", "muntin::window_attention_backward"
    tags = (torch.Tag.pt2_compliant_tag,)
    torch.library.define(forward, f"({_ARGUMENTS}) -> Tensor", tags=tags)
    torch.library.define(
        backward,
        f"(Tensor grad, {_ARGUMENTS}, bool learns_bias, bool learns_fill) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
        tags=tags,
    )
    for name, launch, fake in (
        (forward, _attend, _fake_attend),
        (backward, _attend_backward, _fake_attend_backward),
    ):
        # On a CPU, Triton's interpreter runs the kernels.
        torch.library.impl(name, ("cuda", "cpu"), launch)
        torch.library.register_fake(name, fake)
    torch.library.register_autograd(forward, _lead_back, setup_context=_keep)
    torch.library.register_autograd(backward, _refuse_second)


def _attend(*arguments: Any) -> Tensor:
    return WindowCall(*arguments).attend()


def _attend_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *inputs, learns_bias, learns_fill = arguments
    return WindowCall(*inputs).attend_backward(grad, learns_bias, learns_fill)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.geometry, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _lead_back(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    _, learns_bias, learns_fill, learns_temperature, *_ = ctx.needs_input_grad
    grads = torch.ops.muntin.window_attention_backward(
        grad, *ctx.saved_tensors, ctx.geometry, ctx.scale, learns_bias, learns_fill
    )
    # The operator returns empty tensors where nothing is wanted; autograd expects None.
    wanted = (True, learns_bias, learns_fill, learns_temperature)
    kept = [one if learns else None for one, learns in zip(grads, wanted, strict=True)]
    return (*kept, None, None)


def _refuse_second(ctx: Any, *grads: Tensor) -> None:
    message = (
        "fused window attention has a first derivative only, and a second one was asked for. "
        'Take attention="reference" in the config of the model.'
    )
    raise MuntinError(message)


def _fake_attend(qkv: Tensor, *others: Any) -> Tensor:
    return qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)


def _fake_attend_backward(
    grad: Tensor, qkv: Tensor, bias: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    fill, temperature, _, _, learns_bias, learns_fill = others
    return (
        qkv.new_empty(qkv.shape),
        bias.new_empty(bias.shape if learns_bias else 0),
        bias.new_empty(0) if fill is None or not learns_fill else fill.new_empty(fill.shape),
        bias.new_empty(0) if temperature is None else temperature.new_empty(temperature.shape),
    )
