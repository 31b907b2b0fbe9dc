# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The augmentations of all kinds of tasks, as a run's config may hold them."""

from __future__ import annotations

from muntin.data.classification_transforms import AugmentConfig
from muntin.data.detection_transforms import DetectionAugmentConfig
from muntin.data.keypoint_transforms import KeypointAugmentConfig
from muntin.data.segmentation_transforms import SegmentationAugmentConfig

__all__ = ["AnyAugmentConfig"]

AnyAugmentConfig = (
    AugmentConfig | DetectionAugmentConfig | SegmentationAugmentConfig | KeypointAugmentConfig
)
"""Each has a `kind`, which files name; all of them are a `muntin.data.transforms.Augmentation`."""
