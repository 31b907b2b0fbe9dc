# SPDX-License-Identifier: Apache-2.0
"""The font of all drawings: DejaVu Sans from matplotlib, which covers most alphabets."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

_PLACE = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Give DejaVu Sans, `size` pixels high."""
    return ImageFont.truetype(str(_PLACE), size)


def clean_label(name: str, class_id: int, max_length: int = 24) -> str:
    """Shorten a class name to one line; use the class number if the font lacks a glyph.

    Example:
        >>> clean_label("domestic   cat", 3), clean_label("\u732b", 3)
        ('domestic cat', 'class 3')
    """
    line = " ".join(name.encode("utf-8", "replace").decode().split())
    if not has_glyphs(line):
        return f"class {class_id}"
    return line if len(line) <= max_length else line[: max_length - 3] + "..."


def has_glyphs(text: str) -> bool:
    """Whether the font has a glyph for every character of a text.

    Example:
        >>> has_glyphs("chat"), has_glyphs("\u732b")
        (True, False)
    """
    return _known_signs().issuperset(map(ord, text))


@cache
def _known_signs() -> frozenset[int]:
    return frozenset(FT2Font(str(_PLACE)).get_charmap())
