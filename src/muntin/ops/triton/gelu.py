# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""GELU, exact to the rounding of float32, with one exponential and one division.

With z = |x| / sqrt(2) and t = 1 / (1 + 0.39 z), erfc(z) = t * P(t) * exp(-z^2), where P is the
polynomial of degree 5 that is best in the largest absolute error over z in [0, 6]: 8.3e-9 (fitted
by iteratively reweighted least squares; tests/ops/triton/test_gelu.py measures it). The form is
that of Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26. Since it is written with
erfc, nothing cancels on either side of zero.
"""

from __future__ import annotations

from typing import no_type_check

import triton
import triton.language as tl

__all__ = ["gelu"]


@triton.jit
@no_type_check
def gelu(x):
    """Give x * Phi(x) for a float32 tile."""
    side = tl.abs(x)
    t = 1.0 / (1.0 + 0.27577164466275355 * side)  # 0.39 / sqrt(2)
    # Half of P, highest power first.
    series = -0.11376851015 * t + 0.44333197065
    series = series * t - 0.3176997909
    series = series * t + 0.3247794176
    series = series * t + 0.04569432049
    series = series * t + 0.11766259145
    tail = series * t * tl.exp2(-0.7213475204444817 * x * x)  # log2(e) / 2
    return tl.maximum(x, 0.0) - side * tail
