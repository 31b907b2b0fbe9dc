# SPDX-License-Identifier: Apache-2.0
"""Semantic maps drawn over their image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.drawing.colours import Colour, colour_of
from muntin.drawing.fonts import clean_label
from muntin.drawing.layout import LARGEST, LegendRow, add_legend, fit_image, join_panels
from muntin.results import SemanticMap
from muntin.shapes import Int, Size

_SMALLEST = 480  # pixels, of the longer side
_SHARE = 0.7  # of the colour in what is drawn


def draw_semantic_map(original: NDArray[np.uint8], found: SemanticMap) -> Image.Image:
    """Draw the predicted class of every pixel, like `draw_labels`."""
    return draw_labels(original, found.labels, found.class_names, found.colors)


def draw_labels(
    original: NDArray[np.uint8],
    labels: Int[np.ndarray, "H W"],
    class_names: Sequence[str],
    colors: Sequence[Colour] = (),
    *,
    largest: int = LARGEST,
) -> Image.Image:
    """Draw labels over their image; pixels with a label below 0 are left as they are.

    `colors` are those of the data set, or none; `largest` is the maximum longer side in pixels.
    The legend shows colour, name and share of the image of each class.
    """
    palette = _palette(len(class_names), colors)
    pixels = np.array(fit_image(original, _SMALLEST, largest))
    shown = _resize_labels(labels, pixels.shape[:2])
    known = shown >= 0
    painted = pixels.astype(np.float32)
    painted[known] += (palette[shown[known]] - painted[known]) * _SHARE
    edges = np.zeros(shown.shape, bool)
    edges[:, 1:] |= shown[:, 1:] != shown[:, :-1]
    edges[1:] |= shown[1:] != shown[:-1]
    painted[edges] *= 0.6
    image = Image.fromarray(painted.round().astype(np.uint8))
    counts = np.bincount(labels[labels >= 0].ravel(), minlength=len(class_names))
    rows = _legend(counts, labels.size, class_names, palette)
    return add_legend(image, rows, head="" if rows else "nothing labelled")


def draw_semantic_pair(
    original: NDArray[np.uint8],
    truth: Int[np.ndarray, "H W"],
    found: SemanticMap,
) -> Image.Image:
    """Draw annotation beside prediction."""
    panels = [
        draw_labels(original, labels, found.class_names, found.colors, largest=960)
        for labels in (truth, found.labels)
    ]
    return join_panels(panels)


def _palette(count: int, colors: Sequence[Colour]) -> NDArray[np.float32]:
    if len(colors) == count:
        return np.array(colors, np.float32)
    return np.array([colour_of(number) for number in range(count)], np.float32)


def _resize_labels(labels: NDArray[np.integer], size: Size) -> NDArray[np.integer]:
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


def _legend(
    counts: NDArray[np.int64],
    total: int,
    class_names: Sequence[str],
    palette: NDArray[np.float32],
) -> list[LegendRow]:
    """Colour, name and share of each class, the largest first."""
    rows: list[LegendRow] = []
    for number in np.argsort(-counts, kind="stable").tolist():
        if not counts[number]:
            continue
        share = counts[number] / total
        percent = f"{share:.1%}" if share >= 0.0005 else "<0.1%"
        red, green, blue = palette[number].astype(int).tolist()
        text = f"{clean_label(class_names[number], number)}  {percent}"
        rows.append(((red, green, blue), text, None))
    return rows
