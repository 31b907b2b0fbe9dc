# SPDX-License-Identifier: Apache-2.0
"""What dense detectors get by the data: a finer level, and mixed images."""

from __future__ import annotations

import pytest

from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS
from muntin.training.defaults import DatasetStatistics
from muntin.training.detector_defaults import choose_mixing, suit_objects


@pytest.mark.parametrize(
    ("head", "small_side", "finest"),
    [
        ("dense_small", 0.03, 4),  # 9.6 of 320 pixels
        ("dense_small", 0.04, 8),  # 12.8 pixels
        ("dense_small", 0.0, 8),  # not known
        ("fcos_small", 0.03, 8),
    ],
)
def test_small_objects_get_a_finer_level(head, small_side, finest):
    statistics = DatasetStatistics(object_side=0.1, max_objects=3, small_side=small_side)
    choice = suit_objects(DETECTORS[head], statistics, (240, 320))
    assert choice.value.neck.finest == finest
    assert len(choice.notes) == (finest == 4)
    assert all("head.neck.finest" in note for note in choice.notes)


def test_dense_heads_learn_from_mixed_images():
    augment = DetectionAugmentConfig(scale=(0.5, 2.0))
    mixed = choose_mixing(augment, MASK_DETECTORS["dense_small"])
    assert mixed.mosaic > 0
    assert mixed.paste > 0
    assert mixed.scale == augment.scale
    assert choose_mixing(augment, DETECTORS["fcos_small"]) == augment
    short = DetectionAugmentConfig(short_sides=(64, 96))
    assert choose_mixing(short, DETECTORS["dense"]) == short
