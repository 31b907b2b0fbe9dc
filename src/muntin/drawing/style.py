# SPDX-License-Identifier: Apache-2.0
"""One colour per class, the same in every drawing, and its name as drawings show it."""

from __future__ import annotations

import colorsys
import unicodedata
from itertools import accumulate

from PIL import ImageColor

from muntin.drawing.fonts import replace_missing, warn_of_missing

Colour = tuple[int, int, int]
"""Red, green, blue."""

# Okabe and Ito: distinguishable with colour vision deficiency.
ORANGE, SKY, GREEN, VERMILION = "#E69F00", "#56B4E9", "#009E73", "#D55E00"
PURPLE, BLUE, YELLOW, INK = "#CC79A7", "#0072B2", "#F0E442", "#222222"

LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Of lines and bars."""

# In an order in which the first few are far apart, whatever colours one sees.
_PALETTE = (ORANGE, SKY, GREEN, VERMILION, PURPLE, BLUE, YELLOW)


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


def clean_label(name: str, class_id: int, max_length: int = 24) -> str:
    """Shorten a class name to one line; use the class number if no font has most of its glyphs.

    Characters of double width, such as Chinese ones, count twice.

    Example:
        >>> clean_label("domestic   cat", 3)
        'domestic cat'
    """
    line = " ".join(name.encode("utf-8", "replace").decode().split())
    written = replace_missing(line)
    if written != line:
        warn_of_missing()
        line = written or f"class {class_id}"
    widths = [2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line]
    if sum(widths) <= max_length:
        return line
    kept = [
        sign for sign, end in zip(line, accumulate(widths), strict=True) if end < max_length - 2
    ]
    return "".join(kept) + "..."
