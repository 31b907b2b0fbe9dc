# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""GELU in kernels is the exact one, to the rounding of float32."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("triton")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gelu(x: torch.Tensor) -> torch.Tensor:
    """As the kernels do it: a product with ones on the diagonal, and GELU behind."""
    from muntin.ops.triton.fused_linear import run_linear

    rows, ones = x.to(DEVICE).view(-1, 16), torch.eye(16, device=DEVICE)
    return (
        run_linear(rows, ones, None, None, None, None, None, None, eps=1e-5, gelu=True)
        .flatten()
        .cpu()
    )


def truth(x: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide * 0.5 * torch.erfc(-wide / math.sqrt(2))


def test_values():
    x = torch.linspace(-12, 12, 16 * 256)
    error = (gelu(x).double() - truth(x)).abs()
    assert (error / x.abs().clamp(min=1)).max() <= 2e-7


def test_both_tails():
    x = torch.tensor(
        [0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, 30, -30, 6, -6, 1e-3, -1e-3, 5, -5, 4, -4]
    )
    said = gelu(x)
    torch.testing.assert_close(said.double(), truth(x), rtol=1e-3, atol=1e-8)
    assert said[4] == 1e4
    assert said[5] == 0
    assert gelu(torch.full((16,), math.nan)).isnan().all()


def test_the_polynomial_itself():
    """In float64: what is left is the fit's own error, 8.3e-9 of erfc."""
    coefficients = [0.11766259145, 0.04569432049, 0.3247794176]
    coefficients += [-0.3176997909, 0.44333197065, -0.11376851015]
    z = torch.linspace(0, 9, 100_001, dtype=torch.float64)
    t = 1 / (1 + 0.27577164466275355 * math.sqrt(2) * z)
    series = sum(factor * t ** (power + 1) for power, factor in enumerate(coefficients))
    assert (2 * series * torch.exp(-z * z) - torch.erfc(z)).abs().max() <= 1e-8
