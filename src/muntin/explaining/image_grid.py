# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A grid of equal panels on one set of axes: separate axes would take seconds to create."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from muntin.explaining.token_plotting import INK, RED

__all__ = ["ImageGrid", "fit_titles", "name_heads"]

_WIDTH = 9.0  # inches
_GAP = 0.06
_SCALE = 0.45
_LETTER = 0.066  # mean width of a character of a title
_LINE = 0.14
_MIN_FRAME = 0.1  # side of a marked box; smaller ones get a ring instead of a frame


def fit_titles(titles: Sequence[str], columns: int) -> tuple[list[str], float]:
    """Wrap titles to the width of their panels.

    Args:
        titles: Titles of the panels, each of one or more lines.
        columns: Panels per row.

    Returns:
        The wrapped titles, and the height in inches that a row needs for them.
    """
    max_chars = int(((_WIDTH - _SCALE) / columns - _GAP) / _LETTER)
    broken = [
        "\n".join(
            part for line in title.split("\n") for part in textwrap.wrap(line, max_chars) or [""]
        )
        for title in titles
    ]
    lines = max((title.count("\n") + 1 for title in broken), default=0)
    return broken, lines * _LINE + 0.12


def name_heads(first: int, count: int) -> str:
    """Name consecutive heads, counted from 1.

    Example:
        >>> name_heads(0, 1), name_heads(8, 3)
        ('head 1', 'heads 9 to 11')
    """
    return f"head {first + 1}" if count == 1 else f"heads {first + 1} to {first + count}"


class ImageGrid:
    """A figure with equal panels in rows and columns and a colour bar.

    Args:
        rows: Rows of panels.
        columns: Panels per row.
        ratio: Height of a panel divided by its width.
        extra: Inches above each row for titles.
        ends: Labels of the lower and upper end of the colour bar.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        ratio: float,
        extra: float,
        ends: tuple[str, str] = ("0", "largest"),
    ) -> None:
        width = _WIDTH
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
        image: NDArray[np.float32],
        title: str = "",
        *,
        mark: tuple[float, float, float, float] | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Show an image in a panel.

        Args:
            row: Row of the panel.
            column: Column of the panel.
            image: Colours (h, w, 3), or values (h, w) from `low` to `high`.
            title: Title above it; `extra` must leave room for its lines.
            mark: Edges (left, top, right, bottom) in pixels of the image of a marked box; small
                boxes get a ring instead of a frame.
            low: Value of the darkest colour.
            high: Value of the brightest colour.
        """
        wide, high_px = image.shape[1], image.shape[0]
        unit = min((self.wide - _GAP) / wide, (self.high - self.extra - _GAP) / high_px)
        left = column * self.wide + (self.wide - wide * unit) / 2
        top = row * self.high + self.extra
        extent = (left, left + wide * unit, top + high_px * unit, top)
        self.axes.imshow(
            image, extent=extent, interpolation="nearest", aspect="auto", cmap="viridis",
            vmin=low, vmax=high,
        )  # fmt: skip
        middle = left + wide * unit / 2
        self.axes.text(middle, top - 0.05, title, fontsize=8, color=INK, ha="center", va="bottom")
        if mark is not None:
            self._mark([left + mark[0] * unit, left + mark[2] * unit],
                       [top + mark[1] * unit, top + mark[3] * unit])  # fmt: skip

    def _mark(self, across: Sequence[float], down: Sequence[float]) -> None:
        wide, high = across[1] - across[0], down[1] - down[0]
        middle = (across[0] + wide / 2, down[0] + high / 2)
        size = 8 if self.wide > 1.4 else 5
        for colour, width in (("white", size / 2.5), (RED, size / 5)):
            if min(wide, high) >= _MIN_FRAME:
                self.axes.add_patch(
                    Rectangle(
                        (across[0], down[0]), wide, high, fill=False, edgecolor=colour,
                        linewidth=width,
                    )
                )  # fmt: skip
            else:
                self.axes.plot(*middle, "o", ms=size, mfc="none", mec=colour, mew=width)

    def name(self, row: int, words: str) -> None:
        """Set the title of a row."""
        top = row * self.high + self.extra - 0.05
        self.axes.text(_GAP / 2, top, words, fontsize=8, color=INK, va="bottom")
