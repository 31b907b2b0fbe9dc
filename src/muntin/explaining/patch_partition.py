# SPDX-License-Identifier: Apache-2.0
"""Figures of how an image becomes tokens: patches, windows and their shift, and stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrow, Rectangle
from numpy.typing import NDArray
from torch import nn

from muntin.data.batches import PAD_TO
from muntin.drawing.style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILION
from muntin.explaining import plotting as kit
from muntin.explaining.attention_layers import AttentionLayer
from muntin.explaining.context import Context
from muntin.explaining.figures import Result, Results, find_text, make_figure, make_missing
from muntin.explaining.window_partition import fit_canvas, show_windows
from muntin.models.hiera import Hiera
from muntin.models.swin import Swin
from muntin.models.t2t_vit import SPLITS, T2TViT, unfolded_size
from muntin.shapes import Size

_SHOWN_PATCHES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StageGrid:
    """The token grid of one stage; stride and kernel in pixels, 0 channels if unknown.

    The kernel is the side of the patch that becomes a token: larger than the stride where patches
    overlap.
    """

    title: str
    grid: Size
    stride: int
    channels: int
    kernel: int


def show_patches(context: Context) -> Results:
    """Show how the image is split into tokens and windows."""
    backbone = context.backbone
    if backbone is None:
        return [make_missing("cut-exported")]
    layers = context.recording.layers
    if not layers:
        return [make_missing("cut-unsupported", name=context.name)]
    stages = _find_stages(backbone, layers)
    figures = [_show_patches(context, stages[0]), *show_windows(context, layers)]
    if len(stages) > 1:
        figures.append(_show_stages(context, stages))
    return figures


def _find_stages(backbone: nn.Module, layers: Sequence[AttentionLayer]) -> list[StageGrid]:
    if isinstance(backbone, T2TViT):
        size: Size = (layers[0].grid[0], layers[0].grid[1])
        channels = (backbone.config.token_dim, backbone.config.token_dim, backbone.config.embed_dim)
        stages, stride = [], 1
        for number, (split, width) in enumerate(zip(SPLITS, channels, strict=True), 1):
            size = layers[0].grid if number == 1 else unfolded_size(size, split)
            stride *= split[1]
            kernel = SPLITS[0][0] if number == 1 else stride
            title = f"unfolding {number}"
            stages.append(
                StageGrid(title=title, grid=size, stride=stride, channels=width, kernel=kernel)
            )
        return stages
    # The last layer of each stage has its output grid: Hiera pools queries in the first one.
    last_layers = {layer.stage: layer for layer in layers}
    return [
        StageGrid(
            title=f"stage {number}" if len(last_layers) > 1 else "patches",
            grid=layer.query_grid,
            stride=layer.stride * layer.pooled,
            channels=_count_channels(backbone, number),
            kernel=7 if isinstance(backbone, Hiera) else layer.stride,
        )
        for number, layer in last_layers.items()
    ]


def _count_channels(backbone: nn.Module, number: int) -> int:
    config = getattr(backbone, "config", None)
    if isinstance(backbone, Swin | Hiera):
        return backbone.config.dim(number - 1)
    facts = getattr(getattr(backbone, "net", None), "feature_info", None)
    if facts is not None:
        return int(list(facts)[number - 1]["num_chs"])
    return int(getattr(config, "embed_dim", 0))


def _show_patches(context: Context, stage: StageGrid) -> Result:
    (height, width), shown = context.images.shape[2:], context.shown_size
    covered = (stage.grid[0] * stage.stride, stage.grid[1] * stage.stride)
    enlarged = (height, width) != shown
    padding = ""
    if covered[0] > shown[0] or covered[1] > shown[1]:
        padding = "whole_strides" if enlarged else "whole_patches"
    elif covered[0] < height or covered[1] < width:
        padding = "ignored"
    padded = find_text("cut-patches", "padded", height=height, width=width) if enlarged else ""
    return make_figure(
        "cut-patches",
        _draw_patches(context, stage),
        (
            "text",
            "overlap" if stage.kernel > stage.stride else "separate",
            bool(padding) and padding,
        ),
        facts={
            "picture": list(shown),
            "read": [height, width],
            "patch": stage.kernel,
            "stride": stage.stride,
            "grid": list(stage.grid),
            "tokens": stage.grid[0] * stage.grid[1],
            "channels": stage.channels,
        },
        height=shown[0],
        width=shown[1],
        padded=padded,
        rows=stage.grid[0],
        columns=stage.grid[1],
        kernel=stage.kernel,
        values=stage.kernel**2 * context.images.shape[1],
        channels=stage.channels,
        stride=stage.stride,
        pad_to=PAD_TO,
    )


def _draw_patches(context: Context, stage: StageGrid) -> Figure:
    image = kit.to_floats(context.shown)
    covered = (stage.grid[0] * stage.stride, stage.grid[1] * stage.stride)
    canvas = fit_canvas(image, (max(covered[0], len(image)), max(covered[1], image.shape[1])))
    figure, axes = kit.panels(1, 2, ratio=kit.panel_ratio(covered))
    overview, detail = axes[0]
    kit.set_panel(
        overview, canvas, f"{stage.grid[0]} x {stage.grid[1]} tokens of {stage.stride} pixels"
    )
    _draw_grid(overview, stage.grid, stage.stride, 0.5)
    side = min(_SHOWN_PATCHES, *stage.grid)
    rows, columns = ((count - side) // 2 for count in stage.grid)
    left, top, extent = columns * stage.stride, rows * stage.stride, side * stage.stride
    kit.draw_frame(overview, (left, top, left + extent, top + extent), VERMILION, 2, zorder=3)
    kit.set_panel(detail, canvas, f"central {side} x {side}")
    _draw_grid(detail, stage.grid, stage.stride, 1.2)
    over = (stage.kernel - stage.stride) / 2
    middle = side // 2 * stage.stride
    first_x, first_y = left + middle - over, top + middle - over
    box = (first_x, first_y, first_x + stage.kernel, first_y + stage.kernel)
    kit.draw_frame(detail, box, VERMILION, 3, zorder=3)
    detail.set_xlim(left, left + extent)
    detail.set_ylim(top + extent, top)
    height, width = (min(sides) for sides in zip(context.shown_size, covered, strict=True))
    for panel in (overview, detail):
        kit.hatch_box(panel, (0, height, canvas.shape[1], canvas.shape[0]), "#777777")
        kit.hatch_box(panel, (width, 0, canvas.shape[1], height), "#777777")
    return figure


def _draw_grid(axes: Axes, grid: Size, stride: int, width: float) -> None:
    """Draw the borders between tokens."""
    high, wide = grid[0] * stride, grid[1] * stride
    rows, columns = np.arange(grid[0] + 1) * stride, np.arange(grid[1] + 1) * stride
    axes.hlines(rows, 0, wide, colors="white", linewidths=width, alpha=0.6)
    axes.vlines(columns, 0, high, colors="white", linewidths=width, alpha=0.6)


def _show_stages(context: Context, stages: Sequence[StageGrid]) -> Result:
    backbone = context.backbone
    merging = not isinstance(backbone, Hiera | T2TViT)
    kind = "merging" if merging else "pooling" if isinstance(backbone, Hiera) else "unfolding"
    odd = any(side % 2 for stage in stages[:-1] for side in stage.grid)
    return make_figure(
        "cut-stages",
        _draw_stages(context, stages, merging=merging),
        ("text", odd and isinstance(backbone, Swin) and "odd"),
        formula=None if merging else "",
        facts={
            "stages": [
                {
                    "stage": stage.title,
                    "grid": list(stage.grid),
                    "tokens": stage.grid[0] * stage.grid[1],
                    "channels": stage.channels,
                    "stride": stage.stride,
                }
                for stage in stages
            ]
        },
        merging=find_text("cut-stages", kind),
    )


def _draw_stages(context: Context, stages: Sequence[StageGrid], *, merging: bool) -> Figure:
    image = kit.to_floats(context.shown)
    ratio = kit.panel_ratio(context.shown_size)
    width = 9.0
    high = width / len(stages) * ratio + 0.6
    figure = Figure(figsize=(width, high + (1.5 if merging else 0)), layout="constrained")
    rows = figure.add_gridspec(2 if merging else 1, 1, height_ratios=(high, 1.5)[: 1 + merging])
    line = rows[0].subgridspec(1, len(stages))
    for place, stage in enumerate(stages):
        axes = figure.add_subplot(line[place])
        axes.set_axis_off()
        words = (
            f"{stage.title}: {stage.grid[0]} x {stage.grid[1]} tokens\n"
            f"{stage.channels} channels, {stage.stride} pixels per token"
        )
        kit.set_panel(axes, _coarsen(image, stage), words)
    if merging:
        _draw_merging(figure.add_subplot(rows[1]), stages[0].channels)
    return figure


def _coarsen(image: NDArray[np.float32], stage: StageGrid) -> NDArray[np.float32]:
    """Mean colour of each token's pixels, at the size of the image."""
    rows, columns = kit.find_cells(image.shape[:2], stage.grid, stage.stride)
    numbers = rows * stage.grid[1] + columns
    counts = np.bincount(numbers.ravel(), minlength=stage.grid[0] * stage.grid[1])
    sums = [
        np.bincount(numbers.ravel(), image[..., channel].ravel(), minlength=len(counts))
        for channel in range(3)
    ]
    means = np.stack(sums, axis=-1) / np.maximum(counts, 1)[:, None]
    return means[numbers].astype(np.float32)


def _draw_merging(axes: Axes, channels: int) -> None:
    """Draw patch merging: four neighbours, concatenated, one token."""
    axes.set_axis_off()
    axes.set_xlim(0, 18)
    axes.set_ylim(3, 0)
    axes.set_aspect("equal")
    colours = (BLUE, ORANGE, GREEN, PURPLE)  # (0,0), (1,0), (0,1), (1,1)
    for number, colour in enumerate(colours):
        column, row = divmod(number, 2)
        axes.add_patch(Rectangle((0.5 + column, 0.4 + row), 0.94, 0.94, color=colour))
        axes.add_patch(Rectangle((5 + 1.1 * number, 1.1), 1.1, 0.6, color=colour))
    axes.add_patch(Rectangle((13, 1.1), 2.2, 0.6, color=SKY))
    for start, length in ((3, 1.5), (9.9, 2.6)):
        axes.add_patch(FancyArrow(start, 1.4, length, 0, width=0.06, head_width=0.35, color=INK))
    for x, y, words in (
        (1.5, 2.75, "2 x 2 neighbours"),
        (7.2, 2.35, f"concatenated: {4 * channels}"),
        (11.1, 1.15, "linear"),
        (14.1, 2.35, f"one token: {2 * channels}"),
    ):
        axes.text(x, y, words, ha="center", va="bottom", fontsize=8, color=INK)
