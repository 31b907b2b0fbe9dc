# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of classes laid over their picture, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.colours import Colour, colour_of
from muntin.drawing.fonts import clean_label, load_font
from muntin.results import SemanticMap
from muntin.shapes import Int

__all__ = ["draw_labels", "draw_map", "draw_maps_side_by_side"]

_LARGEST = 1280  # pixels, of the longer side
_SMALLEST = 480
_SHARE = 0.55  # of the colour in what is drawn
_INK: Colour = (34, 34, 34)
_GAP = 8
_LINE = 22
_MOST_LINES = 6


def draw_map(picture: NDArray[np.uint8], found: SemanticMap) -> Image.Image:
    """Draw what was said of every pixel.

    Args:
        picture: (H, W, 3) uint8, or grey: the original that `found` speaks of.
        found: Its classes are drawn in the colours of their data set, where it has colours.

    Returns:
        A new picture, at most 1280 pixels on the longer side, with a strip below that says what
        the colours stand for and what share of the picture they cover.
    """
    return draw_labels(picture, found.labels, found.class_names, found.colors)


def draw_labels(
    picture: NDArray[np.uint8],
    labels: Int[np.ndarray, "H W"],
    class_names: Sequence[str],
    colors: Sequence[Colour] = (),
    *,
    largest: int = _LARGEST,
) -> Image.Image:
    """Draw labels over their picture; pixels with a label below 0 are left as they are.

    Args:
        picture: (H, W, 3) uint8, or grey.
        labels: Class number of each pixel.
        class_names: Name of each class number.
        colors: Colour of each, or none.
        largest: Pixels of the longer side of what is given.

    Returns:
        A new picture.
    """
    palette = _palette(len(class_names), colors)
    image, shown = _fit(picture, labels, largest)
    pixels = np.array(image)
    known = shown >= 0
    painted = pixels.astype(np.float32)
    painted[known] += (palette[shown[known]] - painted[known]) * _SHARE
    edges = np.zeros(shown.shape, bool)
    edges[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edges[1:] |= shown[1:] != shown[:-1]
    painted[edges] *= 0.6
    image = Image.fromarray(painted.round().astype(np.uint8))
    counts = np.bincount(labels[labels >= 0].ravel(), minlength=len(class_names))
    return _add_legend(image, counts, labels.size, class_names, palette)


def draw_maps_side_by_side(
    picture: NDArray[np.uint8],
    truth: Int[np.ndarray, "H W"],
    found: SemanticMap,
) -> Image.Image:
    """Draw what is annotated beside what was said.

    Args:
        picture: (H, W, 3) uint8, or grey: the original that both speak of.
        truth: The annotation, left.
        found: The answer, right.
    """
    panels = [
        draw_labels(picture, labels, found.class_names, found.colors, largest=960)
        for labels in (truth, found.labels)
    ]
    top = 30
    font = load_font(16)
    width = sum(panel.width for panel in panels) + _GAP
    sheet = Image.new("RGB", (width, top + max(panel.height for panel in panels)), "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for panel, name in zip(panels, ("truth", "found"), strict=True):
        pen.text((left + 4, 5), name, fill=_INK, font=font)
        sheet.paste(panel, (left, top))
        left += panel.width + _GAP
    return sheet


def _palette(count: int, colors: Sequence[Colour]) -> NDArray[np.float32]:
    if len(colors) == count:
        return np.array(colors, np.float32)
    return np.array([colour_of(number) for number in range(count)], np.float32)


def _fit(
    picture: NDArray[np.uint8], labels: NDArray[np.integer], largest: int
) -> tuple[Image.Image, NDArray[np.integer]]:
    """Bring both to a size that can be looked at."""
    grey = picture.ndim == 2 or picture.shape[2] == 1
    image = Image.fromarray(picture.reshape(picture.shape[:2]) if grey else picture).convert("RGB")
    longer = max(image.size)
    scale = min(max(longer, _SMALLEST), largest) / longer
    if scale == 1:
        return image, labels
    width, height = (max(1, round(side * scale)) for side in image.size)
    rows = ((np.arange(height) + 0.5) * labels.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * labels.shape[1] / width).astype(int)
    return image.resize((width, height), Image.Resampling.LANCZOS), labels[rows][:, columns]


def _add_legend(
    image: Image.Image,
    counts: NDArray[np.int64],
    total: int,
    class_names: Sequence[str],
    palette: NDArray[np.float32],
) -> Image.Image:
    """Put a strip below: colour, name and share of each class, the largest first."""
    font = load_font(14)
    width = max(image.width, 260)
    order = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i]]
    spots, row, x = [], 0, _GAP
    for number in order:
        share = counts[number] / total
        said = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        text = f"{clean_label(class_names[number], number)}  {said}"
        long = 22 + round(font.getlength(text)) + 2 * _GAP
        if x + long > width and x > _GAP:
            row, x = row + 1, _GAP
        spots.append((row, x, number, text))
        x += long
    shown = [spot for spot in spots if spot[0] < _MOST_LINES]
    more = len(spots) - len(shown)
    rows = (min(row, _MOST_LINES - 1) + 1 if spots else 1) + bool(more)
    sheet = Image.new("RGB", (width, image.height + _LINE * rows + _GAP), "white")
    sheet.paste(image, ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(sheet)
    top = image.height + 4
    for line, x, number, text in shown:
        y = top + line * _LINE
        red, green, blue = palette[number].astype(int).tolist()
        pen.rectangle((x, y + 3, x + 15, y + 18), fill=(red, green, blue), outline=_INK)
        pen.text((x + 22, y + 11), text, fill=_INK, font=font, anchor="lm")
    if more:
        place = (_GAP, top + _MOST_LINES * _LINE + 11)
        pen.text(place, f"and {more} more classes", fill=_INK, font=font, anchor="lm")
    if not spots:
        pen.text((_GAP, top + 11), "nothing labelled", fill=_INK, font=font, anchor="lm")
    return sheet
