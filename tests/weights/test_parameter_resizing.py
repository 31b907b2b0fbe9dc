# SPDX-License-Identifier: Apache-2.0
"""Tables and position embeddings brought to other sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import resample_patch_embed, resize_rel_pos_bias_table
from timm.models import adapt_input_conv

from muntin.ops.positions import expand_relative_position_bias, resample_offsets
from muntin.weights.parameter_resizing import (
    adapt_channels,
    crop_table,
    embed_table,
    resample_patches,
)


@pytest.mark.parametrize("window", [(4, 4), (4, 7), (1, 2)])
def test_smaller_table_is_the_center_of_the_larger(window):
    table = torch.randn((2 * window[0] - 1) * (2 * window[1] - 1), 3)
    full = embed_table(table, window=window, full=(7, 7))
    assert full.shape == (169, 3)
    assert torch.equal(crop_table(full, window=window, full=(7, 7)), table)
    assert torch.equal(
        expand_relative_position_bias(full, table_window=(7, 7), window=window),
        expand_relative_position_bias(table, table_window=window, window=window),
    )
    # What lies outside is the value of the nearest position inside.
    assert torch.equal(full[0], table[0])


@pytest.mark.filterwarnings("ignore:Using a non-tuple", "ignore:torch.searchsorted")
@pytest.mark.parametrize("new", [(5, 5), (7, 7), (12, 12), (4, 9), (9, 4), (3, 4), (4, 1)])
@pytest.mark.parametrize("old", [(4, 4), (4, 6)])
def test_geometric_stretch_equals_timm_s(old, new):
    table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1), 3)
    rows = (2 * new[0] - 1) * (2 * new[1] - 1)
    expected = resize_rel_pos_bias_table(table, new, (rows, 3), old_window_size=old)
    ours = resample_offsets(table, old=old, new=new, how="geometric")
    assert torch.allclose(ours, expected, atol=1e-5)


def test_geometric_stretch_keeps_the_middle():
    table = torch.randn(169, 2)
    stretched = resample_offsets(table, old=(7, 7), new=(12, 12), how="geometric")
    stretched = stretched.view(23, 23, 2)
    assert torch.allclose(stretched[11, 11], table.view(13, 13, 2)[6, 6])
    assert torch.allclose(stretched[10, 11], table.view(13, 13, 2)[5, 6])
    row = resample_offsets(torch.randn(3, 2), old=(1, 2), new=(2, 2), how="geometric")
    assert torch.equal(row[:3], row[3:6])  # one token high: every row is the same


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (30, 30), (4, 4)])
def test_patches_are_resized_as_timm_does(size):
    kernel = torch.randn(6, 3, 16, 16)
    expected = resample_patch_embed(kernel, list(size))
    assert torch.allclose(resample_patches(kernel, size), expected, atol=1e-4)


def test_resized_patches_see_in_a_larger_image_what_the_old_ones_saw():
    kernel, patch = torch.randn(4, 3, 8, 8), torch.randn(1, 3, 8, 8)
    larger = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    before = (kernel * patch).sum((1, 2, 3))
    after = (resample_patches(kernel, (16, 16)) * larger).sum((1, 2, 3))
    assert torch.allclose(before, after, atol=1e-3)


def test_patches_that_grow_one_way_and_shrink_the_other_keep_their_magnitude():
    kernel = torch.randn(6, 3, 16, 16)
    assert resample_patches(kernel, (30, 12)).abs().max() < 4 * kernel.abs().max()


@pytest.mark.parametrize("in_chans", [1, 4, 13])
def test_channels_are_fitted_as_timm_does(in_chans):
    kernel = torch.randn(6, 3, 4, 4)
    assert torch.allclose(adapt_channels(kernel, in_chans), adapt_input_conv(in_chans, kernel))
    assert adapt_channels(kernel, 3) is kernel
