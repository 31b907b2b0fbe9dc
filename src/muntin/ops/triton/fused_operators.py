# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels as operators of PyTorch, so that compiled graphs hold them as they are.

Importing this module registers them. They have no gradient: what learns takes the plain operations.
`muntin.ops.fused_layers` says what they compute and when they are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muntin.ops.triton.fused_linear import run_linear
from muntin.ops.triton.fused_mlp import run_mlp
from muntin.ops.triton.fused_norm import run_norm
from muntin.ops.triton.fused_patches import run_patches

__all__ = ["WIDEST_WHOLE_ROW", "embed", "linear", "merge", "mlp"]

WIDEST_WHOLE_ROW = 256
"""Channels of an output row that one tile can hold, as a norm behind needs it."""


@torch.library.custom_op(
    "muntin::fused_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? sums, Tensor? gamma, Tensor? beta, "
    "Tensor? factor, Tensor? residual, float eps, bool gelu) -> Tensor",
)
def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sums: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    factor: Tensor | None,
    residual: Tensor | None,
    eps: float,
    gelu: bool,
) -> Tensor:
    """Norm, product, GELU, norm, factor and residual, as far as there are any."""
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    # A post-norm needs a whole row in one tile; wider rows take a second kernel.
    if gamma is None or beta is None or weight.shape[0] <= WIDEST_WHOLE_ROW:
        return run_linear(x, weight, bias, sums, residual, factor, gamma, beta, eps=eps, gelu=gelu)
    y = run_linear(x, weight, bias, sums, None, None, None, None, eps=eps, gelu=gelu)
    return run_norm(y, gamma, beta, residual, eps=eps)


@linear.register_fake
def _(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    # Shape only: what torch.compile and torch.export trace with.
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op(
    "muntin::fused_merge",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? sums, Tensor? gamma, Tensor? beta, "
    "float eps) -> Tensor",
)
def merge(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sums: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    """Join 2 x 2 neighbours: norm and product, or product and norm."""
    size = (x.shape[1], x.shape[2])
    narrow = weight.shape[0] <= WIDEST_WHOLE_ROW
    # Same limit as above.
    behind = (gamma, beta) if narrow else (None, None)
    y = run_linear(
        *(x.contiguous(), weight, bias, sums, None, None, *behind),
        eps=eps,
        gelu=False,
        merged=size,
    )
    if gamma is None or beta is None or narrow:
        return y
    return run_norm(y, gamma, beta, None, eps=eps)


@merge.register_fake
def _(x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    batch, height, width = x.shape[:3]
    return x.new_empty((batch, (height + 1) // 2, (width + 1) // 2, weight.shape[0]))


@torch.library.custom_op(
    "muntin::fused_mlp",
    mutates_args=(),
    schema="(Tensor x, Tensor weight1, Tensor bias1, Tensor weight2, Tensor bias2, Tensor? sums, "
    "Tensor? gamma, Tensor? beta, float eps) -> Tensor",
)
def mlp(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    sums: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> Tensor:
    """The MLP branch of a block, with its norm and its shortcut."""
    return run_mlp(x.contiguous(), weight1, bias1, sums, weight2, bias2, gamma, beta, eps=eps)


@mlp.register_fake
def _(x: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op(
    "muntin::fused_patches",
    mutates_args=(),
    schema="(Tensor images, Tensor weight, Tensor? bias, Tensor fill, Tensor? gamma, "
    "Tensor? beta, int patch, int high, int wide, float eps) -> Tensor",
)
def embed(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fill: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    patch: int,
    high: int,
    wide: int,
    eps: float,
) -> Tensor:
    """Pixels to tokens: product and norm."""
    return run_patches(
        images, weight, bias, fill, gamma, beta, patch=patch, grid=(high, wide), eps=eps
    )


@embed.register_fake
def _(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    fill: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    patch: int,
    high: int,
    wide: int,
    eps: float,
) -> Tensor:
    return weight.new_empty((images.shape[0], high, wide, weight.shape[0]))
