# SPDX-License-Identifier: Apache-2.0
"""Layers whose outputs do not depend on what else is in a batch, to the bit.

On a CPU, PyTorch multiplies a single row by another kernel than several, and convolves a single
small image by another one than several; both add in another order. Such an input is computed twice
in one batch, which costs little as it is small, so that an image alone has the bits that it has
among others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing

_SMALL_CONVOLUTION = 20_480
"""Elements up to which PyTorch convolves a batch of one without oneDNN (Convolution.cpp)."""

_MARK = "muntin_repeated"


def make_batch_invariant(network: nn.Module) -> None:
    """Let the layers of a network give an input the same bits alone as in a batch, in inference.

    Gradients, recorded graphs and other devices are left as they are.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_pre_hook(_repeat)
            layer.register_forward_hook(_take_first)


def _repeat(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    rows = given[0]
    if len(given) != 1 or not isinstance(rows, Tensor) or not rows.dim() or len(rows) != 1:
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_tracing():
        return None
    largest = layer.in_features if isinstance(layer, nn.Linear) else _SMALL_CONVOLUTION
    if rows.device.type != "cpu" or rows.numel() > largest:
        return None
    # Unlike `expand`, this has the strides of several, also with channels last.
    twice = torch.cat((rows, rows))
    setattr(twice, _MARK, True)
    return (twice,)


def _take_first(layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
    return output[:1] if given and getattr(given[0], _MARK, False) else None
