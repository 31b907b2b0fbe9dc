# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of drawings: two panels side by side, and a legend below a panel."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from muntin.drawing.colours import Colour
from muntin.drawing.fonts import load_font

__all__ = ["add_legend", "join_panels"]

_INK: Colour = (34, 34, 34)
_GAP = 8
_LINE = 22
_MOST_LINES = 6


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
        pen.text((left + 4, 5), name, fill=_INK, font=font)
        sheet.paste(panel, (left, top))
        left += panel.width + _GAP
    return sheet


def add_legend(
    image: Image.Image,
    rows: Sequence[tuple[Colour, str]],
    *,
    what: str = "classes",
    nothing: str = "nothing labelled",
) -> Image.Image:
    """Add a legend below an image: colours and texts, up to six lines.

    Args:
        image: The panel.
        rows: Colours and texts in order.
        what: Plural noun for those that do not fit.
        nothing: Text if the legend is empty.
    """
    font = load_font(14)
    width = max(image.width, 260)
    spots, line, x = [], 0, _GAP
    for colour, text in rows:
        long = 22 + round(font.getlength(text)) + 2 * _GAP
        if x + long > width and x > _GAP:
            line, x = line + 1, _GAP
        spots.append((line, x, colour, text))
        x += long
    shown = [spot for spot in spots if spot[0] < _MOST_LINES]
    more = len(spots) - len(shown)
    lines = (min(line, _MOST_LINES - 1) + 1 if spots else 1) + bool(more)
    sheet = Image.new("RGB", (width, image.height + _LINE * lines + _GAP), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    top = image.height + 4
    for number, x, colour, text in shown:
        y = top + number * _LINE
        pen.rectangle((x, y + 3, x + 15, y + 18), fill=colour, outline=_INK)
        pen.text((x + 22, y + 11), text, fill=_INK, font=font, anchor="lm")
    if more:
        place = (_GAP, top + _MOST_LINES * _LINE + 11)
        pen.text(place, f"and {more} more {what}", fill=_INK, font=font, anchor="lm")
    if not spots:
        pen.text((_GAP, top + 11), nothing, fill=_INK, font=font, anchor="lm")
    return sheet
