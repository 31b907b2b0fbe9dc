# SPDX-License-Identifier: Apache-2.0
"""What is said of a comparison with and without pretraining."""

from __future__ import annotations

import pytest
import torch

from muntin.training.few_labels import Comparison, describe


def compare(only_pretrained: int, only_fresh: int, both: int = 10) -> Comparison:
    """Of 100 images so many are right with pretraining alone, without it alone, and with both."""
    parts = ((only_pretrained, 1, 0), (only_fresh, 0, 1), (both, 1, 1))
    rows = [(a, b) for count, a, b in parts for _ in range(count)]
    rows += [(0, 0)] * (100 - len(rows))
    right = torch.tensor(rows, dtype=torch.bool).T
    return Comparison.of("labels_10", "10 % of the labels", 500, [*right])


def test_a_comparison_by_hand():
    row = compare(20, 5)
    assert (row.pretrained, row.fresh) == pytest.approx((0.3, 0.15))
    assert row.noise == pytest.approx(2 * 26**0.5 / 100)
    assert compare(0, 0).noise == pytest.approx(0.02)
    assert str(row) == "10 % of the labels: 30.0 % instead of 15.0 %"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (compare(20, 5), "worth it"),
        (compare(5, 20), "did not help"),
        (compare(12, 8), "no clear gain (chance alone makes 9.2 points in the first comparison)"),
        (compare(0, 0), "no clear gain"),
    ],
)
def test_only_what_is_beyond_chance_is_said(row, said):
    assert describe([compare(30, 0), row]).startswith(said)
