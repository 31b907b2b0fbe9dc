# SPDX-License-Identifier: Apache-2.0
"""Gradients of layers under bf16 autocast against fp32, on maps of a few cells."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from muntin.features import FeatureSpec
from muntin.heads.necks import FeaturePyramid, NeckConfig
from muntin.nn.conv_norm import ChannelNorm, ConvNorm, MapNorm, StridedConv, Upsample, build_norm
from muntin.nn.layers import Mlp

SIDES = (1, 2, 3, 5)
# What networks and heads are made of, with the least side of the maps that reach it.
LAYERS = {
    "3 x 3, stride 2": (lambda c: StridedConv(c, 8, 3, stride=2, padding=1), 1),
    "7 x 7, stride 4": (lambda c: StridedConv(c, 8, 7, stride=4, padding=3), 1),
    "5 x 5, stride 2": (lambda c: StridedConv(c, 8, 5, stride=2, padding=2), 1),
    "3 x 3": (lambda c: ConvNorm(c, 8, 3), 1),
    "1 x 1": (lambda c: ConvNorm(c, 8, 1), 1),
    "patches": (lambda c: nn.Conv2d(c, 8, 4, stride=4), 4),
    "padded patches": (lambda c: nn.Conv2d(c, 8, 4, stride=4, padding=1), 4),
    "Hiera's patches": (lambda c: nn.Conv2d(c, 8, 7, stride=4, padding=3), 4),
    "upsampling": (lambda c: Upsample(c, 8), 1),
    "transposed 4 x 4": (lambda c: nn.ConvTranspose2d(c, 8, 4, stride=2, padding=1), 1),
    "layer norm of cells": (ChannelNorm, 1),
    "group norm": (lambda c: build_norm("group", c), 1),
    "batch norm": (MapNorm, 2),
}
TOKENS = {"linear": lambda c: nn.Linear(c, 8), "mlp": lambda c: Mlp(c, 2 * c)}


def gradients(layer: nn.Module, x: Tensor, *, bf16: bool) -> list[Tensor]:
    """The output, and the gradients of the input and of every parameter."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = layer(x)
    # Positive weights: no sum of them cancels, so that rounding stays small beside it.
    up = torch.rand(y.shape, generator=torch.Generator().manual_seed(1)) + 0.5
    (y.float() * up).sum().backward()
    return [y.detach().float(), x.grad, *(p.grad.float() for p in layer.parameters())]


def far_apart(layer: nn.Module, x: Tensor) -> float:
    """The largest difference, beside the largest value; more than any number if one is NaN."""
    apart = 0.0
    exact, rounded = gradients(layer, x, bf16=False), gradients(layer, x, bf16=True)
    for left, right in zip(exact, rounded, strict=True):
        difference = (left - right).abs().max() / left.abs().max().clamp(min=1e-3)
        apart = max(apart, float(difference.nan_to_num(torch.inf)))
    return apart


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("channels", [16, 64])
def test_maps_of_a_few_cells(name, channels):
    torch.manual_seed(0)
    build, least = LAYERS[name]
    layer = build(channels)
    for batch, high, wide in itertools.product((1, 2), SIDES, SIDES):
        if min(high, wide) >= least:
            x = torch.rand(batch, channels, high, wide)
            assert far_apart(layer, x) < 0.1, (batch, high, wide)


@pytest.mark.parametrize("name", TOKENS)
def test_a_few_tokens(name):
    torch.manual_seed(0)
    layer = TOKENS[name](16)
    for batch, count in itertools.product((1, 2), SIDES):
        assert far_apart(layer, torch.rand(batch, count, 16)) < 0.1, (batch, count)


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_the_levels_that_a_pyramid_adds(shape):
    torch.manual_seed(0)
    spec = FeatureSpec(channels=(16, 16), strides=(16, 32))
    config = NeckConfig(channels=16, extra="conv", extra_levels=2)
    pyramid = FeaturePyramid(spec, config)
    high, wide = shape

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pyramid = pyramid

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(
                [level.flatten(1) for level in self.pyramid([x, x[:, :, ::2, ::2]])], 1
            )

    assert far_apart(Last(), torch.rand(2, 16, 2 * high, 2 * wide)) < 0.1
