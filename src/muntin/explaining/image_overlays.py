# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Panels with images: the image itself, heat over it, and marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from muntin.shapes import Size, UInt8

__all__ = ["INK", "blend", "cut_words", "mark_box", "mark_point", "panels", "to_rgb"]

INK = "#222222"
VERMILION, SKY = "#D55E00", "#56B4E9"
"""Of Okabe and Ito."""


def to_rgb(shown: UInt8[Tensor, "C h w"]) -> NDArray[np.uint8]:
    """Give (h, w, 3) of an image of any number of channels: the first three, or grey."""
    values = shown.numpy()
    chosen = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    return np.ascontiguousarray(chosen.transpose(1, 2, 0))


def cut_words(words: str, inches: float, points: float = 9.0) -> str:
    """Cut what is too long for so much room off a line, in a size of letters.

    Example:
        >>> cut_words("a run of a long name", 1.0), cut_words("short", 1.0)
        ('a run of...', 'short')
    """
    most = max(4, int(inches * 72 / (0.6 * points)))
    return words if len(words) <= most else words[: most - 3].rstrip() + "..."


def panels(
    count: int, size: Size, *, columns: int = 0, width: float = 2.1
) -> tuple[Figure, list[Axes]]:
    """Give a figure with so many empty panels in the proportions of an image.

    Args:
        count: Panels.
        size: (height, width) of the image.
        columns: Panels beside each other; as many as a width of 9 inches holds when 0.
        width: Of a panel in inches; less where the image is high.
    """
    shape = size[0] / size[1]
    width = max(min(width, 3.2 / shape), 1.4)
    columns = columns or max(1, min(count, int(9 / width)))
    rows = -(-count // columns)
    high = (width * shape + 0.31) * rows + 0.05
    figure = Figure(figsize=(width * columns, high), layout="constrained", facecolor="white")
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for place, panel in enumerate(axes):
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_visible(place < count)
    return figure, axes[:count]


def blend(
    image: NDArray[np.uint8],
    heat: NDArray[np.floating[Any]],
    *,
    colours: str = "inferno",
    least: float = 0.1,
    most: float = 0.75,
) -> NDArray[np.uint8]:
    """Lay heat over an image in grey.

    Args:
        image: (h, w, 3).
        heat: (h, w), 0 to 1.
        colours: Name of a perceptually uniform map.
        least: How much of the colours is seen where there is no heat.
        most: The same where it is greatest.
    """
    grey = image.astype(np.float64).mean(axis=2, keepdims=True) / 255
    strength = (least + (most - least) * np.clip(heat, 0, 1))[..., None]
    coloured = mpl.colormaps[colours](np.clip(heat, 0, 1))[..., :3]
    return np.round(255 * ((1 - strength) * grey + strength * coloured)).astype(np.uint8)


def mark_box(
    axes: Axes, box: Sequence[float], colour: str | tuple[float, float, float] = SKY
) -> None:
    """Draw the edges of a box, in pixels."""
    left, top, right, bottom = box
    for width, line in ((3.5, "white"), (1.8, colour)):
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top,
                fill=False, linewidth=width, edgecolor=line,
            )
        )  # fmt: skip


def mark_point(axes: Axes, x: float, y: float, colour: str = SKY) -> None:
    """Draw a ring around a point, in pixels."""
    for width, line in ((3.2, "white"), (1.6, colour)):
        axes.plot(
            [x], [y], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=line,
            markeredgewidth=width,
        )  # fmt: skip
