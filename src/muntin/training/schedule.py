# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What changes as training goes on: the learning rate and the size of the images."""

from __future__ import annotations

import math

from muntin.recipes import TrainConfig
from muntin.shapes import Size

__all__ = ["rate_factor", "size_at"]


def rate_factor(config: TrainConfig, progress: float) -> float:
    """Factor on the learning rate: a linear rise, then half a cosine, a line, or steps down.

    Args:
        config: Gives `warmup`, `decay`, `steps` and `min_lr`.
        progress: Part of the training that is done, 0 to 1.

    Example:
        >>> [round(rate_factor(TrainConfig(warmup=0.1), p), 3) for p in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.505, 0.01]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    if config.decay == "steps":
        return 0.1 ** sum(progress >= step for step in config.steps)
    along = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
    height = 1 - along if config.decay == "linear" else (1 + math.cos(math.pi * along)) / 2
    return config.min_lr + (1 - config.min_lr) * height


def size_at(config: TrainConfig, full: Size, step: int, progress: float) -> Size:
    """Size of training images: from `start_size` of the full size, in steps of `step` pixels.

    Args:
        config: Gives `start_size` and `full_size_from`.
        full: (height, width) of full-size images in pixels.
        step: Sizes are multiples of it (the stride of the coarsest map, so that maps stay whole).
        progress: Part of the training that is done, 0 to 1.

    Returns:
        (height, width) in pixels, never more than `full`.
    """
    if config.start_size >= 1 or progress >= config.full_size_from:
        return full
    part = config.start_size
    return (
        min(full[0], max(step, round(full[0] * part / step) * step)),
        min(full[1], max(step, round(full[1] * part / step) * step)),
    )
