# SPDX-License-Identifier: Apache-2.0
"""Norms of maps, down to one cell, and upsampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muntin.nn.conv_norm import ConvNorm, Upsample, build_norm


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 16, 32, 48, 64, 96, 256])
def test_groups(channels):
    norm = build_norm("group", channels)
    assert channels % norm.num_groups == 0
    assert norm.num_groups <= 32
    assert channels == 1 or channels // norm.num_groups >= 2
    assert build_norm("group", 256).num_groups == build_norm("group", 96).num_groups == 32


@pytest.mark.parametrize("name", ["none", "group", "layer"])
@pytest.mark.parametrize("channels", [2, 32, 96])
def test_a_map_of_one_cell(name, channels):
    conv = ConvNorm(8, channels, 3, norm=name, activation=True).train()
    out = conv(torch.randn(1, 8, 1, 1))
    assert out.shape == (1, channels, 1, 1)
    assert out.isfinite().all()
    out.sum().backward()


@pytest.mark.parametrize("name", ["none", "batch", "group", "layer"])
def test_no_map_at_all(name):
    """Regions of images in which there is nothing."""
    conv = ConvNorm(8, 16, 3, norm=name, activation=True).eval()
    maps = torch.randn(0, 8, 7, 7, requires_grad=True)
    out = conv(maps)
    assert out.shape == (0, 16, 7, 7)
    out.sum().backward()
    assert maps.grad.shape == maps.shape
    assert all(p.grad is not None for p in conv.parameters())


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (2, 5, 3, 4), (3, 5, 7, 2), (0, 5, 3, 3)])
def test_it_is_a_transposed_convolution(shape):
    ours = Upsample(5, 6).double()
    theirs = nn.ConvTranspose2d(5, 6, 2, stride=2).double()
    theirs.load_state_dict(ours.state_dict())
    maps = torch.randn(shape, dtype=torch.double, requires_grad=True)
    again = maps.detach().clone().requires_grad_()
    got, expected = ours(maps), theirs(again)
    torch.testing.assert_close(got, expected)
    weights = torch.randn_like(got)
    (got * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(maps.grad, again.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_half_precision_and_strides_of_the_input():
    ours = Upsample(4, 4)
    maps = torch.randn(2, 3, 5, 4).permute(0, 3, 1, 2)
    torch.testing.assert_close(ours(maps), ours(maps.contiguous()))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(maps).dtype == torch.bfloat16
