# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One font for every picture: the one that matplotlib brings, which knows most alphabets."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

__all__ = ["has_glyphs", "load_font"]

_PLACE = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Give DejaVu Sans, `size` pixels high."""
    return ImageFont.truetype(str(_PLACE), size)


def has_glyphs(text: str) -> bool:
    """Whether the font has a picture of every character of a text.

    Example:
        >>> has_glyphs("chat"), has_glyphs("\u732b")
        (True, False)
    """
    return _known_signs().issuperset(map(ord, text))


@cache
def _known_signs() -> frozenset[int]:
    return frozenset(FT2Font(str(_PLACE)).get_charmap())
