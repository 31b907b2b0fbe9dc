# SPDX-License-Identifier: Apache-2.0
"""An input alone has the bits that it has in a batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muntin.inference.batch_invariance import make_batch_invariant

LAYERS = {
    "one row": (nn.Linear(96, 10), (96,)),
    "tokens": (nn.Linear(64, 32), (5, 64)),
    "small map": (nn.Conv2d(16, 16, 3, padding=1), (16, 12, 12)),
    "large map": (nn.Conv2d(64, 8, 3, padding=1), (64, 28, 28)),
    "deconvolution": (nn.ConvTranspose2d(16, 8, 4, 2, 1), (16, 8, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_same_bits_alone(name: str) -> None:
    layer, shape = LAYERS[name]
    network = nn.Sequential(layer)
    inputs = torch.randn(5, *shape)
    with torch.no_grad():
        before = [network(inputs[i : i + 1]) for i in range(5)]
        make_batch_invariant(network)
        together = network(inputs)
        alone = [network(inputs[i : i + 1]) for i in range(5)]
    for number, (each, plain) in enumerate(zip(alone, before, strict=True)):
        assert each.shape == plain.shape
        assert torch.equal(each[0], together[number])
        torch.testing.assert_close(each, plain)


def test_same_bits_alone_with_channels_last() -> None:
    network = nn.Sequential(nn.Conv2d(16, 8, 1))
    inputs = torch.randn(5, 16, 16, 8).contiguous(memory_format=torch.channels_last)
    make_batch_invariant(network)
    with torch.no_grad():
        together = network(inputs)
        for number in range(5):
            assert torch.equal(network(inputs[number : number + 1])[0], together[number])


def test_expanded_inputs_and_gradients_stay() -> None:
    network = nn.Sequential(nn.Linear(8, 4))
    row = torch.randn(1, 8)
    make_batch_invariant(network)
    with torch.no_grad():
        assert network(row.expand(2, 8)).shape == (2, 4)
    plain = nn.functional.linear(row, network[0].weight, network[0].bias)
    assert torch.equal(network(row), plain)
