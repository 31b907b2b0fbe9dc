# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Layers that remember less give what autograd gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from muntin.nn.conv_norm import ConvNorm
from muntin.nn.mlp import Mlp


def saved_mib(work) -> float:
    """What autograd keeps for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = work()
    del out
    return sum(kept.values()) / 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_perceptron_remembers_less_and_learns_the_same(dtype):
    torch.manual_seed(0)
    mlp = Mlp(16, 64)
    x = torch.randn(2, 600, 16, requires_grad=True)

    def plain():
        return mlp.fc2(F.gelu(mlp.fc1(x)))

    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        assert saved_mib(lambda: mlp(x)) < 0.8 * saved_mib(plain)
        inputs = [x, *mlp.parameters()]
        mine = torch.autograd.grad(mlp(x).float().square().sum(), inputs)
        theirs = torch.autograd.grad(plain().float().square().sum(), inputs)
    for left, right in zip(mine, theirs, strict=True):
        assert left.dtype == right.dtype
        error = (left - right).norm() / right.norm()
        assert error < (1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(2, 6, 9, 7), (1, 6, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_convolution_recomputed(kernel, size, dtype):
    torch.manual_seed(0)
    efficient = ConvNorm(6, 8, kernel, norm="batch", activation=True, recompute=True)
    nn.init.normal_(efficient.norm.weight)
    nn.init.normal_(efficient.norm.bias)
    plain = copy.deepcopy(efficient)
    plain.recompute = False
    x = torch.randn(size, requires_grad=True)
    factors = torch.randn(size[0], 8, *size[2:])
    results = []
    for module in (efficient, plain):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            out = module(x)
        inputs = [x, *module.parameters()]
        results.append([out, *torch.autograd.grad((out * factors).sum(), inputs)])
    for left, right in zip(*results, strict=True):
        assert left.dtype == right.dtype
        torch.testing.assert_close(
            left, right, rtol=1e-4 if dtype == torch.float32 else 0.05,
            atol=1e-5 if dtype == torch.float32 else 0.05,
        )  # fmt: skip
    for (name, left), right in zip(
        efficient.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(left, right, msg=name)
    assert efficient.eval()(x).equal(plain.eval()(x))


def test_a_convolution_recomputed_remembers_less():
    module = ConvNorm(4, 32, 3, norm="batch", activation=True, recompute=True)
    x = torch.randn(2, 4, 64, 64)
    efficient = saved_mib(lambda: module(x))
    module.recompute = False
    assert efficient < 0.2 * saved_mib(lambda: module(x))


def test_one_value_a_channel_goes_by_the_running_figures():
    module = ConvNorm(4, 8, 1, norm="batch", activation=True, recompute=True)
    out = module(torch.randn(1, 4, 1, 1))
    assert torch.isfinite(out).all()
    assert int(module.norm.num_batches_tracked) == 0
