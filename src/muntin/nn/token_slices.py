# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What layers that are computed slice by slice share: their parameters, slices and sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Given",
    "Read",
    "Sums",
    "cast",
    "cast_layers",
    "cut_slices",
    "multiply",
    "normalise",
    "place_rows",
]

SLICE_BYTES = 3 * 2**20
"""What a product gives a thread at a time on a CPU, so that it stays in its cache."""

SLICE_TOKENS_GPU = 2**17
"""Tokens that an MLP takes at a time on a GPU, where what is between would fill the memory."""


class Given(NamedTuple):
    """Parameters of a norm and what stands behind it; None where there is none.

    Attributes:
        gamma: Weight of the norm.
        beta: Its bias.
        weight: Of the (first) linear layer.
        bias: The same.
        weight2: Of the second.
        bias2: The same.
    """

    gamma: Tensor | None
    beta: Tensor | None
    weight: Tensor
    bias: Tensor | None
    weight2: Tensor | None = None
    bias2: Tensor | None = None


class Read(NamedTuple):
    """What a product reads, and what made it.

    Attributes:
        normed: In the precision of the product.
        part: What was normalised.
        mean: Of each token; None without a norm.
        rstd: One over the deviation, likewise.
    """

    normed: Tensor
    part: Tensor
    mean: Tensor | None = None
    rstd: Tensor | None = None


def normalise(part: Tensor, given: Given, eps: float, dtype: torch.dtype) -> Read:
    """Give what a product of this precision reads: normalised tokens, or plain ones."""
    if given.gamma is None:
        return Read(part.to(dtype), part)
    # Norms are computed in the type of their parameters, as nn.LayerNorm under autocast.
    part = part.to(given.gamma.dtype)
    channels = (part.shape[1],)
    normed, mean, rstd = torch.native_layer_norm(part, channels, given.gamma, given.beta, eps)
    return Read(normed.to(dtype), part, mean, rstd)


class Sums:
    """Gradients of parameters, added up over slices in the parameters' own precision."""

    def __init__(self, given: Given, wanted: tuple[bool, ...]) -> None:
        self.dtypes = [
            parameter.dtype if want and parameter is not None else None
            for parameter, want in zip(given, wanted, strict=True)
        ]
        self.totals: list[Tensor | None] = [None] * len(self.dtypes)

    def add(self, place: int, more: Tensor | None) -> None:
        """Add to the sum of the parameter at `place`, if it is wanted, or begin it."""
        dtype, total = self.dtypes[place], self.totals[place]
        if dtype is not None and more is not None:
            self.totals[place] = more.to(dtype) if total is None else total.add_(more)

    def add_product(self, place: int, grad: Tensor, read: Tensor) -> None:
        """Add to a weight (at `place`) and to the bias after it."""
        total, (dtype, dtype_bias) = self.totals[place], self.dtypes[place : place + 2]
        if total is not None and dtype == grad.dtype:
            # In place: no temporary of the size of the weight for each slice.
            total.addmm_(grad.t(), read)
        elif dtype is not None:
            self.add(place, grad.t() @ read)
        if dtype_bias is not None:
            self.add(place + 1, grad.sum(dim=0, dtype=dtype_bias))

    def finish(self, given: Given) -> list[Tensor | None]:
        """Give the sums; of what is wanted, zeros where there were no tokens."""
        return [
            torch.zeros_like(one) if one is not None and dtype and total is None else total
            for one, dtype, total in zip(given, self.dtypes, self.totals, strict=True)
        ]

    def go_through_norm(
        self, grad: Tensor, read: Read, given: Given, wants_x: bool
    ) -> Tensor | None:
        """Add to the norm's parameters, and give the gradient of what it read."""
        if given.gamma is None or read.mean is None or read.rstd is None:
            return grad
        part, channels = read.part, (read.part.shape[1],)
        mask = [wants_x, self.dtypes[0] is not None, self.dtypes[1] is not None]
        grad_part, gamma, beta = torch.ops.aten.native_layer_norm_backward(
            grad.to(part.dtype), part, channels, read.mean, read.rstd, given.gamma, given.beta, mask
        )
        self.add(0, gamma)
        self.add(1, beta)
        return grad_part if wants_x else None


def place_rows(found: Tensor | None, rows: slice, whole: Tensor | None) -> Tensor | None:
    """Put the gradient of some rows where it belongs; that of all rows is the whole."""
    if found is None or whole is None:
        return whole
    if len(found) == len(whole):
        return found.to(whole.dtype)
    # Written into the preallocated gradient: slices are never concatenated.
    whole[rows] = found
    return whole


def multiply(read: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write a linear layer's result to where it belongs."""
    if bias is None:
        torch.mm(read, weight.t(), out=out)
    else:
        torch.addmm(bias, read, weight.t(), out=out)


def cast_layers(
    given: Given, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Give weights and biases of both layers of an MLP, in the precision of the products."""
    assert given.weight2 is not None, "every MLP has two layers"
    return (
        given.weight.to(dtype),
        cast(given.bias, dtype),
        given.weight2.to(dtype),
        cast(given.bias2, dtype),
    )


def cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Give a parameter, if there is one, in the precision of the products."""
    return None if parameter is None else parameter.to(dtype)


def cut_slices(tokens: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Yield the rows to take at a time where they are multiplied with a weight."""
    on_cpu = tokens.device.type == "cpu"
    # Rows whose product fills the caches of all threads.
    at_once = SLICE_BYTES * torch.get_num_threads() // (len(weight) * dtype.itemsize)
    step = max(at_once, 1) if on_cpu else SLICE_TOKENS_GPU
    for start in range(0, len(tokens), step):
        yield slice(start, min(start + step, len(tokens)))
