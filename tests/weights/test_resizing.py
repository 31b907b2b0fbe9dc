# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Tables and position embeddings brought to other sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from muntin.errors import ShapeError
from muntin.ops.positions import spread_bias
from muntin.weights.resizing import crop_table, embed_table, resample_positions, resample_table


@pytest.mark.parametrize("window", [(4, 4), (4, 7), (1, 2)])
def test_smaller_table_stands_in_the_middle_and_is_what_a_smaller_window_reads(window):
    table = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), 3)
    full = embed_table(table, window=window, full=(7, 7))
    assert full.shape == (169, 3)
    assert torch.equal(crop_table(full, window=window, full=(7, 7)), table)
    assert torch.equal(
        spread_bias(full, table_window=(7, 7), window=window),
        spread_bias(table, table_window=window, window=window),
    )
    # What lies outside is the value of the nearest position inside.
    assert torch.equal(full[0], table[0])


def test_table_is_stretched_as_a_picture():
    table = torch.randn(49, 3, dtype=torch.float32)
    expected = F.interpolate(table.T.view(1, 3, 7, 7), size=(13, 13), mode="bicubic")
    assert torch.equal(resample_table(table, window=7), expected.view(3, 169).T)
    assert resample_table(table.bfloat16(), window=7).dtype is torch.bfloat16


@pytest.mark.parametrize("rows", [48, 36, 91])
def test_table_of_no_square_window_is_refused(rows):
    with pytest.raises(ShapeError, match=rf"\(2M-1\)\^2 rows .* got {rows}"):
        resample_table(torch.zeros(rows, 2), window=7)


def test_positions_keep_their_prefix():
    embedding = torch.randn(1, 1 + 16, 8)
    resized = resample_positions(embedding, new=(6, 3), num_prefix=1, antialias=True)
    assert resized.shape == (1, 19, 8)
    assert torch.equal(resized[:, :1], embedding[:, :1])


@pytest.mark.parametrize("tokens", [1, 18, 16])
def test_positions_that_are_no_square_are_refused(tokens):
    with pytest.raises(ShapeError, match=f"1 prefix tokens and a square grid, got {tokens} tokens"):
        resample_positions(torch.zeros(1, tokens, 8), new=(6, 3), num_prefix=1, antialias=False)
