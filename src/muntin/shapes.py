# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Tensor annotations and the size type.

``Float[Tensor, "B C H W"]`` says what a tensor holds and how long its sides are. The tests
execute these annotations (jaxtyping's import hook with beartype); users need neither library:
without jaxtyping the annotation is a plain ``Tensor``. The letters are listed in
``docs/reference/letters.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Bool", "Float", "Int", "Size", "UInt8"]

Size = tuple[int, int]
"""(height, width). The unit (pixels, tokens, cells) is in the name of the variable."""

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ImportError:

        class _Plain:
            """Stands in for a jaxtyping type: ``Float[Tensor, "B C"]`` is then ``Tensor``."""

            def __class_getitem__(cls, item: tuple[type, str]) -> type:
                return item[0]

        Bool = Float = Int = UInt8 = _Plain
