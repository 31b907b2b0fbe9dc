# SPDX-License-Identifier: Apache-2.0
"""Tensor annotations and the size type.

``Float[Tensor, "B C H W"]`` states dtype and shape of a tensor. The tests execute them; users do
not need jaxtyping, without which the annotation is a plain ``Tensor``. The letters are listed in
``docs/reference/letters.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Bool", "Float", "Int", "Real", "Size", "UInt8"]

Size = tuple[int, int]
"""(height, width). The name of the variable gives the unit (pixels, tokens, cells)."""

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Real, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, Real, UInt8
    except ImportError:

        class _Plain:
            def __class_getitem__(cls, item: tuple[type, str]) -> type:
                return item[0]

        Bool = Float = Int = Real = UInt8 = _Plain
