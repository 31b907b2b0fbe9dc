# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is chosen for maps of classes when nobody says: model, window and scale."""

from __future__ import annotations

import math

from muntin.shapes import Size
from muntin.training.choices import can_be_had

__all__ = ["choose_scale", "default_map_model"]

MOST_WINDOWS = 6
"""On a CPU, a typical image is made smaller until it has so many times the area of a window."""


def default_map_model(size: Size, weights: str, device: str) -> tuple[str, Size]:
    """Name of the model, and (height, width) in pixels of the part that it sees at a time.

    Args:
        size: (height, width) of the images.
        weights: As `--weights`.
        device: Where it runs.
    """
    published = "swin_tiny_patch4_window7_224"
    trained = weights != "none" and (weights != "auto" or can_be_had(published))
    side = 512 if device != "cpu" else 320 if trained else 256
    window = (min(side, _round_up(size[0])), min(side, _round_up(size[1])))
    return published if trained else "swin_nano_patch4_window4_64", window


def choose_scale(typical: Size, window: Size, device: str) -> float:
    """Factor by which images are seen: 1, or less where small machines would see too much.

    Example:
        >>> choose_scale((400, 400), (256, 256), "cpu")
        1.0
        >>> choose_scale((2000, 2000), (256, 256), "cpu")
        0.31
    """
    if device != "cpu" or min(typical) == 0:
        return 1.0
    room = MOST_WINDOWS * window[0] * window[1]
    return min(1.0, round(math.sqrt(room / (typical[0] * typical[1])), 2))


def _round_up(side: int) -> int:
    return max(64, -(-side // 32) * 32)
