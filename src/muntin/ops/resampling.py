# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Bilinear enlarging as a matrix, so that any part of the result can be had by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from muntin.shapes import Float

__all__ = ["bilinear_matrix"]


def bilinear_matrix(
    after: int, before: int, *, device: torch.device | None = None
) -> Float[Tensor, "after before"]:
    """Give the weights with which points of a line are mixed into points of a longer or shorter one.

    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`` mixes them: a point
    stands for a piece of the line, and beyond the outermost points there is no other value. Of a
    map, ``rows @ cells @ columns.T`` is all of it, and some rows of `rows` a strip of it.

    Args:
        after: Points of the new line.
        before: Points of the old line.
        device: Where to.

    Example:
        >>> bilinear_matrix(4, 2)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]])
    """
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * (before / after) - 0.5
    places = places.clamp(0, before - 1)
    distance = (places[:, None] - torch.arange(before, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float().to(device)
