# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of token maps over an image.

Letters: H, W height and width of a map in tokens; h, w of the image in pixels.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from muntin.explaining.context import Context
from muntin.shapes import Size

__all__ = [
    "BLUE",
    "GREEN",
    "INK",
    "ORANGE",
    "PALETTE",
    "PURPLE",
    "RED",
    "SKY",
    "blend",
    "fade",
    "input_image",
    "note_on_weights",
    "panel_ratio",
    "set_panel",
    "subplots",
]

# Okabe and Ito: distinguishable with colour-vision deficiency.
BLUE, RED, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, INK = "#E69F00", "#56B4E9", "#222222"
PALETTE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)

_SHADE = 0.14
"""How strongly the image's luminance modulates the colours over it."""


def input_image(context: Context) -> NDArray[np.float32]:
    """Give the network's input image, (h, w, 3) from 0 to 1; grey unless it has three channels."""
    values: NDArray[np.float32] = (context.shown.permute(1, 2, 0).float() / 255).numpy()
    if values.shape[2] == 3:
        return values
    return np.repeat(values.mean(axis=2, keepdims=True), 3, axis=2).astype(np.float32)


def note_on_weights(context: Context) -> str:
    """Give a caption note for freshly initialised weights; empty for trained ones."""
    note = " The weights are freshly initialised, so nothing here was learned."
    return "" if context.trained else note


def fade(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make an image pale grey, so that colours on top of it stand out."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    return (0.45 + 0.55 * grey).astype(np.float32)


def blend(
    image: NDArray[np.float32],
    weights: NDArray[np.float32],
    stride: int,
    *,
    largest: float = 0.0,
) -> NDArray[np.float32]:
    """Overlay a token map on an image.

    Args:
        image: (h, w, 3) from 0 to 1.
        weights: (H, W), non-negative; NaN for tokens outside the attention, shown as pale image.
        stride: Pixels per token.
        largest: Value of the brightest colour; the largest weight if 0.

    Returns:
        (h, w, 3) from 0 to 1.
    """
    height, width = image.shape[:2]
    rows = np.minimum(np.arange(height) // stride, weights.shape[0] - 1)
    columns = np.minimum(np.arange(width) // stride, weights.shape[1] - 1)
    values = weights[rows[:, None], columns[None]]
    known = np.isfinite(values)
    top = largest or float(values[known].max(initial=0.0)) or 1.0
    shares = np.where(known, values, 0) / top
    colours = matplotlib.colormaps["viridis"](np.clip(shares, 0, 1))[..., :3]
    # Only faintly: a stronger image would shift the colours off the colour bar.
    grey = image.mean(axis=2, keepdims=True)
    shade = _SHADE * (2 * (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6) - 1)
    mixed = colours + np.where(shade > 0, shade * (1 - colours), shade * colours)
    return np.where(known[..., None], mixed, fade(image)).astype(np.float32)


def subplots(
    rows: int, columns: int, *, width: float = 9.0, ratio: float = 1.0, extra: float = 0.3
) -> tuple[Figure, NDArray[np.object_]]:
    """Create a figure of equal panels without ticks.

    Args:
        rows: Rows of panels.
        columns: Panels per row.
        width: Width of the figure in inches.
        ratio: Height of a panel divided by its width.
        extra: Inches above each row for titles.

    Returns:
        The figure, and its panels as (rows, columns).
    """
    height = rows * (width / columns * ratio + extra) + 0.1
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(width, height), layout=layout)
    panels = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for axes in panels.flat:
        axes.set_axis_off()
    return figure, panels


def set_panel(
    axes: Axes,
    image: NDArray[np.float32],
    title: str = "",
    *,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    """Show an image without interpolation; (0, 0) is the top left corner of its first pixel."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=extent or (0, width, height, 0), interpolation="nearest")
    axes.set_autoscale_on(False)
    axes.set_title(title, fontsize=8, color=INK, pad=3)


def panel_ratio(size: Size) -> float:
    """Height divided by width of an image, clipped to what fits a figure."""
    return float(np.clip(size[0] / size[1], 0.3, 2.5))
