# SPDX-License-Identifier: Apache-2.0
"""The relative bias and its gradient, log offsets, and what is resized to other grids."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from muntin.errors import ShapeError
from muntin.ops.positions import (
    expand_relative_position_bias,
    log_offsets,
    resample_grid,
    resample_offsets,
)

WINDOWS = [((3, 3), (3, 3)), ((4, 2), (4, 2)), ((7, 7), (7, 7)), ((7, 7), (4, 5)), ((3, 5), (1, 1))]


def index_of(table_window, window):
    """Row of the table for every pair of tokens, one by one."""
    (th, tw), (wh, ww) = table_window, window
    index = torch.empty(wh * ww, wh * ww, dtype=torch.long)
    for query in range(wh * ww):
        for key in range(wh * ww):
            down, right = query // ww - key // ww, query % ww - key % ww
            index[query, key] = (down + th - 1) * (2 * tw - 1) + right + tw - 1
    return index


def make_table(table_window, dtype=torch.float32):
    rows = (2 * table_window[0] - 1) * (2 * table_window[1] - 1)
    return torch.randn(rows, 3, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("table_window", "window"), WINDOWS)
def test_bias_and_its_gradient_equal_those_of_an_index(table_window, window):
    table = make_table(table_window, torch.float64)
    bias = expand_relative_position_bias(table, table_window=table_window, window=window)
    expected = table[index_of(table_window, window)].permute(2, 0, 1)
    assert torch.equal(bias, expected)
    upstream = torch.randn_like(bias)
    (ours,) = torch.autograd.grad((bias * upstream).sum(), table)
    (theirs,) = torch.autograd.grad((expected * upstream).sum(), table)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradient_is_the_same_bits_in_every_run():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        table = torch.randn(23 * 23, 24, requires_grad=True)
        upstream = torch.randn(24, 144, 144)
        runs = [
            torch.autograd.grad(
                (
                    expand_relative_position_bias(table, table_window=(12, 12), window=(12, 12))
                    * upstream
                ).sum(),
                table,
            )[0]
            for _ in range(8)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize(
    ("rows", "window"), [(48, (4, 4)), (49, (5, 4)), (49, (4, 5)), (0, (1, 1))]
)
def test_table_that_does_not_fit_is_refused(rows, window):
    with pytest.raises(ShapeError, match=rf"\b49\b.*\b{rows}\b"):
        expand_relative_position_bias(torch.zeros(rows, 2), table_window=(4, 4), window=window)


@pytest.mark.parametrize("how", ["antialiased", "bicubic"])
@pytest.mark.parametrize("new", [(4, 6), (5, 3), (9, 1)])
def test_grid_is_resized_as_a_image_and_the_prefix_kept(new, how):
    embedding, antialias = torch.randn(1, 2 + 4 * 3, 5), how == "antialiased"
    resized = resample_grid(embedding, old=(4, 3), new=new, num_prefix=2, how=how)
    assert torch.equal(resized[:, :2], embedding[:, :2])
    for channel in range(5):
        image = embedding[:, 2:, channel].reshape(1, 1, 4, 3)
        # One axis after the other, which is what bicubic means.
        rows = F.interpolate(image, size=(new[0], 3), mode="bicubic", antialias=antialias)
        expected = F.interpolate(rows, size=new, mode="bicubic", antialias=antialias)
        torch.testing.assert_close(resized[0, 2:, channel], expected.flatten())


def test_same_grid_is_the_same_tensor_and_the_type_is_kept():
    embedding = torch.randn(1, 13, 4, dtype=torch.bfloat16)
    assert resample_grid(embedding, old=(4, 3), new=(4, 3), num_prefix=1) is embedding
    assert resample_grid(embedding, old=(4, 3), new=(2, 2), num_prefix=1).dtype is torch.bfloat16


def test_embedding_of_another_grid_is_refused():
    with pytest.raises(ShapeError, match=r"\b13\b.*\(4, 3\)"):
        resample_grid(torch.zeros(1, 12, 4), old=(4, 3), new=(2, 2), num_prefix=1)


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
