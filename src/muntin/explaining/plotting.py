# SPDX-License-Identifier: Apache-2.0
"""Panels of figures: the image, maps over it, marks, colour bars and axes.

Coordinates of a panel are pixels of the image; (0, 0) is the top left corner of its first pixel.

Letters: H, W height and width of a map in tokens; h, w of the image in pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.transforms import to_shown
from muntin.drawing.style import INK, SKY, VERMILION
from muntin.shapes import Real, Size

_MAX_HEADS = 24
_HEAD_COLUMNS = 8
_SHADE = 0.14
"""How strongly the image's luminance modulates the colours of tokens over it."""

# Of an ImageGrid, in inches.
_WIDTH = 9.0
_GAP = 0.06
_SCALE = 0.45
_LETTER = 0.066  # mean width of a character of a title
_LINE = 0.14
_MIN_FRAME = 0.1  # side of a marked box; smaller ones get a ring instead of a frame


def to_floats(shown: Real[Tensor, "C h w"]) -> NDArray[np.float32]:
    """RGB of an image of any number of channels, from 0 to 1."""
    return (to_shown(shown) / 255).astype(np.float32)


def truncate(text: str, inches: float) -> str:
    """Truncate a line of 9 points to a width in inches.

    Examples:
        >>> truncate("a run of a long name", 1.0), truncate("short", 1.0)
        ('a run of...', 'short')
    """
    max_chars = max(4, int(inches * 72 / (0.6 * 9.0)))
    return text if len(text) <= max_chars else text[: max_chars - 3].rstrip() + "..."


def panel_ratio(size: Size) -> float:
    """Height divided by width of an image, clipped to what fits a figure."""
    return float(np.clip(size[0] / size[1], 0.3, 2.5))


def spread(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced indices, including the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, limit))})


def start_plots(
    columns: int = 1, height: float = 4.0, *, width: float = 9.0, **more: Any
) -> tuple[Figure, list[Axes]]:
    """Create a figure of plots side by side; its size is in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, **more)[0])


def panels(
    rows: int, columns: int, *, ratio: float = 1.0, width: float = 9.0, extra: float = 0.3
) -> tuple[Figure, NDArray[Any]]:
    """Create a figure of equal panels without ticks.

    `ratio` is the height of a panel divided by its width, `width` that of the figure in inches,
    `extra` the inches above each row for titles.
    """
    height = rows * (width / columns * ratio + extra) + 0.1
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    figure = Figure(figsize=(width, height), layout=layout)
    made = np.asarray(figure.subplots(rows, columns, squeeze=False))
    for axes in made.flat:
        axes.set(xticks=[], yticks=[])  # unseen ticks would take time too
        axes.set_axis_off()
    return figure, made


def set_panel(
    axes: Axes,
    image: NDArray[Any],
    title: str = "",
    *,
    stride: int = 1,
    size: Size | None = None,
    **shown: Any,
) -> None:
    """Show colours (h, w, 3) or values (h, w) without interpolation, under a title.

    A cell of a map takes `stride` pixels of the panel, which is cut to `size` in pixels. `shown`
    are more arguments of matplotlib's `imshow`.
    """
    height, width = image.shape[0] * stride, image.shape[1] * stride
    axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest", **shown)
    if size is not None:
        axes.set_xlim(0, size[1])
        axes.set_ylim(size[0], 0)
    axes.set_autoscale_on(False)
    axes.set_title(title, fontsize=8, color=INK, pad=3)


def draw_frame(axes: Axes, box: Sequence[float], colour: str, width: float, **more: Any) -> None:
    """Draw the outline of a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, **more)
    frame.set(edgecolor=colour, linewidth=width)
    axes.add_patch(frame)


def mark_box(axes: Axes, box: Sequence[float], colour: str = SKY) -> None:
    """Draw the outline of a box, visible on any image."""
    draw_frame(axes, box, "white", 3.5)
    draw_frame(axes, box, colour, 1.8)


def mark_point(axes: Axes, x: float, y: float) -> None:
    """Draw a ring around a point."""
    for width, line in ((3.2, "white"), (1.6, SKY)):
        axes.plot([x], [y], "o", ms=10, mfc="none", mec=line, mew=width)


def hatch_box(axes: Axes, box: Sequence[float], colour: str = "#333333") -> None:
    """Hatch a box, unless it is empty."""
    left, top, right, bottom = box
    if right > left and bottom > top:
        draw_frame(axes, box, colour, 0, hatch="/////")


def add_colour_bar(
    figure: Figure,
    colours: ScalarMappable,
    axes: Any,  # noqa: ANN401 (one or several)
    label: str,
    **placing: Any,
) -> Colorbar:
    """Add a colour bar with a label beside or below panels."""
    bar = figure.colorbar(colours, ax=axes, **placing)
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8)
    return bar


def label_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Label the axes of a plot, draw horizontal lines and remove the frame."""
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.3)


def blend_heat(image: NDArray[np.uint8], heat: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Overlay a heatmap (h, w) from 0 to 1 on the greyscale image: the warmer, the more opaque."""
    grey = image.astype(np.float64).mean(axis=2, keepdims=True) / 255
    strength = (0.1 + 0.65 * np.clip(heat, 0, 1))[..., None]
    coloured = mpl.colormaps["inferno"](np.clip(heat, 0, 1))[..., :3]
    return np.round(255 * ((1 - strength) * grey + strength * coloured)).astype(np.uint8)


def find_cells(
    size: Sequence[int], grid: Sequence[int], stride: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row (h, 1) and column (1, w) of the token of each pixel; the last ones beyond the grid."""
    rows, columns = (
        np.minimum(np.arange(side) // stride, count - 1)
        for side, count in zip(size, grid, strict=True)
    )
    return rows[:, None], columns[None]


def blend_tokens(
    image: NDArray[np.float32], weights: NDArray[np.float32], stride: int
) -> NDArray[np.float32]:
    """Overlay a map (H, W) of non-negative weights on an image (h, w, 3) from 0 to 1.

    NaN are tokens outside the attention, where the image is shown pale.
    """
    values = weights[find_cells(image.shape[:2], weights.shape, stride)]
    known = np.isfinite(values)
    top = float(values[known].max(initial=0.0)) or 1.0
    shares = np.where(known, values, 0) / top
    colours = mpl.colormaps["viridis"](np.clip(shares, 0, 1))[..., :3]
    # Only faintly: a stronger image would shift the colours off the colour bar.
    grey = image.mean(axis=2, keepdims=True)
    shade = _SHADE * (2 * (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6) - 1)
    mixed = colours + np.where(shade > 0, shade * (1 - colours), shade * colours)
    pale = 0.45 + 0.55 * grey
    return np.where(known[..., None], mixed, pale).astype(np.float32)


def fit_titles(titles: Sequence[str], columns: int) -> tuple[list[str], float]:
    """Wrap titles to the width of the panels of an `ImageGrid`; also their height in inches."""
    max_chars = int(((_WIDTH - _SCALE) / columns - _GAP) / _LETTER)
    broken = [
        "\n".join(
            part for line in title.split("\n") for part in textwrap.wrap(line, max_chars) or [""]
        )
        for title in titles
    ]
    lines = max((title.count("\n") + 1 for title in broken), default=0)
    return broken, lines * _LINE + 0.12


class ImageGrid:
    """Equal panels on one set of axes, with a colour bar.

    Separate axes, as of `panels`, whose arguments it has, would take seconds to create where there
    are many. `ends` label the lower and the upper end of the colour bar.
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
        self.extra = extra
        self.wide = (_WIDTH - _SCALE) / columns
        self.high = (self.wide - _GAP) * ratio + extra + _GAP
        height = rows * self.high
        self.figure = Figure(figsize=(_WIDTH, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        left, bar = _WIDTH - _SCALE + 0.05, min(height - 0.2, 3.0)
        colours = np.linspace(1, 0, 128)[:, None]
        self.axes.imshow(colours, cmap="viridis", extent=(left, left + 0.13, bar + 0.1, 0.1))
        for name, place, side in ((ends[1], 0.1, "top"), (ends[0], bar + 0.1, "bottom")):
            self.axes.text(
                left + 0.17, place, name, rotation=90, fontsize=8, color=INK, va=side, ha="left"
            )
        self.axes.set_aspect("auto")
        self.axes.set_xlim(0, _WIDTH)
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
        box: tuple[int, int, int, int] | None = None,
        limits: tuple[float | None, float | None] = (None, None),
    ) -> None:
        """Show colours (h, w, 3) or values (h, w) in a panel, or the part of them in a box.

        `mark` is a box to mark; a small one gets a ring instead of a frame. Boxes are edges (left,
        top, right, bottom) in pixels of the image. `limits` are the values of the darkest and of
        the brightest colour.
        """
        first_x, first_y, last_x, last_y = box or (0, 0, image.shape[1], image.shape[0])
        image = image[first_y:last_y, first_x:last_x]
        wide, high = image.shape[1], image.shape[0]
        unit = min((self.wide - _GAP) / wide, (self.high - self.extra - _GAP) / high)
        left = column * self.wide + (self.wide - wide * unit) / 2
        top = row * self.high + self.extra
        extent = (left, left + wide * unit, top + high * unit, top)
        self.axes.imshow(
            image, extent=extent, interpolation="nearest", aspect="auto", cmap="viridis",
            vmin=limits[0], vmax=limits[1],
        )  # fmt: skip
        middle = left + wide * unit / 2
        self.axes.text(middle, top - 0.05, title, fontsize=8, color=INK, ha="center", va="bottom")
        if mark is not None:
            across = [left + (edge - first_x) * unit for edge in mark[::2]]
            self._mark(across, [top + (edge - first_y) * unit for edge in mark[1::2]])

    def _mark(self, across: Sequence[float], down: Sequence[float]) -> None:
        wide, high = across[1] - across[0], down[1] - down[0]
        size = 8 if self.wide > 1.4 else 5
        for colour, width in (("white", size / 2.5), (VERMILION, size / 5)):
            if min(wide, high) >= _MIN_FRAME:
                draw_frame(self.axes, (across[0], down[0], across[1], down[1]), colour, width)
            else:
                middle = (across[0] + wide / 2, down[0] + high / 2)
                self.axes.plot(*middle, "o", ms=size, mfc="none", mec=colour, mew=width)

    def name(self, row: int, words: str) -> None:
        """Set the title of a row."""
        top = row * self.high + self.extra - 0.05
        self.axes.text(_GAP / 2, top, words, fontsize=8, color=INK, va="bottom")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class HeadMaps:
    """Maps (h, H, W) of the heads of one layer, for `show_heads`.

    `paint` makes the image of a map; `options` are arguments of `ImageGrid.show`. `title` and
    `words` stand before and after the numbers of the heads.
    """

    title: str
    maps: NDArray[np.float32]
    words: str = ""
    paint: Callable[[NDArray[np.float32]], NDArray[np.float32]] = np.asarray
    options: Mapping[str, Any]


def show_heads(layers: Sequence[HeadMaps], **more: Any) -> Figure:
    """Show the maps of heads, layer by layer; `more` are arguments of `ImageGrid`."""
    rows = [
        (layer, first)
        for layer in layers
        for first in range(0, min(len(layer.maps), _MAX_HEADS), _HEAD_COLUMNS)
    ]
    image_grid = ImageGrid(len(rows), _HEAD_COLUMNS, extra=0.25, **more)
    for row, (layer, first) in enumerate(rows):
        maps = layer.maps[first : min(first + _HEAD_COLUMNS, _MAX_HEADS)]
        for column, values in enumerate(maps):
            image_grid.show(row, column, layer.paint(values), **layer.options)
        last = first + len(maps)
        heads = f"head {last}" if len(maps) == 1 else f"heads {first + 1} to {last}"
        image_grid.name(row, f"{layer.title}, {heads}{layer.words}")
    return image_grid.figure
