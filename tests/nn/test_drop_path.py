# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A branch is left out for whole images, and its mean stays."""

from __future__ import annotations

import pytest
import torch

from muntin.nn.drop_path import DropPath, drop_path_schedule


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
