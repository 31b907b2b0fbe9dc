# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Tiles fit the shapes that they are chosen for."""

from __future__ import annotations

import dataclasses

import pytest

from muntin.ops.triton import launches
from muntin.ops.triton.launches import linear_launch, mlp_launch, norm_launch, patch_launch

WIDTHS = [16, 48, 64, 96, 128, 192, 256, 320, 384, 768, 1536]


@pytest.mark.parametrize("item_bytes", [2, 4])
@pytest.mark.parametrize("rows", [1, 49, 3136, 802_816])
def test_tiles_fit(rows, item_bytes):
    for k in WIDTHS:
        for n in (8, *WIDTHS):
            found = [linear_launch(rows, k, 4 * k, n, item_bytes=item_bytes, whole=False)]
            if n <= 256:
                whole = linear_launch(rows, k, k, n, item_bytes=item_bytes, whole=True)
                assert whole.columns >= n
                found.append(whole)
            for one in found:
                assert k % one.depth == 0
                assert all(side & (side - 1) == 0 for side in (one.rows, one.columns, one.depth))
                assert min(one.rows, one.columns, one.depth) >= 16
    for c in (16, 48, 96, 128, 192):
        one = mlp_launch(rows, c, 4 * c, item_bytes=item_bytes)
        assert 4 * c % one.columns == 0
    for k, n in ((48, 96), (12, 48), (768, 384)):
        whole = n <= 256
        one = patch_launch(rows, k, n, item_bytes=item_bytes, whole=whole)
        assert one.columns >= n or not whole
        assert one.depth >= 16


def test_rows_that_are_normalised():
    for n in (8, 384, 1000, 3072):
        assert norm_launch(n).columns >= n
        assert norm_launch(n).rows >= 1


def test_what_was_measured_is_asked_first(monkeypatch):
    usual = linear_launch(3000, 96, 96, 288, item_bytes=2, whole=False)
    better = dataclasses.replace(usual, warps=16)
    monkeypatch.setitem(launches.TUNED, ("linear", 96, 288, 4096), better)
    assert linear_launch(3000, 96, 96, 288, item_bytes=2, whole=False) == better
    assert linear_launch(5000, 96, 96, 288, item_bytes=2, whole=False).warps != 16


def test_parts_of_rows():
    assert [launches.parts_of(c) for c in (64, 96, 192, 80, 144)] == [1, 3, 3, 0, 0]
