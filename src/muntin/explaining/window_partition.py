# SPDX-License-Identifier: Apache-2.0
"""Windows and shifted windows on the image, the cyclic shift, and its attention mask.

Letters: H, W height and width of the padded map in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba_array
from matplotlib.figure import Figure
from numpy.typing import NDArray

from muntin.drawing.style import INK, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from muntin.explaining import plotting as kit
from muntin.explaining.attention_layers import AttentionLayer
from muntin.explaining.context import Context
from muntin.explaining.figures import Result, Results, make_figure, make_missing
from muntin.ops.windows import WindowLayout, shift_mask
from muntin.shapes import Size

_PAD = 0.62
_REGIONS = ("#F4F4F4", SKY, ORANGE, PURPLE)


def shifted_indices(layer: AttentionLayer) -> NDArray[np.int64]:
    """Row-major token indices in the padded and shifted map, (H, W); -1 for padding."""
    layout = layer.windows
    windows = layer.keys.numpy().reshape(*layout.grid, *layout.window)
    rows, columns = layout.grid[0] * layout.window[0], layout.grid[1] * layout.window[1]
    return windows.transpose(0, 2, 1, 3).reshape(rows, columns)


def find_regions(layout: WindowLayout) -> NDArray[np.int64]:
    """Region of each token in the padded and shifted map, (H, W).

    Tokens of a window attend to each other only within one region: 1 wrapped around from the left,
    2 from the top, 3 from both, 0 not at all.
    """
    sides = []
    for axis in (0, 1):
        length = layout.size[axis] + layout.pad[axis]
        sides.append((np.arange(length) >= length - layout.shift[axis]).astype(np.int64))
    return 2 * sides[0][:, None] + sides[1][None]


def _number_windows(layout: WindowLayout) -> NDArray[np.int64]:
    """Number of the window of each token in the padded and shifted map, (H, W)."""
    rows, columns = (np.arange(g * w) // w for g, w in zip(layout.grid, layout.window, strict=True))
    return rows[:, None] * layout.grid[1] + columns[None]


def show_windows(context: Context, layers: Sequence[AttentionLayer]) -> Results:
    """Show the windows of every stage, the cyclic shift and its attention mask."""
    windowed = [layer for layer in layers if layer.layout is not None]
    if not windowed:
        return [make_missing("cut-global", name=context.name)]
    padded = any(any(layer.windows.pad) for layer in windowed) and "padding"
    if windowed[0].scores == "product":
        return [_show_units(context, windowed, padded)]
    shifts = [layer for layer in windowed if layer.is_shifted]
    stages = {layer.stage: layer for layer in windowed if layer not in shifts}
    shifted = {layer.stage: layer for layer in shifts}
    figure = make_figure(
        "cut-windows",
        _draw_windows(context, stages, shifted),
        ("text", bool(shifted) and "shifted", padded),
        arrays={
            f"regions_stage_{stage}": find_regions(layer.windows)
            for stage, layer in shifted.items()
        },
        facts={
            "stages": [_stage_facts(layer, shifted.get(stage)) for stage, layer in stages.items()]
        },
    )
    return [figure, _show_mask(shifts[0])] if shifts else [figure]


def _stage_facts(layer: AttentionLayer, other: AttentionLayer | None = None) -> dict[str, Any]:
    layout = layer.windows
    return {
        "stage": layer.stage,
        "tokens": list(layer.grid),
        "window": list(layout.window),
        "windows": list(layout.grid),
        "padding": list(layout.pad),
        "shift": [0, 0] if other is None else list(other.windows.shift),
    }


def _show_units(context: Context, layers: Sequence[AttentionLayer], padded: str | bool) -> Result:
    """Hiera: mask units that shrink with the map, then global attention."""
    kinds: dict[tuple[Size, Size], list[AttentionLayer]] = {}
    for layer in layers:
        kinds.setdefault((layer.grid, layer.windows.window), []).append(layer)
    groups = list(kinds.values())
    stages = [
        {**_stage_facts(group[0]), "blocks": [layer.title for layer in group]} for group in groups
    ]
    figure = _draw_units(context, groups)
    return make_figure("cut-units", figure, ("text", padded), facts={"stages": stages})


def _draw_units(context: Context, groups: Sequence[Sequence[AttentionLayer]]) -> Figure:
    titles = []
    for group in groups:
        layout = group[0].windows
        blocks = [layer.title.split(" (")[0].rpartition(" ")[2] for layer in group]
        named = f"block {blocks[0]}" if len(blocks) == 1 else f"blocks {blocks[0]} to {blocks[-1]}"
        sides = f"{layout.window[0]} x {layout.window[1]} tokens"
        one = layout.num_windows == 1
        words = f"global: {sides}" if one else f"{layout.num_windows} units of {sides}"
        titles.append(f"{named}\n{words}")
    image = kit.to_floats(context.shown)
    figure, line = kit.panels(1, len(groups), ratio=kit.panel_ratio(context.shown_size), extra=0.42)
    for axes, group, words in zip(line[0], groups, titles, strict=True):
        _draw_shifted(axes, image, group[0], words)
    return figure


def _draw_windows(
    context: Context, stages: dict[int, AttentionLayer], shifted: dict[int, AttentionLayer]
) -> Figure:
    image = kit.to_floats(context.shown)
    figure, lines = kit.panels(
        len(stages), 4, ratio=kit.panel_ratio(context.shown_size), extra=0.42
    )
    for line, (stage, layer) in zip(lines, stages.items(), strict=True):
        layout = layer.windows
        words = f"stage {stage}, windows of {layout.window[0]} x {layout.window[1]}\n"
        count = f"{layout.num_windows} window{'s' * (layout.num_windows > 1)}"
        words += f"{count} on {layer.grid[0]} x {layer.grid[1]} tokens"
        _draw_shifted(line[0], image, layer, words)
        if stage not in shifted:
            kit.set_panel(line[1], np.ones_like(image))
            line[1].text(
                image.shape[1] / 2, image.shape[0] / 2,
                "not shifted:\none window\ncovers the map", ha="center", va="center", fontsize=9,
                color=INK,
            )  # fmt: skip
            continue
        other = shifted[stage]
        down, across = other.windows.shift
        _draw_in_place(line[1], image, other, f"shifted by {down} and {across} tokens\nin place")
        _draw_shifted(line[2], image, other, "as computed:\nshifted up and left")
        _draw_regions(line[3], other)
        _align(list(line))
    return figure


def _align(line: Sequence[Axes]) -> None:
    """Give panels of different sizes one scale: that of the largest."""
    wide = max(axes.get_xlim()[1] for axes in line)
    high = max(axes.get_ylim()[0] for axes in line)
    for axes in line:
        axes.set_xlim(0, wide)
        axes.set_ylim(high, 0)


def fit_canvas(image: NDArray[np.float32], size: Sequence[int]) -> NDArray[np.float32]:
    """Pad an image with grey at the right and bottom, or crop it, to a size in pixels."""
    canvas = np.full((*size, 3), _PAD, np.float32)
    height, width = min(size[0], len(image)), min(size[1], image.shape[1])
    canvas[:height, :width] = image[:height, :width]
    return canvas


def _draw_shifted(
    axes: Axes, image: NDArray[np.float32], layer: AttentionLayer, words: str
) -> None:
    """Draw the padded and shifted image with the borders of its windows."""
    stride, (rows, columns) = layer.stride, layer.grid
    canvas = fit_canvas(image, (rows * stride, columns * stride))
    numbers = shifted_indices(layer)
    token = numbers.repeat(stride, axis=0).repeat(stride, axis=1)  # of each pixel
    y = token // columns * stride + np.arange(len(token))[:, None] % stride
    x = token % columns * stride + np.arange(token.shape[1]) % stride
    kit.set_panel(axes, np.where((token >= 0)[..., None], canvas[y, x], np.float32(_PAD)), words)
    layout = layer.windows
    if layer.is_shifted:
        _tint(axes, np.where(numbers >= 0, find_regions(layout), 0), stride)
    _hatch(axes, numbers < 0, stride)
    _draw_borders(axes, _number_windows(layout), stride)


def _draw_in_place(
    axes: Axes, image: NDArray[np.float32], layer: AttentionLayer, words: str
) -> None:
    """Draw the unshifted image with the borders of the shifted windows."""
    layout, stride = layer.windows, layer.stride
    numbers = shifted_indices(layer)
    count = layer.grid[0] * layer.grid[1]
    window, region = np.zeros(count, np.int64), np.zeros(count, np.int64)
    known = numbers >= 0
    window[numbers[known]] = _number_windows(layout)[known]
    region[numbers[known]] = find_regions(layout)[known]
    canvas = fit_canvas(image, (layer.grid[0] * stride, layer.grid[1] * stride))
    kit.set_panel(axes, canvas, words)
    _tint(axes, region.reshape(layer.grid), stride)
    _draw_borders(axes, (window * 4 + region).reshape(layer.grid), stride)


def _draw_regions(axes: Axes, layer: AttentionLayer) -> None:
    layout, stride = layer.windows, layer.stride
    regions = find_regions(layout)
    colours = to_rgba_array(_REGIONS)[:, :3].astype(np.float32)
    image = colours[regions].repeat(stride, axis=0).repeat(stride, axis=1)
    kit.set_panel(axes, image, "attention stays\nwithin each region")
    _hatch(axes, shifted_indices(layer) < 0, stride)
    _draw_borders(axes, _number_windows(layout), stride, INK)
    for number in np.unique(regions):
        rows, columns = np.nonzero(regions == number)
        axes.text(
            (columns.mean() + 0.5) * stride, (rows.mean() + 0.5) * stride, str(number),
            ha="center", va="center", fontsize=9, color=INK, fontweight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip


def _tint(axes: Axes, regions: NDArray[np.int64], stride: int) -> None:
    """Overlay regions other than 0 in semi-transparent colours."""
    high, wide = regions.shape
    colours = to_rgba_array(_REGIONS)[regions]
    colours[..., 3] = np.where(regions > 0, 0.45, 0)
    axes.imshow(colours, extent=(0, wide * stride, high * stride, 0), interpolation="nearest")


def _hatch(axes: Axes, mask: NDArray[np.bool_], stride: int) -> None:
    """Hatch the full rows and columns of a mask of tokens."""
    rows, columns = np.asarray(mask.all(axis=1)), np.asarray(mask.all(axis=0))
    high, wide = mask.shape
    for start, stop in _runs(rows):
        kit.hatch_box(axes, (0, start * stride, wide * stride, stop * stride))
    for start, stop in _runs(columns):
        kit.hatch_box(axes, (start * stride, 0, stop * stride, high * stride))


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    # Differences of the padded mask are non-zero at the start and end of each run.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def _draw_borders(
    axes: Axes, groups: NDArray[np.int64], stride: int, colour: str = "white"
) -> None:
    """Draw lines between neighbouring tokens of different groups."""
    high, wide = groups.shape
    rows = np.flatnonzero((groups[1:] != groups[:-1]).any(axis=1)) + 1
    columns = np.flatnonzero((groups[:, 1:] != groups[:, :-1]).any(axis=0)) + 1
    for width, shade in ((1.8, INK), (0.9, colour)) if colour == "white" else ((1.0, colour),):
        axes.hlines(rows * stride, 0, wide * stride, colors=shade, linewidths=width)
        axes.vlines(columns * stride, 0, high * stride, colors=shade, linewidths=width)


def _show_mask(layer: AttentionLayer) -> Result:
    layout = layer.windows
    mask = shift_mask(layout)
    assert mask is not None, "a shifted layer"
    down, across = layout.grid
    places = {
        "a window in the middle": 0,
        "at the right edge": across - 1,
        "at the bottom edge": (down - 1) * across,
        "in the corner": down * across - 1,
    }
    figure, line = kit.panels(1, 4, extra=0.5)
    for axes, (words, place) in zip(line[0], places.items(), strict=True):
        allowed = (mask[place] == 0).numpy()
        axes.imshow(
            allowed, cmap=ListedColormap(["#1A1A1A", YELLOW]), vmin=0, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        axes.set_title(f"{words}\nallowed: {allowed.mean():.0%} of pairs", fontsize=8, color=INK)
        box = (-0.5, -0.5, allowed.shape[1] - 0.5, allowed.shape[0] - 0.5)
        kit.draw_frame(axes, box, VERMILION, 0.8)
    return make_figure(
        "cut-shift-mask",
        figure,
        arrays={"mask": mask.numpy()},
        facts={"windows": dict(places), "layer": layer.title},
        tokens=layout.num_tokens,
        layer=layer.title,
    )
