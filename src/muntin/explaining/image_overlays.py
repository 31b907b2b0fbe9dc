# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Figures with image panels: the image, heatmaps over it, and marks."""

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

__all__ = ["INK", "blend", "mark_box", "mark_point", "panels", "to_rgb", "truncate"]

INK = "#222222"
VERMILION, SKY = "#D55E00", "#56B4E9"
"""Colours of the palette of Okabe and Ito."""


def to_rgb(shown: UInt8[Tensor, "C h w"]) -> NDArray[np.uint8]:
    """Convert an image of any number of channels to (h, w, 3): the first three, or grey."""
    values = shown.numpy()
    chosen = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    return np.ascontiguousarray(chosen.transpose(1, 2, 0))


def truncate(text: str, inches: float, points: float = 9.0) -> str:
    """Truncate a line to a width in inches at a font size in points.

    Example:
        >>> truncate("a run of a long name", 1.0), truncate("short", 1.0)
        ('a run of...', 'short')
    """
    max_chars = max(4, int(inches * 72 / (0.6 * points)))
    return text if len(text) <= max_chars else text[: max_chars - 3].rstrip() + "..."


def panels(
    count: int, size: Size, *, columns: int = 0, width: float = 2.1
) -> tuple[Figure, list[Axes]]:
    """Create a figure of empty panels with the aspect ratio of an image.

    Args:
        count: Number of panels.
        size: (height, width) of the image.
        columns: Panels per row; if 0, as many as fit into 9 inches.
        width: Width of a panel in inches; less for tall images.
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
    min_alpha: float = 0.1,
    max_alpha: float = 0.75,
) -> NDArray[np.uint8]:
    """Overlay a heatmap on the greyscale image.

    Args:
        image: (h, w, 3).
        heat: (h, w), 0 to 1.
        colours: Name of a perceptually uniform colour map.
        min_alpha: Opacity of the colours where the heat is 0.
        max_alpha: Opacity of the colours where the heat is 1.
    """
    grey = image.astype(np.float64).mean(axis=2, keepdims=True) / 255
    strength = (min_alpha + (max_alpha - min_alpha) * np.clip(heat, 0, 1))[..., None]
    coloured = mpl.colormaps[colours](np.clip(heat, 0, 1))[..., :3]
    return np.round(255 * ((1 - strength) * grey + strength * coloured)).astype(np.uint8)


def mark_box(
    axes: Axes, box: Sequence[float], colour: str | tuple[float, float, float] = SKY
) -> None:
    """Draw the outline of a box given in pixels."""
    left, top, right, bottom = box
    for width, line in ((3.5, "white"), (1.8, colour)):
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top,
                fill=False, linewidth=width, edgecolor=line,
            )
        )  # fmt: skip


def mark_point(axes: Axes, x: float, y: float, colour: str = SKY) -> None:
    """Draw a ring around a point given in pixels."""
    for width, line in ((3.2, "white"), (1.6, colour)):
        axes.plot(
            [x], [y], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=line,
            markeredgewidth=width,
        )  # fmt: skip
