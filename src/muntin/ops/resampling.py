# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Bilinear resizing a part at a time: any rows of the result can be had by themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Float, Int

__all__ = ["Mixing", "bilinear_matrix", "bilinear_mixing"]


class Mixing(NamedTuple):
    """How points of a line are mixed into points of a longer or shorter one.

    Attributes:
        low: For each new point, the old point before it.
        high: The old point behind it.
        share: Weight of the latter; the former has the rest.
    """

    low: Int[Tensor, " N"]
    high: Int[Tensor, " N"]
    share: Float[Tensor, " N"]


def bilinear_mixing(
    after: int,
    before: int,
    *,
    covered: float | None = None,
    device: torch.device | None = None,
) -> Mixing:
    """Say how ``interpolate(mode="bilinear", align_corners=False)`` mixes the points of a line.

    A point stands for a piece of the line, and beyond the outermost points there is no other value.

    Args:
        after: Points of the new line.
        before: Points of the old line.
        covered: Length of the new line in old points; all of them when left out.
        device: Where to.
    """
    length = before if covered is None else covered
    # Pixel-centre convention: centre i + 0.5 maps to (i + 0.5) * scale - 0.5. Float64, so
    # that rounding does not pick a wrong neighbour on long lines.
    places = (torch.arange(after, dtype=torch.float64) + 0.5) * (length / after) - 0.5
    places = places.clamp(0, before - 1)
    low = places.floor().long()
    high = (low + 1).clamp(max=before - 1)
    share = (places - low).float()
    return Mixing(low.to(device), high.to(device), share.to(device))


def bilinear_matrix(
    after: int, before: int, *, device: torch.device | None = None
) -> Float[Tensor, "after before"]:
    """Give `bilinear_mixing` as a matrix.

    Of a map, ``rows @ cells @ columns.T`` is the resized one, some rows of `rows` a strip of it.

    Example:
        >>> bilinear_matrix(4, 2)
        tensor([[1.0000, 0.0000],
                [0.7500, 0.2500],
                [0.2500, 0.7500],
                [0.0000, 1.0000]])
    """
    low, high, share = bilinear_mixing(after, before)
    matrix = torch.zeros(after, before)
    # Added, not assigned: at the borders low and high are the same point.
    matrix.scatter_add_(1, low[:, None], (1 - share)[:, None])
    matrix.scatter_add_(1, high[:, None], share[:, None])
    return matrix.to(device)
