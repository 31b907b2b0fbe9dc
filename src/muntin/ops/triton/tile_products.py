# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Products of tiles, on the GPU and in Triton's interpreter."""

from __future__ import annotations

import os
from typing import no_type_check

import torch
import triton
import triton.language as tl

__all__ = ["multiply", "narrow", "precision_of"]


@triton.jit
@no_type_check
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """Add the product of two tiles to a float32 tile."""
    # bfloat16 in the interpreter only; on a GPU the types are multiplied as they are.
    if PRECISION == "widened":
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
@no_type_check
def narrow(x, like, PRECISION: tl.constexpr):
    """Round a float32 tile to the type that a pointer points to, to the nearest."""
    if PRECISION == "widened":
        # The interpreter cuts the last bits off; where it was taught to round, none are left.
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = bits.to(tl.float32, bitcast=True)
    return x.to(like.dtype.element_ty)


def precision_of(dtype: torch.dtype) -> str:
    """Give how tiles of a type are multiplied: float32 is never shortened to TF32.

    The interpreter multiplies the bit patterns of bfloat16, so there it is widened first; the
    products are the same.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return "widened" if interpreted and dtype == torch.bfloat16 else "ieee"
