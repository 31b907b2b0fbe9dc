# SPDX-License-Identifier: Apache-2.0
"""Bilinear resizing as explicit weights, so that any rows of the result can be computed alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muntin.shapes import Float, Int


class Mixing(NamedTuple):
    """Linear interpolation weights along one axis.

    For each new point: indices of the old points before and after it, and the weight `share` of the
    latter.
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

    Points are pixel centres; beyond the outermost centres the value is constant. `covered` is the
    length of the new axis in old points; default: `before`.
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
    """
    low, high, share = bilinear_mixing(after, before)
    matrix = torch.zeros(after, before)
    # Added, not assigned: at the borders low and high are the same point.
    matrix.scatter_add_(1, low[:, None], (1 - share)[:, None])
    matrix.scatter_add_(1, high[:, None], share[:, None])
    return matrix.to(device)
