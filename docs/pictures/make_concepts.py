# SPDX-License-Identifier: Apache-2.0
"""Pictures of docs/concepts: windows and their shift, its mask, and the index of position biases.

    python docs/pictures/make_concepts.py

Cells have colours of their own under black numbers, and lines are grey, so that the pictures read
on white and on black pages; there are no words, so that they serve every language. What is drawn
is computed by the functions that the models use.
"""

from __future__ import annotations

import colorsys
import itertools
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from muntin.ops.positions import SIZE_RULES, expand_relative_position_bias
from muntin.ops.windows import cut_windows, join_windows, lay_out, merge_neighbours, shift_mask

HERE = Path(__file__).parent
LINE = "#808080"
PIECES = (
    "#8ecae6", "#ffb703", "#90be6d", "#f28482", "#cdb4db", "#80cbc4", "#f6bd60", "#b5c99a",
    "#e5989b",
)  # fmt: skip
SIDE, WINDOW = 8, 4
WIDTH = 5.6
"""Of a picture in inches: 400 pixels on a phone, where 10 points are then 10 pixels high."""


def save(figure: Figure, name: str) -> None:
    """Write an SVG without a date, so that equal pictures are equal files."""
    with mpl.rc_context({"svg.hashsalt": "muntin"}):
        figure.savefig(HERE / f"{name}.svg", transparent=True, metadata={"Date": None})


def fill(axes: Axes, colours: np.ndarray) -> None:
    """Show a map of colours (H, W, 3), cell by cell."""
    axes.imshow(colours, interpolation="nearest", extent=(0, colours.shape[1], colours.shape[0], 0))
    axes.set_axis_off()


def rule(axes: Axes, high: int, wide: int, step: int, width: float, colour: str = LINE) -> None:
    """Draw the borders of cells, `step` apart."""
    for row in range(0, high + 1, step):
        axes.plot([0, wide], [row, row], color=colour, linewidth=width, clip_on=False)
    for column in range(0, wide + 1, step):
        axes.plot([column, column], [0, high], color=colour, linewidth=width, clip_on=False)


def write(
    axes: Axes, x: float, y: float, text: str, size: float = 10, colour: str = "black"
) -> None:
    """Write a number, centred."""
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=colour)


def number_pieces() -> np.ndarray:
    """Number, from 1, of the piece (the window after the shift) that each token is in."""
    bands = (np.arange(SIDE) >= WINDOW // 2).astype(int) + (np.arange(SIDE) >= SIDE - WINDOW // 2)
    return 3 * bands[:, None] + bands[None] + 1


def write_pieces(axes: Axes, pieces: np.ndarray) -> None:
    """Write each number once, in the middle of its tokens."""
    for number in np.unique(pieces):
        rows, columns = np.nonzero(pieces == number)
        write(axes, columns.mean() + 0.5, rows.mean() + 0.5, str(number))


def draw_shift() -> None:
    """Draw windows, shifted windows, and the map as it is rolled."""
    layout = lay_out((SIDE, SIDE), (WINDOW, WINDOW), shifted=True, rule=SIZE_RULES["muntin"])
    pieces = number_pieces()
    numbers = torch.from_numpy(pieces).double()[None, :, :, None]
    flat = lay_out((SIDE, SIDE), (WINDOW, WINDOW), shifted=False, rule=SIZE_RULES["muntin"])
    # Cut as the model does, and put side by side without rolling back.
    rolled = join_windows(cut_windows(numbers, layout), flat)[0, :, :, 0].int().numpy()
    palette = np.array([to_rgb(colour) for colour in PIECES])
    quarters = np.arange(SIDE) // WINDOW
    figure = Figure(figsize=(WIDTH, 2.0))
    panels = figure.subplots(1, 3, gridspec_kw={
        "left": 0.02, "right": 0.98, "bottom": 0.02, "top": 0.98, "wspace": 0.14})  # fmt: skip
    plain = 2 * quarters[:, None] + quarters[None] + 1
    fill(panels[0], np.full((SIDE, SIDE, 3), 0.8))
    write_pieces(panels[0], plain)
    fill(panels[1], palette[pieces - 1])
    write_pieces(panels[1], pieces)
    fill(panels[2], palette[rolled - 1])
    write_pieces(panels[2], rolled)
    for panel in panels:
        rule(panel, SIDE, SIDE, 1, 0.4)
    for panel in (panels[0], panels[2]):
        rule(panel, SIDE, SIDE, WINDOW, 2.5, "#444444")
        rule(panel, SIDE, SIDE, SIDE, 2.5)
    for edge in (0, 2, 6, 8):
        panels[1].plot([0, 8], [edge, edge], color=LINE if edge in (0, 8) else "#444444", lw=2.5)
        panels[1].plot([edge, edge], [0, 8], color=LINE if edge in (0, 8) else "#444444", lw=2.5)
    save(figure, "concept_shift")


def draw_mask() -> None:
    """Draw which pairs of tokens may attend, window by window."""
    layout = lay_out((SIDE, SIDE), (WINDOW, WINDOW), shifted=True, rule=SIZE_RULES["muntin"])
    mask = shift_mask(layout)
    assert mask is not None
    pieces = torch.from_numpy(number_pieces()).double()[None, :, :, None]
    inside = cut_windows(pieces, layout)[0, :, :, 0].int().numpy()  # windows, tokens
    palette = np.array([to_rgb(colour) for colour in PIECES])
    figure = Figure(figsize=(WIDTH, 5.6))
    panels = figure.subplots(2, 2, gridspec_kw={
        "left": 0.07, "right": 0.98, "bottom": 0.02, "top": 0.95, "wspace": 0.16, "hspace": 0.16,
    })  # fmt: skip
    for panel, allowed, own in zip(panels.flat, (mask == 0).numpy(), inside, strict=True):
        colours = np.where(allowed[..., None], palette[own - 1][:, None], 0.28)
        fill(panel, colours)
        rule(panel, len(own), len(own), 1, 0.4)
        rule(panel, len(own), len(own), len(own), 2)
        edges = [0, *(np.flatnonzero(np.diff(own)) + 1), len(own)]
        for start, stop in itertools.pairwise(edges):  # once for equal neighbours
            write(panel, (start + stop) / 2, -0.6, str(own[start]), 9, LINE)
            write(panel, -0.7, (start + stop) / 2, str(own[start]), 9, LINE)
    save(figure, "concept_mask")


def draw_bias() -> None:
    """Draw a window, its table of offsets, and the row of it that each pair reads."""
    side, rows = 3, torch.arange(25.0)[:, None]
    index = expand_relative_position_bias(rows, table_window=(side, side), window=(side, side))
    pairs = index[0].int().numpy()
    table = np.arange(25).reshape(5, 5)
    palette = np.array([
        colorsys.hls_to_rgb(0.19 * (number % 5), 0.58 + 0.07 * (number // 5), 0.6)
        for number in range(25)
    ])  # fmt: skip
    gap = 1.0
    wide = 3 + gap + 5 + gap + 9
    figure = Figure(figsize=(WIDTH, WIDTH * 9.2 / (wide + 0.2)))
    left = 0.1
    for cells, colours in (
        (np.arange(9).reshape(3, 3), np.full((3, 3, 3), 0.8)),
        (table, palette[table]),
        (pairs, palette[pairs]),
    ):
        count = len(cells)
        axes = figure.add_axes((
            left / (wide + 0.2), (9.2 - count) / 2 / 9.2, count / (wide + 0.2), count / 9.2,
        ))  # fmt: skip
        fill(axes, colours)
        rule(axes, count, count, 1, 0.6)
        for (row, column), number in np.ndenumerate(cells):
            write(axes, column + 0.5, row + 0.5, str(number), 9.5)
        left += count + gap
    save(figure, "concept_bias")


def draw_merging() -> None:
    """Draw neighbours that become one token."""
    numbers = torch.arange(16.0).view(1, 4, 4, 1)
    merged = merge_neighbours(numbers)[0].int().numpy()  # 2, 2, 4
    palette = np.array([to_rgb(colour) for colour in PIECES[:4]])
    rows, columns = np.indices((4, 4)) % 2
    figure = Figure(figsize=(WIDTH, 1.75))
    left = figure.add_axes((0.02, 0.04, 0.29, 0.92))
    fill(left, palette[2 * columns + rows])
    rule(left, 4, 4, 1, 0.6)
    rule(left, 4, 4, 2, 2.5, "#444444")
    for (row, column), number in np.ndenumerate(np.arange(16).reshape(4, 4)):
        write(left, column + 0.5, row + 0.5, str(number))
    right = figure.add_axes((0.42, 0.1, 0.28, 0.8))
    fill(right, np.tile(palette, (4, 1, 1)))
    rule(right, 4, 4, 1, 0.6)
    for row, numbers_of in enumerate(merged.reshape(4, 4)):
        for column, number in enumerate(numbers_of):
            write(right, column + 0.5, row + 0.5, str(number))
        right.plot([0, 4], [row, row], color="#444444", linewidth=2.5)
    last = figure.add_axes((0.81, 0.1, 0.14, 0.8))
    fill(last, np.full((4, 2, 3), to_rgb(PIECES[4])))
    rule(last, 4, 2, 1, 0.6)
    for x, text in ((0.365, r"$\rightarrow$"), (0.755, r"$\rightarrow$")):
        figure.text(x, 0.5, text, ha="center", va="center", fontsize=16, color=LINE)
    for x, text in ((0.56, "4C"), (0.88, "2C")):
        figure.text(x, 0.03, text, ha="center", va="center", fontsize=9, color=LINE)
    save(figure, "concept_merging")


if __name__ == "__main__":
    for draw in (draw_shift, draw_mask, draw_bias, draw_merging):
        draw()
