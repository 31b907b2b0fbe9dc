# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The matrix product is the transposed convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muntin.nn.upsampling import Upsample


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
