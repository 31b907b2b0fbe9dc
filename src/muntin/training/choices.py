# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is chosen when nobody says: the model by the pictures, the recipe by their number."""

from __future__ import annotations

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.errors import DataError, WeightError
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.weights.hub import fetch
from muntin.zoo import find_model

__all__ = ["default_model", "default_recipe", "typical_size"]

FEW = 100_000
"""Below so many training pictures a fresh model takes the small-data recipe."""


def typical_size(listing: Listing, most: int = 32) -> Size:
    """Median (height, width) of some pictures, in pixels."""
    sizes = []
    for index in range(0, len(listing), max(1, len(listing) // most)):
        entry = listing.entries[index]
        try:
            picture = decode(read_bytes(listing.source, entry.path), where=entry.path)
        except (DataError, OSError):
            continue
        sizes.append(picture.shape[:2])
    if not sizes:
        return 224, 224
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def default_model(size: Size, weights: str, device: str) -> tuple[str, int]:
    """Name and picture side in pixels for pictures of a size, given `--weights` and the device."""
    side = min(size)
    if side <= 48:
        return "swin_nano_patch2_window4_32", max(16, -(-side // 8) * 8)
    published = "swin_tiny_patch4_window7_224"
    if side >= 96 and weights != "none" and (weights != "auto" or _can_be_had(published)):
        return published, 224
    most = 128 if device == "cpu" else 224
    return "swin_nano_patch4_window4_64", min(most, max(48, -(-side // 16) * 16))


def _can_be_had(name: str) -> bool:
    """Whether published weights are in the cache or the hub answers."""
    try:
        fetch(find_model(name).weights)
    except WeightError:
        return False
    return True


def default_recipe(count: int, *, pretrained: bool) -> tuple[str, str]:
    """Name of the recipe for so many training pictures, and why."""
    if pretrained:
        return "finetune", "the weights are trained already"
    if count < FEW:
        return "small-data", f"{count} pictures are few for a fresh model"
    return "imagenet", f"{count} pictures are many"
