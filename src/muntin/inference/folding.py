# SPDX-License-Identifier: Apache-2.0
"""Affine steps that become part of the linear layer beside them; computed in float64.

Letters: C channels in, D channels out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from muntin.shapes import Float


def make_linear(weight: Float[Tensor, "D C"], bias: Float[Tensor, " D"] | None) -> nn.Linear:
    """Give a linear layer that holds these numbers, in float32."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight.detach().float(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
    return linear


def fold_norm(
    norm: nn.LayerNorm, weight: Float[Tensor, "D C"], bias: Float[Tensor, " D"] | None
) -> tuple[nn.LayerNorm, Float[Tensor, "D C"], Float[Tensor, " D"]]:
    """Move scale and bias of a norm into weight and bias, float64, of the layer that reads it."""
    # norm(x) = n(x) * g + b, so W norm(x) + c = (W g) n(x) + (W b + c).
    wide = weight.detach().double()
    shift = wide @ norm.bias.detach().double()
    if bias is not None:
        shift = shift + bias.detach().double()
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    return plain, wide * norm.weight.detach().double(), shift


def make_qkv(
    weight: Float[Tensor, "C3 C"], bias: Float[Tensor, " C3"] | None, scale: float
) -> nn.ModuleList:
    """Give one linear layer each for queries, keys and values; the queries are scaled.

    Three products instead of one: engines fuse the split into heads with attention only where it
    is all that stands between.
    """
    layers = nn.ModuleList()
    for part, factor in enumerate((scale, 1.0, 1.0)):
        rows = slice(part * weight.shape[1], (part + 1) * weight.shape[1])
        shift = None if bias is None else bias[rows].detach().double() * factor
        layers.append(make_linear(weight[rows].detach().double() * factor, shift))
    return layers


def fold_pixels(
    proj: nn.Conv2d, mean: Sequence[float], std: Sequence[float], *, reads_mean: bool
) -> nn.Conv2d:
    """Give a convolution that reads pixels from 0 to 255 instead of normalised ones.

    `mean` and `std` are in [0, 1]. `reads_mean`: the mean is still to be subtracted; else the
    caller has done it.
    """
    shift = torch.tensor(mean, dtype=torch.float64) * 255
    scale = torch.tensor(std, dtype=torch.float64) * 255
    # conv((x - mean) / std) = conv(x; W / std) - sum(W mean / std).
    weight = proj.weight.detach().double() / scale.view(1, -1, 1, 1)
    bias = torch.zeros(proj.out_channels, dtype=torch.float64)
    if proj.bias is not None:
        bias = proj.bias.detach().double()
    if reads_mean:
        bias = bias - (weight * shift.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
    folded = copy.deepcopy(proj)
    folded.weight = nn.Parameter(weight.float(), requires_grad=False)
    folded.bias = nn.Parameter(bias.float(), requires_grad=False)
    return folded
