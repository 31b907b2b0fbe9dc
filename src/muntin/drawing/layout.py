# SPDX-License-Identifier: Apache-2.0
"""Parts of drawings: the image at a size to look at, panels, a legend, and contact sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.fonts import measure_text, write_text
from muntin.drawing.style import BLUE, INK, VERMILION, Colour, luminance

LARGEST = 1280  # pixels, of the longer side
HALO: Colour = (20, 20, 20)
_GAP = 8
_TOP = 30  # of the names of panels
_LINE = 22
_MIN_LEGEND = 260  # pixels
_SHEET_GAP = 10
_SIZE = 14  # pixels, of letters in a legend
_MIDDLE = 0.179  # luminance at which black and white have equal contrast


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
    return _scale(image, scale, how)


def _scale(image: Image.Image, scale: float, how: Image.Resampling) -> Image.Image:
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, how)


def panel_side(original: NDArray[np.uint8], side: int) -> int:
    """Longer side in pixels of each of two panels that, joined, fit into a square of `side`.

    With two lines of a legend.
    """
    height, width = original.shape[:2]
    room = min((side - _GAP) / 2 / width, (side - _TOP - 2 * _LINE) / height)
    return max(1, int(room * max(height, width)))


def join_panels(panels: Sequence[Image.Image]) -> Image.Image:
    """Join annotation and prediction side by side, each under its name."""
    width = sum(panel.width for panel in panels) + _GAP
    sheet = Image.new("RGB", (width, _TOP + max(panel.height for panel in panels)), "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for panel, name in zip(panels, ("ground truth", "prediction"), strict=True):
        write_text(pen, (left + 4, 5), name, size=16, fill=INK)
        sheet.paste(panel, (left, _TOP))
        left += panel.width + _GAP
    return sheet


LegendRow = tuple[Colour | None, str, str | None]
"""Colour, text, and the tag written on the colour; without a tag, the square is framed.

Without a colour there is no square."""


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
    width = max(image.width, _MIN_LEGEND)
    line, x = 0, _GAP + (round(measure_text(head, _SIZE)) + 2 * _GAP if head else 0)
    spots = []
    for colour, text, tag in rows:
        side = 0 if colour is None else max(16, round(measure_text(tag or "", _SIZE)) + 6)
        long = side + 6 * (side > 0) + round(measure_text(text, _SIZE)) + 2 * _GAP
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
    write_text(pen, (_GAP, top + 11), head, size=_SIZE, fill=INK, anchor="lm")
    for number, x, side, colour, text, tag in shown:
        y = top + number * _LINE
        square = (x, y + 3, x + side - 1, y + 18)
        if tag is None and colour is not None:
            pen.rectangle(square, fill=colour, outline=INK)
        elif colour is not None:
            draw_tag(pen, square, tag or "", colour, size=_SIZE)
        write_text(
            pen, (x + side + 6 * (side > 0), y + 11), text, size=_SIZE, fill=INK, anchor="lm"
        )
    if more:
        place = (_GAP, top + max_lines * _LINE + 11)
        write_text(pen, place, f"and {more} more {what}", size=_SIZE, fill=INK, anchor="lm")
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
    pen.rectangle(place, fill=colour)
    middle = (place[1] + place[3]) / 2
    ink = (0, 0, 0) if luminance(colour) > _MIDDLE else (255, 255, 255)
    write_text(pen, (place[0] + 3, middle), text, size=round(size), fill=ink, anchor="lm")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Thumbnail:
    """One image of a sheet, with its caption line by line.

    `good` frames it blue (a correct prediction) or orange (an error); None: no frame.
    """

    pixels: NDArray[np.uint8]
    lines: tuple[str, ...] = ()
    good: bool | None = None


def draw_sheet(
    tiles: Sequence[Thumbnail], title: str = "", *, columns: int = 0, side: int = 150
) -> Image.Image:
    """Arrange images in rows, `side` pixels on the longer side; 0 columns = automatic."""
    count = max(len(tiles), 1)
    columns = columns or min(8, max(1, math.ceil(math.sqrt(count * 1.5))))
    rows = math.ceil(count / columns)
    text_height = 16 * max((len(tile.lines) for tile in tiles), default=0)
    images = [_fit(tile.pixels, side) for tile in tiles]
    # A row is as high as its highest image.
    heights = [
        max((p.height for p in images[row * columns : (row + 1) * columns]), default=side)
        for row in range(rows)
    ]
    tops = [40 if title else _SHEET_GAP]
    for height in heights:
        tops.append(tops[-1] + height + _SHEET_GAP + text_height)
    cell = side + _SHEET_GAP
    sheet = Image.new("RGB", (columns * cell + _SHEET_GAP, tops[-1] + _SHEET_GAP), "white")
    pen = ImageDraw.Draw(sheet)
    if title:
        write_text(pen, (_SHEET_GAP, 10), title, size=16, fill=INK)
    for index, tile in enumerate(tiles):
        left = _SHEET_GAP + (index % columns) * cell
        upper, height = tops[index // columns], heights[index // columns]
        pixels = images[index]
        place = (left + (side - pixels.width) // 2, upper + (height - pixels.height) // 2)
        sheet.paste(pixels, place)
        if tile.good is not None:
            right, bottom = place[0] + pixels.width, place[1] + pixels.height
            frame = (place[0] - 2, place[1] - 2, right + 1, bottom + 1)
            pen.rectangle(frame, outline=BLUE if tile.good else VERMILION, width=2)
        for number, line in enumerate(tile.lines):
            low = upper + height + 4 + 16 * number
            write_text(pen, (left, low), _shorten(line, 11, side), size=11, fill=INK)
    return sheet


def _fit(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    if 1 <= scale < 2:  # drawn for this size, or nearly as large
        return image
    # Pixels of tiny images stay visible.
    return _scale(image, scale, Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS)


def _shorten(text: str, size: int, width: int) -> str:
    while len(text) > 4 and measure_text(text, size) > width:
        text = text[:-4] + "..."
    return text
