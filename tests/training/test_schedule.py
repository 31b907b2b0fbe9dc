# SPDX-License-Identifier: Apache-2.0
"""Learning rate and image size against the formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from muntin.train_config import TrainConfig
from muntin.training.optimization import img_size_at, lr_factor


def test_rise_and_cosine():
    config = TrainConfig(warmup=0.2, min_lr=0.1)
    assert lr_factor(config, 0.05) == pytest.approx(0.25)
    assert lr_factor(config, 0.2) == pytest.approx(1)
    for progress in (0.3, 0.55, 0.9):
        along = (progress - 0.2) / 0.8
        expected = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * along))
        assert lr_factor(config, progress) == pytest.approx(expected)
    assert lr_factor(config, 1.0) == pytest.approx(0.1)
    assert lr_factor(config, 1.7) == lr_factor(config, 1.0)


def test_the_first_step_moves_and_no_rise_is_no_division():
    assert lr_factor(TrainConfig(warmup=0.2), 0.0) == 1e-3
    assert lr_factor(TrainConfig(warmup=0.0), 0.0) == 1


def test_the_curve_never_jumps():
    config = TrainConfig(warmup=0.1, min_lr=0.01)
    values = [lr_factor(config, step / 1000) for step in range(1001)]
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.011
    assert min(values[1:]) > 0


@pytest.mark.parametrize(
    ("progress", "size"),
    [(0.0, (112, 160)), (0.49, (112, 160)), (0.5, (224, 320)), (1, (224, 320))],
)
def test_images_grow(progress, size):
    config = TrainConfig(start_size=0.5, full_size_from=0.5)
    assert img_size_at(config, (224, 320), 16, progress) == size


def test_sizes_are_whole_maps_and_never_larger_than_full():
    config = TrainConfig(start_size=0.3, full_size_from=1)
    assert img_size_at(config, (100, 30), 32, 0.0) == (32, 30)
    assert img_size_at(TrainConfig(), (100, 30), 32, 0.0) == (100, 30)
