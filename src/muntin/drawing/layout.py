# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of drawings: the image at a size to look at, panels side by side, and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.colours import INK, Colour
from muntin.drawing.fonts import load_font

__all__ = ["HALO", "LARGEST", "LegendRow", "add_legend", "draw_tag", "fit_image", "join_panels"]

LARGEST = 1280  # pixels, of the longer side
HALO: Colour = (20, 20, 20)
_GAP = 8
_LINE = 22
_MIN_LEGEND = 260  # pixels


def fit_image(
    original: NDArray[np.uint8], smallest: int, largest: int, *, tiny: int = 0
) -> Image.Image:
    """Bring the longer side of a grey or RGB image between two limits, in pixels; RGB.

    Up to the longer side `tiny`, pixels are enlarged by a whole number, without smoothing.
    """
    grey = original.ndim == 2 or original.shape[2] == 1
    pixels = original.reshape(original.shape[:2]) if grey else original
    image = Image.fromarray(pixels).convert("RGB")
    longer = max(image.size)
    scale = min(max(longer, smallest), largest) / longer
    how = Image.Resampling.LANCZOS
    if longer <= tiny:
        scale, how = max(1, round(scale)), Image.Resampling.NEAREST
    if scale == 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, how)


def join_panels(
    panels: Sequence[Image.Image], names: Sequence[str] = ("ground truth", "prediction")
) -> Image.Image:
    """Join panels side by side, each under its name."""
    top = 30
    font = load_font(16)
    width = sum(panel.width for panel in panels) + _GAP
    sheet = Image.new("RGB", (width, top + max(panel.height for panel in panels)), "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for panel, name in zip(panels, names, strict=True):
        pen.text((left + 4, 5), name, fill=INK, font=font)
        sheet.paste(panel, (left, top))
        left += panel.width + _GAP
    return sheet


LegendRow = tuple[Colour, str, str | None]
"""Colour, text, and the tag written on the colour; without a tag, the square is framed."""


def add_legend(
    image: Image.Image,
    rows: Sequence[LegendRow],
    *,
    head: str = "",
    what: str = "classes",
    max_lines: int = 6,
) -> Image.Image:
    """Add a legend of at most `max_lines` lines below an image: `head`, colours and texts.

    `what` is the plural noun for the rows that do not fit.
    """
    font = load_font(14)
    width = max(image.width, _MIN_LEGEND)
    line, x = 0, _GAP + (round(font.getlength(head)) + 2 * _GAP if head else 0)
    spots = []
    for colour, text, tag in rows:
        side = max(16, round(font.getlength(tag or "")) + 6)
        long = side + 6 + round(font.getlength(text)) + 2 * _GAP
        if x + long > width and x > _GAP:
            line, x = line + 1, _GAP
        spots.append((line, x, side, colour, text, tag))
        x += long
    shown = [spot for spot in spots if spot[0] < max_lines]
    more = len(spots) - len(shown)
    lines = min(line, max_lines - 1) + 1 + bool(more)
    sheet = Image.new("RGB", (width, image.height + _LINE * lines + _GAP), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    top = image.height + 4
    pen.text((_GAP, top + 11), head, fill=INK, font=font, anchor="lm")
    for number, x, side, colour, text, tag in shown:
        y = top + number * _LINE
        square = (x, y + 3, x + side - 1, y + 18)
        if tag is None:
            pen.rectangle(square, fill=colour, outline=INK)
        else:
            draw_tag(pen, square, tag, colour, size=14)
        pen.text((x + side + 6, y + 11), text, fill=INK, font=font, anchor="lm")
    if more:
        place = (_GAP, top + max_lines * _LINE + 11)
        pen.text(place, f"and {more} more {what}", fill=INK, font=font, anchor="lm")
    return sheet


def draw_tag(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int, int, int],
    text: str,
    colour: Colour,
    *,
    size: float,
) -> None:
    """Draw a text, `size` pixels high, in black or white on a rectangle of a colour.

    `place` is left, top, right and bottom, the last two included.
    """
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 140
    pen.rectangle(place, fill=colour)
    middle = (place[1] + place[3]) / 2
    ink = (0, 0, 0) if bright else (255, 255, 255)
    font = load_font(round(size))
    pen.text((place[0] + 3, middle), text, fill=ink, font=font, anchor="lm")
