# SPDX-License-Identifier: Apache-2.0
"""How far points are from a standard normal distribution, along random directions.

Source:
    Epps and Pulley 1983, "A test for normality based on the empirical characteristic function";
    Balestriero and LeCun 2025, "LeJEPA" (arXiv 2511.08544), section 4: the mean of this statistic
    over random directions as a loss (SIGReg), with 17 knots in [-5, 5]. Written from the paper, and
    compared with the closed form of the integral in tests/ops/test_gaussian_distance.py.
    Differs: 17 knots in [-3, 3], beyond which the weight is below 1e-3; closer ones follow points
    that are farther apart. Only the 8 above 0 are computed: the integrand is even, and 0 at 0.

Letters: N points, D dimensions, M directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muntin.collectives import mean_rows
from muntin.shapes import Float

_KNOTS, _END = 8, 3.0  # above 0


def epps_pulley(x: Float[Tensor, "N M"]) -> Float[Tensor, " M"]:
    """Distance of each column's distribution from the standard normal one, times N.

    N times the integral over t of |mean(exp(i t x)) - exp(-t^2 / 2)|^2 exp(-t^2).
    """
    step = _END / _KNOTS
    t = step * torch.arange(1, _KNOTS + 1, device=x.device, dtype=torch.float32)
    angles = x.float()[..., None] * t  # N, M, knots
    wanted = torch.exp(-t.square() / 2)
    (cosine, sine), count = mean_rows(torch.stack([angles.cos(), angles.sin()], dim=1))
    apart = (cosine - wanted).square() + sine.square()
    weights = 2 * step * torch.exp(-t.square())  # twice: t and -t
    weights[-1] /= 2  # the end of the trapezoidal rule
    return count * (apart * weights).sum(dim=1)


def sketch_gaussian(x: Float[Tensor, "N D"], directions: Float[Tensor, "D M"]) -> Float[Tensor, ""]:
    """Mean of `epps_pulley` over directions, of any length but 0."""
    units = directions / directions.norm(dim=0, keepdim=True)
    # Mixed precision hands inputs of a step over in half precision.
    return epps_pulley(x.float() @ units.to(x.device).float()).mean()
