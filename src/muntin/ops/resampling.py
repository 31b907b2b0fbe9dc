# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Bilinear resizing as explicit weights, so that any rows of the result can be computed alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Float, Int

__all__ = ["Mixing", "bilinear_matrix", "bilinear_mixing"]


class Mixing(NamedTuple):
    """Linear interpolation weights along one axis.

    Attributes:
        low: For each new point, index of the old point before it.
        high: Index of the old point after it.
        share: Weight of `high`; `low` has weight 1 - share.
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
    """Compute the weights of ``interpolate(mode="bilinear", align_corners=False)`` along an axis.

    Points are pixel centres; beyond the outermost centres the value is constant.

    Args:
        after: Length of the new axis.
        before: Length of the old axis.
        covered: Length of the new axis in old points; default: `before`.
        device: Device of the result.
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
    """Build `bilinear_mixing` as a matrix.

    ``rows @ cells @ columns.T`` resizes a map; a subset of `rows` gives a strip of it.

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
