# SPDX-License-Identifier: Apache-2.0
"""What is hidden of images, drawn from a generator."""

from __future__ import annotations

import pytest
import torch

from muntin.ops.masks import draw_quarters, draw_units


def draw(function, *arguments, seed=0):
    return function(*arguments, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("grid", "step", "kept"), [((8, 8), 2, 6), ((7, 9), 4, 2), ((3, 5), 1, 6)])
def test_whole_units_are_hidden(grid, step, kept):
    keep = draw(draw_units, 3, grid, step, 0.6).keep.unflatten(1, grid)
    for image in keep:
        units = [
            set(image[row : row + step, column : column + step].flatten().tolist())
            for row in range(0, grid[0], step)
            for column in range(0, grid[1], step)
        ]
        assert all(len(unit) == 1 for unit in units)
        assert sum(unit == {True} for unit in units) == kept
    assert not keep[0].equal(keep[1])
    assert draw(draw_units, 3, grid, step, 0.6).keep.unflatten(1, grid).equal(keep)


@pytest.mark.parametrize(("ratio", "seen"), [(0.25, 9), (0.0, 12), (0.5, 6)])
def test_one_unit_of_four_is_processed_and_a_share_of_these_hidden(ratio, seen):
    mask = draw(draw_quarters, 50, (12, 16), 2, ratio)
    assert mask.quarter.shape == (50, 3, 4)
    counts = mask.quarter.flatten().bincount(minlength=4)
    assert counts.min() > 100  # of 600, equally often each
    keep = mask.keep.unflatten(1, (3, 2, 2, 4, 2, 2)).permute(0, 1, 4, 2, 5, 3, 6)  # units last
    units = keep.flatten(5)  # B, h, w, 2, 2, tokens
    assert units.all(-1).equal(units.any(-1))
    kept = units.all(-1).flatten(3)  # B, h, w, 4
    assert kept.sum((1, 2, 3)).tolist() == [seen] * 50
    for k in range(4):
        assert not kept[..., k][mask.quarter != k].any()
