# SPDX-License-Identifier: Apache-2.0
"""Colours of classes and instances, and names as drawings show them."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Sequence
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

PALETTE = (
    ORANGE, SKY, GREEN, VERMILION, PURPLE, BLUE, YELLOW,
    "#87961E", "#A578FF", "#FF1E4B", "#FF00FF", "#00A50F", "#5A87FF", "#FF965A", "#006900",
    "#870087", "#00FF69", "#E10096", "#FF96FF", "#A51EFF", "#C30000", "#96D200", "#FF8787",
    "#784B00", "#00B4B4", "#4B3CC3", "#87B478", "#B4695A", "#0FE1FF", "#870F2D", "#96784B",
    "#008796", "#A596C3", "#964B69", "#B4A578", "#696996", "#FFD296", "#69784B", "#4B4B00",
    "#005A4B", "#96F0E1", "#C3D2FF", "#FFC3B4", "#784B3C", "#FFD2F0", "#D2E1B4", "#4B3C69",
    "#004B69",
)  # fmt: skip
"""Colours of which any two differ by 14.9 or more in CIEDE2000, none of them dark, pale or grey.

After the first seven, the farthest from all before comes next, the vivid before the dull.
"""


def colour_of(number: int) -> Colour:
    """Give the colour of a class or an instance: of the palette, then hues all round.

    Examples:
        >>> colour_of(0)
        (230, 159, 0)
    """
    if number < len(PALETTE):
        return parse_colour(PALETTE[number])
    # Hues of consecutive numbers differ by the golden angle.
    parts = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.75 - 0.3 * (number % 2), 0.95)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def colours_of(count: int, own: Sequence[Colour]) -> Sequence[Colour]:
    """Give the colours of `count` classes: their `own` where the data set defines them."""
    return own if len(own) == count else [*map(colour_of, range(count))]


def parse_colour(name: str) -> Colour:
    """Convert a colour such as "#E69F00"."""
    red, green, blue = ImageColor.getrgb(name)[:3]
    return red, green, blue


def luminance(colour: Colour) -> float:
    """Relative luminance in [0, 1], as WCAG defines it for contrasts."""
    parts = [part / 255 for part in colour]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def clean_label(name: str, class_id: int, max_length: int = 24) -> str:
    """Shorten a class name to one line; use the class number if no font has most of its glyphs.

    Characters of double width, such as Chinese ones, count twice.

    Examples:
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
