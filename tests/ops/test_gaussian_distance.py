# SPDX-License-Identifier: Apache-2.0
"""The statistic of normality against the closed form of its integral."""

from __future__ import annotations

import math

import pytest
import torch

from muntin.ops.gaussian_distance import epps_pulley, sketch_gaussian

SAMPLES = {
    "gaussian": (lambda n: torch.randn(n), 0.0, 3.0),
    "shifted": (lambda n: torch.randn(n) + 1, 30.0, 1e4),
    "narrow": (lambda n: 0.3 * torch.randn(n), 20.0, 1e4),
    "wide": (lambda n: 3 * torch.randn(n), 20.0, 1e4),
    "two points": (lambda n: torch.randint(2, (n,)) * 2.0 - 1, 2.0, 1e4),
    "one point": (lambda n: torch.zeros(n), 20.0, 1e4),
}


def integrate(x: torch.Tensor) -> float:
    """By hand: each product of exponentials has an integral of its own."""
    x = x.double()
    apart = x[:, None] - x[None]
    pairs = math.sqrt(math.pi) * torch.exp(-apart.square() / 4).mean()
    crossed = 2 * math.sqrt(2 * math.pi / 3) * torch.exp(-x.square() / 6).mean()
    return float(len(x) * (pairs - crossed + math.sqrt(math.pi / 2)))


@pytest.mark.parametrize("name", SAMPLES)
def test_it_equals_the_closed_form(name):
    make, low, high = SAMPLES[name]
    torch.manual_seed(0)
    x = make(256)
    found = float(epps_pulley(x[:, None])[0])
    assert low < found < high
    assert found == pytest.approx(integrate(x), rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("count", [1, 16, 128])
def test_its_expectation_does_not_depend_on_the_number_of_points(count):
    torch.manual_seed(0)
    found = epps_pulley(torch.randn(count, 20_000)).mean()
    wanted = math.sqrt(math.pi) - math.sqrt(math.pi / 2)
    assert float(found) == pytest.approx(wanted, abs=0.02)


def test_directions_are_averaged_whatever_their_length():
    torch.manual_seed(0)
    x, directions = torch.randn(32, 5), torch.randn(5, 7)
    units = directions / directions.norm(dim=0)
    wanted = sum(integrate(x @ unit) for unit in units.t()) / 7
    for scaled in (directions, 3 * directions):
        assert float(sketch_gaussian(x, scaled)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(("count", "start"), [(64, 0.01), (8, 0.01), (64, 10.0)])
def test_its_gradient_spreads_what_has_collapsed(count, start):
    torch.manual_seed(0)
    x = (start * torch.randn(count, 4)).requires_grad_()
    if start > 1:  # far away, but all at one place
        x = (torch.full((count, 4), 1.5) + 0.01 * torch.randn(count, 4)).requires_grad_()
    optimizer = torch.optim.SGD([x], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        sketch_gaussian(x, torch.randn(4, 32)).backward()
        optimizer.step()
    found = x.detach()
    assert 0.6 < float(found.std(dim=0).mean()) < 1.4
    assert float(found.mean(dim=0).abs().max()) < 0.3
