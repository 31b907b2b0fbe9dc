# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Many equal panels on one set of axes: axes for each would take seconds to make."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from muntin.explaining.painting import INK, RED

__all__ = ["Sheet"]

_GAP = 0.06  # inches
_SCALE = 0.45


class Sheet:
    """A figure of equal panels in rows and columns, and a bar of the colours beside them.

    Args:
        rows: Panels below each other.
        columns: Panels beside each other.
        ratio: Height of a panel as a share of its width.
        extra: Inches above each row for titles.
        ends: Names of the ends of the bar.
        width: Of the figure in inches.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        ratio: float,
        extra: float,
        ends: tuple[str, str] = ("0", "largest"),
        width: float = 9.0,
    ) -> None:
        self.extra = extra
        self.wide = (width - _SCALE) / columns
        self.high = (self.wide - _GAP) * ratio + extra + _GAP
        height = rows * self.high
        self.figure = Figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        left, bar = width - _SCALE + 0.05, min(height - 0.2, 3.0)
        colours = np.linspace(1, 0, 128)[:, None]
        self.axes.imshow(colours, cmap="viridis", extent=(left, left + 0.13, bar + 0.1, 0.1))
        for name, place, side in ((ends[1], 0.1, "top"), (ends[0], bar + 0.1, "bottom")):
            self.axes.text(
                left + 0.17, place, name, rotation=90, fontsize=8, color=INK, va=side, ha="left"
            )
        self.axes.set_aspect("auto")
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.set_autoscale_on(False)

    def show(
        self,
        row: int,
        column: int,
        picture: NDArray[np.float32],
        title: str = "",
        *,
        mark: tuple[float, float] | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Show a picture in a panel.

        Args:
            row: Of the panel.
            column: Of the panel.
            picture: Colours (h, w, 3), or values (h, w) from `low` to `high`.
            title: Above it, one or two lines.
            mark: (x, y) in pixels of the picture that gets a ring.
            low: Value of the darkest colour.
            high: Value of the brightest colour.
        """
        wide, high_px = picture.shape[1], picture.shape[0]
        unit = min((self.wide - _GAP) / wide, (self.high - self.extra - _GAP) / high_px)
        left, top = column * self.wide + _GAP / 2, row * self.high + self.extra
        extent = (left, left + wide * unit, top + high_px * unit, top)
        self.axes.imshow(
            picture, extent=extent, interpolation="nearest", aspect="auto", cmap="viridis",
            vmin=low, vmax=high,
        )  # fmt: skip
        middle = left + wide * unit / 2
        self.axes.text(middle, top - 0.05, title, fontsize=8, color=INK, ha="center", va="bottom")
        if mark is not None:
            size = 8 if self.wide > 1.4 else 5
            place = (left + mark[0] * unit, top + mark[1] * unit)
            self.axes.plot(*place, "o", ms=size, mfc="none", mec="white", mew=size / 2.5)
            self.axes.plot(*place, "o", ms=size, mfc="none", mec=RED, mew=size / 5)

    def name(self, row: int, words: str) -> None:
        """Write above a row."""
        top = row * self.high + self.extra - 0.05
        self.axes.text(_GAP / 2, top, words, fontsize=8, color=INK, va="bottom")
