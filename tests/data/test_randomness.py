# SPDX-License-Identifier: Apache-2.0
"""Numbers that depend on their place alone, and look random all the same."""

from __future__ import annotations

import numpy as np
import pytest

from muntin.data.randomness import derive_seed, draw_order, draw_uniforms


def draw(seed=0, epoch=0, indices=range(1000), count=8):
    return draw_uniforms(seed, epoch, np.array(list(indices)), count)


def test_a_image_gets_the_same_whatever_stands_beside_it():
    whole = draw()
    np.testing.assert_array_equal(draw(indices=[7]), whole[7:8])
    np.testing.assert_array_equal(draw(indices=[999, 3, 3]), whole[[999, 3, 3]])
    np.testing.assert_array_equal(draw(count=3), whole[:, :3])


def test_places_differ():
    values = [draw(), draw(seed=1), draw(epoch=1), draw(seed=1, epoch=1)]
    for one in range(4):
        for other in range(one):
            assert not np.intersect1d(values[one], values[other]).size


def test_they_are_uniform_and_unrelated():
    values = draw(indices=range(20_000))
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0]
    expected = values.size / 20
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)
    related = np.corrcoef(values.T) - np.eye(8)
    assert np.abs(related).max() < 0.03
    following = np.corrcoef(values[:-1, 0], values[1:, 0])[0, 1]
    assert abs(following) < 0.03


def test_seeds():
    seeds = {derive_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(-1, 2) == derive_seed(-1, 2)


def test_every_image_once():
    first, second = draw_order(0, 0, 100), draw_order(0, 1, 100)
    assert sorted(first) == sorted(second) == list(range(100))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, draw_order(0, 0, 100))
    assert not np.array_equal(first, draw_order(1, 0, 100))


def test_shares_are_kept():
    ids = np.repeat([0, 1, 2], [900, 90, 10])
    shares = 1 / np.array([900, 90, 10])[ids]
    drawn = np.bincount(ids[draw_order(0, 0, 1000, shares)], minlength=3)
    assert drawn == pytest.approx([333, 333, 333], abs=60)
