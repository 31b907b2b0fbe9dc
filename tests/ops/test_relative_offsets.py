# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Offsets on a log scale, and tables for another window."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from muntin.ops.relative_offsets import log_offsets, resample_offsets


@pytest.mark.parametrize(
    ("window", "reference"), [((3, 5), (3, 5)), ((4, 4), (8, 2)), ((1, 1), (1, 1))]
)
def test_offsets_follow_the_formula(window, reference):
    made = log_offsets(window, reference)
    rows = []
    for dy in range(1 - window[0], window[0]):
        for dx in range(1 - window[1], window[1]):
            pair = []
            for offset, side in ((dy, reference[0]), (dx, reference[1])):
                scaled = 8 * offset / max(side - 1, 1)
                pair.append(math.copysign(math.log2(abs(scaled) + 1) / 3, scaled))
            rows.append(pair)
    torch.testing.assert_close(made, torch.tensor(rows))


def test_the_longest_offset_of_the_reference_is_just_above_one():
    assert log_offsets((8, 8), (8, 8)).max().item() == pytest.approx(math.log2(9) / 3)
    assert log_offsets((8, 8), (8, 8), dtype=torch.bfloat16).dtype is torch.bfloat16


def test_table_is_stretched_side_by_side():
    table = torch.randn(5 * 3, 2)
    image = table.t().view(1, 2, 5, 3)
    expected = F.interpolate(image, size=(7, 9), mode="bicubic").flatten(2)[0].t()
    assert torch.equal(resample_offsets(table, old=(3, 2), new=(4, 5)), expected)
    assert resample_offsets(table, old=(3, 2), new=(3, 2)) is table
