# SPDX-License-Identifier: Apache-2.0
"""A branch is left out for whole images, and its mean stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muntin.nn.layers import DropPath, drop_path_schedule


def test_whole_images_and_the_mean():
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 2, 3))
    per_image = out.flatten(1)
    assert (per_image == per_image[:, :1]).all()
    assert sorted(out.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert out.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("layer", [DropPath(0.0), DropPath(0.5).eval()])
def test_nothing_is_dropped(layer):
    branch = torch.rand(4, 3)
    assert layer(branch) is branch


def test_schedule():
    assert drop_path_schedule(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_schedule(0.3, 1) == [0]
    assert "rate=0.250" in repr(DropPath(0.25))


@pytest.mark.parametrize("rate", [0.0, 0.4, 0.999])
def test_a_branch_is_computed_for_kept_images_alone(rate):
    """With 0.999 no image keeps it."""
    drop, layer = DropPath(rate), nn.Linear(3, 3)
    x = torch.randn(6, 5, 3)
    counts, results = [], []

    def branch(x):
        counts.append(len(x))
        return layer(x)

    for add in (lambda x: drop.add(x, branch), lambda x: x + drop(layer(x))):
        torch.manual_seed(5)
        start = x.clone().requires_grad_()
        out = add(start)
        slopes = torch.autograd.grad(out.square().sum(), [start, *layer.parameters()])
        results.append([out, *slopes])
    torch.testing.assert_close(*results)
    torch.manual_seed(5)
    assert counts == [max(1, int((torch.rand(6) >= rate).sum()))]
    assert drop.eval().add(x, layer).equal(x + layer(x))


def test_branches_in_half_precision_are_added_to_full():
    drop, layer, x = DropPath(0.4), nn.Linear(3, 3), torch.randn(8, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert drop.add(x, layer).dtype == torch.float32
