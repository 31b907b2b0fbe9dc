# SPDX-License-Identifier: Apache-2.0
"""Layers whose outputs do not depend on what else is in a batch, to the bit.

On a CPU, PyTorch multiplies few rows by other kernels than many, and convolves a single small image
by another one than several; they add in another order. Such an input is computed several times in
one batch, which costs little as it is small, so that an image alone has the bits that it has among
others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing

_SMALL_CONVOLUTION = 20_480
"""Elements up to which PyTorch convolves a batch of one without oneDNN (Convolution.cpp)."""

_MANY_ROWS = 16
"""Rows from which MKL's product of matrices is the same for any number of them."""


def make_batch_invariant(network: nn.Module) -> None:
    """Let the layers of a network give an input the same bits alone as in a batch, in inference.

    Gradients, recorded graphs and other devices are left as they are.
    """
    for layer in network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            # Not hooks: two of them cost a small layer more than its product.
            vars(layer)["forward"] = partial(_forward, layer)


def _forward(layer: nn.Module, *given: Any, **named: Any) -> Tensor:
    plain: Callable[..., Tensor] = type(layer).forward
    times = 1 if len(given) != 1 or named else _count_copies(layer, given[0])
    if times == 1:
        return plain(layer, *given, **named)
    # Unlike `expand`, this has the strides of several, also with channels last.
    return plain(layer, torch.cat([given[0]] * times))[: len(given[0])]


def _count_copies(layer: nn.Module, rows: Tensor) -> int:
    """How often an input is computed, so that it is no small one."""
    if isinstance(layer, nn.Linear):
        times = -(-_MANY_ROWS * layer.in_features // max(rows.numel(), 1))
    else:
        times = 1 + (len(rows) == 1 and rows.numel() <= _SMALL_CONVOLUTION)
    if times == 1 or rows.device.type != "cpu" or not rows.numel() or torch.is_grad_enabled():
        return 1
    return 1 if torch.compiler.is_compiling() or is_tracing() else times
