# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is chosen for subjects with keypoints when nobody says: model, size and crop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from muntin.data.pose import is_whole
from muntin.data.transforms import Preprocessing
from muntin.heads.head import HeadConfig
from muntin.heads.pose import PoseConfig
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.training.choices import can_be_had
from muntin.training.scenes import Scenes

__all__ = ["cut_subjects", "default_subject_model", "look_at_subjects"]

LONGER_SIDE = 256
"""Of the crop in pixels, unless subjects are smaller."""


def look_at_subjects(listing: Listing) -> Scenes:
    """Measure the boxes of the subjects."""
    boxes = np.array([entry.box for entry in listing.entries if entry.box is not None])
    if not len(boxes):
        return Scenes(side=0.0, crowded=0, typical=(LONGER_SIDE, LONGER_SIDE))
    wide, high = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    return Scenes(side=0.0, crowded=0, typical=(max(1, round(high)), max(1, round(wide))))


def default_subject_model(size: Size, weights: str, device: str) -> tuple[str, Size]:
    """Name of the model and (height, width) of the crop in pixels, in the proportions of subjects.

    Args:
        size: (height, width) of the boxes.
        weights: As `--weights`.
        device: Where it runs.

    Example:
        >>> default_subject_model((400, 280), "none", "cpu")[1]
        (256, 192)
    """
    del device
    published = "swin_tiny_patch4_window7_224"
    trained = weights != "none" and (weights != "auto" or can_be_had(published))
    longer = min(LONGER_SIDE, _round(1.25 * max(size)))
    ratio = float(np.clip(size[1] / size[0], 0.5, 2.0))
    crop = (longer, _round(longer * ratio)) if ratio <= 1 else (_round(longer / ratio), longer)
    return published if trained else "swin_nano_patch4_256", crop


def _round(side: float) -> int:
    return max(64, round(side / 32) * 32)


def cut_subjects(
    pre: Preprocessing, head: HeadConfig | None, listing: Listing, notes: list[str]
) -> Preprocessing:
    """Say how subjects are cut out of their images.

    Args:
        pre: Everything else.
        head: Its coding says how pixels are placed.
        listing: Whole images are read without a margin.
        notes: What was chosen is added.
    """
    whole = is_whole(listing)
    if whole:
        notes.append("every image is one subject: no boxes are needed")
    alignment = head.coding if isinstance(head, PoseConfig) else pre.alignment
    return replace(
        pre,
        fit="instance_crop",
        padding=1.0 if whole else 1.25,
        alignment=alignment,
        interpolation="bilinear",
    )
