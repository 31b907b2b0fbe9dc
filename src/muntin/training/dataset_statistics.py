# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Statistics of a training set that the defaults depend on: image sizes, object sizes, counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.errors import DataError
from muntin.samples import Listing
from muntin.shapes import Size

__all__ = ["DatasetStatistics", "measure_instances", "measure_objects", "median_size"]

DEFAULT_CROP = (256, 256)
"""(height, width) in pixels assumed for instances whose boxes are unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetStatistics:
    """Statistics of the images and objects of a training set.

    Attributes:
        object_side: Median of sqrt(area of an object) / longer side of its image; 0 = unknown.
        max_objects: Largest number of objects in one image.
        size: Median (height, width) of the images (top-down: of the instance boxes) in pixels.
    """

    object_side: float
    max_objects: int
    size: Size = (0, 0)


def median_size(listing: Listing, max_images: int = 32) -> Size:
    """Median (height, width) in pixels of about `max_images` images, spread evenly."""
    sizes = []
    for index in range(0, len(listing), max(1, len(listing) // max_images)):
        entry = listing.entries[index]
        if entry.size is not None:
            sizes.append(entry.size)
            continue
        try:
            image = decode(read_bytes(listing.source, entry.path), where=entry.path)
        # The median needs no single image; reading the data reports broken ones.
        except (DataError, OSError):
            continue
        sizes.append(image.shape[:2])
    if not sizes:
        return 224, 224
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def measure_objects(listing: Listing) -> DatasetStatistics:
    """Compute the statistics of images with objects or label maps."""
    sides: list[float] = []
    max_objects = 0
    for entry in listing.entries:
        if entry.objects is None:
            continue
        max_objects = max(max_objects, len(entry.objects))
        # The median of 100,000 objects is precise enough, and COCO has 860,000 of them.
        if entry.size is not None and len(sides) < 100_000:
            sides += (np.sqrt(entry.objects.areas) / max(entry.size)).tolist()
    side = float(np.median(sides)) if sides else 0.0
    return DatasetStatistics(object_side=side, max_objects=max_objects, size=median_size(listing))


def measure_instances(listing: Listing) -> DatasetStatistics:
    """Compute the statistics of top-down keypoint data, where an entry is one instance."""
    boxes = np.array([entry.box for entry in listing.entries if entry.box is not None])
    if not len(boxes):
        return DatasetStatistics(object_side=0.0, max_objects=0, size=DEFAULT_CROP)
    wide, high = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    size = max(1, round(high)), max(1, round(wide))
    return DatasetStatistics(object_side=0.0, max_objects=0, size=size)
