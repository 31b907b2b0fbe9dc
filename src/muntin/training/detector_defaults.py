# SPDX-License-Identifier: Apache-2.0
"""Defaults of dense detectors by statistics of the data: a finer level, and mixed images."""

from __future__ import annotations

from dataclasses import replace

from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.heads.dense_head import DenseConfig
from muntin.heads.network import HeadConfig
from muntin.shapes import Size
from muntin.training.defaults import Choice, DatasetStatistics

FINE_STRIDE = 4
"""Stride of the finer level ..."""

FINE_SIDE = 12.0
"""... for data of which a fifth of the objects has at most this side, in pixels of the input."""

MOSAIC, PASTE = 0.3, 0.3
"""Share of the images that are mixed with others where a dense head learns."""


def suit_objects(
    head: HeadConfig, statistics: DatasetStatistics, img_size: Size
) -> Choice[HeadConfig]:
    """Add a finer level to a dense head whose smallest objects would lie within a cell or so."""
    side = statistics.small_side * max(img_size)
    if not isinstance(head, DenseConfig) or head.neck.finest <= FINE_STRIDE:
        return Choice(head)
    if not 0 < side < FINE_SIDE:
        return Choice(head)
    note = (
        f"a fifth of the objects has less than {side:.0f} pixels a side: the pyramid begins at "
        f"stride {FINE_STRIDE} (head.neck.finest)"
    )
    return Choice(replace(head, neck=replace(head.neck, finest=FINE_STRIDE)), (note,))


def choose_mixing(
    augment: DetectionAugmentConfig, head: HeadConfig | None
) -> DetectionAugmentConfig:
    """Mix images for a dense head, unless they are resized by `short_sides`."""
    if not isinstance(head, DenseConfig) or augment.short_sides:
        return augment
    return replace(augment, mosaic=MOSAIC, paste=PASTE)
