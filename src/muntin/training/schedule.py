# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Schedules over the training progress: learning rate and image size."""

from __future__ import annotations

import math

from muntin.recipes import TrainConfig
from muntin.shapes import Size

__all__ = ["img_size_at", "lr_factor"]


def lr_factor(config: TrainConfig, progress: float) -> float:
    """Factor on the learning rate: linear warmup, then cosine, linear or step decay.

    Args:
        config: Gives `warmup`, `decay`, `steps` and `min_lr`.
        progress: Finished part of the training, in [0, 1].

    Example:
        >>> [round(lr_factor(TrainConfig(warmup=0.1), p), 3) for p in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.505, 0.01]
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)  # a rate of 0 would waste the first step
    if config.decay == "steps":
        # A step decay has its own lower end: `min_lr` does not apply.
        return 0.1 ** sum(progress >= step for step in config.steps)
    # Progress since the warmup, stretched to [0, 1], so that each decay ends with the training.
    decayed = (progress - config.warmup) / max(1 - config.warmup, 1e-9)
    cosine = (1 + math.cos(math.pi * decayed)) / 2
    factor = 1 - decayed if config.decay == "linear" else cosine
    return config.min_lr + (1 - config.min_lr) * factor


def img_size_at(config: TrainConfig, full: Size, step: int, progress: float) -> Size:
    """Size of the training images, rounded to multiples of `step` pixels.

    Args:
        config: Gives `start_size` and `full_size_from`.
        full: (height, width) of full-size images in pixels.
        step: Stride of the coarsest map, in pixels; its multiples need no padding.
        progress: Finished part of the training, in [0, 1].

    Returns:
        (height, width) in pixels, never more than `full`.
    """
    if config.start_size >= 1 or progress >= config.full_size_from:
        return full
    # Each side keeps at least one cell of the coarsest map.
    part = config.start_size
    return (
        min(full[0], max(step, round(full[0] * part / step) * step)),
        min(full[1], max(step, round(full[1] * part / step) * step)),
    )
