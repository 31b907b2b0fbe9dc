# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Slices of tokens and sums of gradients for memory-efficient layers."""

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
"""Output bytes of a product per thread and slice on a CPU, to fit the cache."""

SLICE_TOKENS_GPU = 2**17
"""Tokens per slice on a GPU, which bounds the memory of hidden values."""


class Given(NamedTuple):
    """Parameters of an optional norm and one or two linear layers.

    Attributes:
        gamma: Weight of the norm.
        beta: Bias of the norm.
        weight: Weight of the (first) linear layer.
        bias: Bias of the (first) linear layer.
        weight2: Weight of the second linear layer.
        bias2: Bias of the second linear layer.
    """

    gamma: Tensor | None
    beta: Tensor | None
    weight: Tensor
    bias: Tensor | None
    weight2: Tensor | None = None
    bias2: Tensor | None = None


class Read(NamedTuple):
    """Normalised tokens with the statistics that the backward pass needs.

    Attributes:
        normed: Input of the product, in its dtype.
        part: Input of the norm.
        mean: Mean of each token; None without a norm.
        rstd: 1 / standard deviation of each token; None without a norm.
    """

    normed: Tensor
    part: Tensor
    mean: Tensor | None = None
    rstd: Tensor | None = None


def normalise(part: Tensor, given: Given, eps: float, dtype: torch.dtype) -> Read:
    """Normalise tokens, if the layer has a norm, and cast them to the dtype of the product."""
    if given.gamma is None:
        return Read(part.to(dtype), part)
    # Norms are computed in the type of their parameters, as nn.LayerNorm under autocast.
    part = part.to(given.gamma.dtype)
    channels = (part.shape[1],)
    normed, mean, rstd = torch.native_layer_norm(part, channels, given.gamma, given.beta, eps)
    return Read(normed.to(dtype), part, mean, rstd)


class Sums:
    """Gradients of parameters, accumulated over slices in the dtype of the parameters."""

    def __init__(self, given: Given, wanted: tuple[bool, ...]) -> None:
        self.dtypes = [
            parameter.dtype if want and parameter is not None else None
            for parameter, want in zip(given, wanted, strict=True)
        ]
        self.totals: list[Tensor | None] = [None] * len(self.dtypes)

    def add(self, place: int, more: Tensor | None) -> None:
        """Add to the gradient of the parameter at `place`, if required."""
        dtype, total = self.dtypes[place], self.totals[place]
        if dtype is not None and more is not None:
            self.totals[place] = more.to(dtype) if total is None else total.add_(more)

    def add_product(self, place: int, grad: Tensor, read: Tensor) -> None:
        """Add to the gradients of a weight (at `place`) and of the bias after it."""
        total, (dtype, dtype_bias) = self.totals[place], self.dtypes[place : place + 2]
        if total is not None and dtype == grad.dtype:
            # In place: no temporary of the size of the weight for each slice.
            total.addmm_(grad.t(), read)
        elif dtype is not None:
            self.add(place, grad.t() @ read)
        if dtype_bias is not None:
            self.add(place + 1, grad.sum(dim=0, dtype=dtype_bias))

    def finish(self, given: Given) -> list[Tensor | None]:
        """Return the gradients; zeros for required ones without tokens."""
        return [
            torch.zeros_like(one) if one is not None and dtype and total is None else total
            for one, dtype, total in zip(given, self.dtypes, self.totals, strict=True)
        ]

    def go_through_norm(
        self, grad: Tensor, read: Read, given: Given, wants_x: bool
    ) -> Tensor | None:
        """Backward pass of the norm; returns the gradient of its input."""
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
    """Write the gradient of a slice into the whole; a slice of all rows is the whole."""
    if found is None or whole is None:
        return whole
    if len(found) == len(whole):
        return found.to(whole.dtype)
    # Written into the preallocated gradient: slices are never concatenated.
    whole[rows] = found
    return whole


def multiply(read: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Compute a linear layer into `out`."""
    if bias is None:
        torch.mm(read, weight.t(), out=out)
    else:
        torch.addmm(bias, read, weight.t(), out=out)


def cast_layers(
    given: Given, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Cast weights and biases of both layers of an MLP."""
    assert given.weight2 is not None, "every MLP has two layers"
    return (
        given.weight.to(dtype),
        cast(given.bias, dtype),
        given.weight2.to(dtype),
        cast(given.bias2, dtype),
    )


def cast(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Cast a parameter, if present."""
    return None if parameter is None else parameter.to(dtype)


def cut_slices(tokens: Tensor, weight: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    """Yield the slices of rows for products with a weight."""
    on_cpu = tokens.device.type == "cpu"
    # Rows whose product fills the caches of all threads.
    at_once = SLICE_BYTES * torch.get_num_threads() // (len(weight) * dtype.itemsize)
    step = max(at_once, 1) if on_cpu else SLICE_TOKENS_GPU
    for start in range(0, len(tokens), step):
        yield slice(start, min(start + step, len(tokens)))
