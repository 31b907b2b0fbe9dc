# SPDX-License-Identifier: Apache-2.0
"""One colour per class, the same in every drawing, and the font: DejaVu Sans from matplotlib."""

from __future__ import annotations

import colorsys
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageColor, ImageFont

Colour = tuple[int, int, int]
"""Red, green, blue."""

# Okabe and Ito: distinguishable with colour vision deficiency.
ORANGE, SKY, GREEN, VERMILION = "#E69F00", "#56B4E9", "#009E73", "#D55E00"
PURPLE, BLUE, YELLOW, INK = "#CC79A7", "#0072B2", "#F0E442", "#222222"

LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Of lines and bars."""

# In an order in which the first few are far apart, whatever colours one sees.
_PALETTE = (ORANGE, SKY, GREEN, VERMILION, PURPLE, BLUE, YELLOW)

_PLACE = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def colour_of(class_id: int) -> Colour:
    """Give the colour of a class: seven, the same lighter, then darker, then hues all round.

    Example:
        >>> colour_of(0)
        (230, 159, 0)
    """
    cycle, place = divmod(class_id, len(_PALETTE))
    if cycle > 2:  # hues of consecutive classes differ by the golden angle
        parts = colorsys.hsv_to_rgb(class_id * 0.618 % 1, 0.75 - 0.3 * (class_id % 2), 0.95)
        mixed = [round(255 * part) for part in parts]
    else:
        towards, share = ((0, 0.0), (255, 0.45), (0, 0.4))[cycle]
        plain = ImageColor.getrgb(_PALETTE[place])[:3]
        mixed = [round(value + (towards - value) * share) for value in plain]
    return mixed[0], mixed[1], mixed[2]


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
