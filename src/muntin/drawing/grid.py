# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Contact sheets: many images, each with a caption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from muntin.drawing.colours import BLUE, INK, VERMILION
from muntin.drawing.fonts import load_font

__all__ = ["Thumbnail", "draw_sheet"]

GAP = 10


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
    small, large = load_font(11), load_font(16)
    text_height = 16 * max((len(tile.lines) for tile in tiles), default=0)
    images = [_fit(tile.pixels, side) for tile in tiles]
    # A row is as high as its highest image.
    heights = [
        max((p.height for p in images[row * columns : (row + 1) * columns]), default=side)
        for row in range(rows)
    ]
    tops = [40 if title else GAP]
    for height in heights:
        tops.append(tops[-1] + height + GAP + text_height)
    cell = side + GAP
    sheet = Image.new("RGB", (columns * cell + GAP, tops[-1] + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((GAP, 10), title, fill=INK, font=large)
    for index, tile in enumerate(tiles):
        left = GAP + (index % columns) * cell
        upper, height = tops[index // columns], heights[index // columns]
        pixels = images[index]
        place = (left + (side - pixels.width) // 2, upper + (height - pixels.height) // 2)
        sheet.paste(pixels, place)
        if tile.good is not None:
            right, bottom = place[0] + pixels.width, place[1] + pixels.height
            frame = (place[0] - 2, place[1] - 2, right + 1, bottom + 1)
            pen.rectangle(frame, outline=BLUE if tile.good else VERMILION, width=2)
        for number, line in enumerate(tile.lines):
            text = _shorten(line, small, side)
            pen.text((left, upper + height + 4 + 16 * number), text, fill=INK, font=small)
    return sheet


def _fit(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Pixels of tiny images stay visible.
    how = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    return image.resize(size, how)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while len(text) > 4 and font.getlength(text) > width:
        text = text[:-4] + "..."
    return text
