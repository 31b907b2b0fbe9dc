# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Figures of how an image becomes tokens: patches, windows and their shift, and stages.

Letters: h, w sides of the image in pixels.
"""

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
from muntin.explaining.attention_trace import trace
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.layers import AttentionLayer
from muntin.explaining.token_plotting import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    input_image,
    panel_ratio,
    set_panel,
    subplots,
)
from muntin.explaining.window_partition import draw_grid, fit_canvas, show_windows
from muntin.models.hiera import Hiera
from muntin.models.swin import Swin
from muntin.models.t2t_vit import SPLITS, T2TViT, unfolded_size
from muntin.shapes import Size

__all__ = ["show_patches"]

_PATCHES = (
    "<math display='block'><mrow><mi>N</mi><mo>=</mo><mo>&#8968;</mo><mfrac><mi>H</mi><mi>P</mi>"
    "</mfrac><mo>&#8969;</mo><mo>&#183;</mo><mo>&#8968;</mo><mfrac><mi>W</mi><mi>P</mi></mfrac>"
    "<mo>&#8969;</mo></mrow></math>"
)
_MERGE = (
    "<math display='block'><mrow><mi>H</mi><mo>&#215;</mo><mi>W</mi><mo>&#215;</mo><mi>C</mi>"
    "<mo>&#8594;</mo><mo>&#8968;</mo><mfrac><mi>H</mi><mn>2</mn></mfrac><mo>&#8969;</mo>"
    "<mo>&#215;</mo><mo>&#8968;</mo><mfrac><mi>W</mi><mn>2</mn></mfrac><mo>&#8969;</mo>"
    "<mo>&#215;</mo><mn>4</mn><mi>C</mi><mo>&#8594;</mo><mo>&#8968;</mo><mfrac><mi>H</mi>"
    "<mn>2</mn></mfrac><mo>&#8969;</mo><mo>&#215;</mo><mo>&#8968;</mo><mfrac><mi>W</mi>"
    "<mn>2</mn></mfrac><mo>&#8969;</mo><mo>&#215;</mo><mn>2</mn><mi>C</mi></mrow></math>"
)
_SHOWN_PATCHES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class StageGrid:
    """The token grid of one stage.

    Attributes:
        title: Title of the stage.
        grid: (rows, columns) of tokens.
        stride: Pixels between neighbouring tokens.
        channels: Channels of a token; 0 if unknown.
        kernel: Side in pixels of the patch that becomes a token; larger than the stride if patches
            overlap.
    """

    title: str
    grid: Size
    stride: int
    channels: int
    kernel: int


def show_patches(context: Context) -> list[ExplanationFigure | MissingFigure]:
    """Show how the image is split into tokens and windows.

    Args:
        context: The model and its image.

    Returns:
        Patches; windows, their cyclic shift and its mask; the stages of a hierarchical model.

    Raises:
        ShapeError: The backbone does not accept this image size.
    """
    title = "Patches and windows"
    backbone = context.backbone
    if backbone is None:
        reason = (
            "An exported file does not expose its patches and windows. Explain the run that it "
            "was exported from; attribution by occlusion is available here."
        )
        return [MissingFigure(section="cut", title=title, reason=reason)]
    layers = trace(backbone, context.images)
    if not layers:
        reason = (
            f"{context.name} has no patches, or its architecture is not supported (ViT, Swin, "
            f"Hiera, T2T-ViT; from timm, ViT and Swin V1). Its feature maps are available."
        )
        return [MissingFigure(section="cut", title=title, reason=reason)]
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
            stages.append(
                StageGrid(
                    title=f"unfolding {number}", grid=size, stride=stride, channels=width,
                    kernel=kernel,
                )
            )  # fmt: skip
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


def _show_patches(context: Context, stage: StageGrid) -> ExplanationFigure:
    height, width = context.images.shape[2:]
    covered = (stage.grid[0] * stage.stride, stage.grid[1] * stage.stride)
    channels = context.images.shape[1]
    overlap = stage.kernel - stage.stride
    enlarged = (height, width) != context.shown_size
    padded = f", padded to {height} x {width}" if enlarged else ""
    text = (
        f"The image, {context.shown_size[0]} x {context.shown_size[1]} pixels (height x width)"
        f"{padded}, is split into {stage.grid[0]} x {stage.grid[1]} tokens. A shared linear layer "
        f"projects each patch of {stage.kernel} x {stage.kernel} pixels "
        f"({stage.kernel**2 * channels} values) to {stage.channels} channels. "
    )
    text += (
        f"Patches overlap: the stride is {stage.stride} pixels. "
        if overlap > 0
        else "Patches do not overlap. "
    )
    if covered[0] > context.shown_size[0] or covered[1] > context.shown_size[1]:
        why = "to a whole number of patches"
        if enlarged:
            why = f"to multiples of {PAD_TO} pixels, the stride of the coarsest map"
        text += f"Hatched: padding on the right and bottom, {why}."
    elif covered[0] < height or covered[1] < width:
        text += "Hatched: pixels beyond the last whole patch, which are ignored."
    return ExplanationFigure(
        name="cut-patches",
        section="cut",
        title="Patches",
        text=text,
        figure=_draw_patches(context, stage),
        formula=_PATCHES,
        source="Dosovitskiy et al. 2021, arXiv 2010.11929, equation 1",
        facts={
            "picture": list(context.shown_size),
            "read": [height, width],
            "patch": stage.kernel,
            "stride": stage.stride,
            "grid": list(stage.grid),
            "tokens": stage.grid[0] * stage.grid[1],
            "channels": stage.channels,
        },
    )


def _draw_patches(context: Context, stage: StageGrid) -> Figure:
    image = input_image(context)
    covered = (stage.grid[0] * stage.stride, stage.grid[1] * stage.stride)
    canvas = fit_canvas(image, (max(covered[0], len(image)), max(covered[1], image.shape[1])))
    figure, panels = subplots(1, 2, ratio=panel_ratio(covered), extra=0.3)
    overview, detail = panels[0]
    set_panel(
        overview, canvas, f"{stage.grid[0]} x {stage.grid[1]} tokens of {stage.stride} pixels"
    )
    draw_grid(overview, stage.grid, stage.stride, 0.5)
    side = min(_SHOWN_PATCHES, *stage.grid)
    rows, columns = ((count - side) // 2 for count in stage.grid)
    left, top, extent = columns * stage.stride, rows * stage.stride, side * stage.stride
    overview.add_patch(
        Rectangle((left, top), extent, extent, fill=False, edgecolor=RED, linewidth=2, zorder=3)
    )
    set_panel(detail, canvas, f"central {side} x {side}")
    draw_grid(detail, stage.grid, stage.stride, 1.2)
    over = (stage.kernel - stage.stride) / 2
    middle = side // 2 * stage.stride
    box = (left + middle - over, top + middle - over)
    detail.add_patch(
        Rectangle(box, stage.kernel, stage.kernel, fill=False, edgecolor=RED, linewidth=3, zorder=3)
    )
    detail.set_xlim(left, left + extent)
    detail.set_ylim(top + extent, top)
    height, width = context.shown_size
    for axes in (overview, detail):
        hatch_outside(axes, (min(height, covered[0]), min(width, covered[1])), canvas.shape[:2])
    return figure


def hatch_outside(axes: Axes, inner: Size, outer: Sequence[int]) -> None:
    """Hatch the area of a canvas to the right of and below an inner size, in pixels."""
    boxes = (
        (0, inner[0], outer[1], outer[0] - inner[0]),
        (inner[1], 0, outer[1] - inner[1], inner[0]),
    )
    for left, top, width, height in boxes:
        if width > 0 and height > 0:
            axes.add_patch(
                Rectangle(
                    (left, top), width, height, fill=False, hatch="////", edgecolor="#777777",
                    linewidth=0,
                )
            )  # fmt: skip


def _show_stages(context: Context, stages: Sequence[StageGrid]) -> ExplanationFigure:
    merges = "patch merging concatenates 2 x 2 neighbours (4C channels) and projects them to 2C"
    backbone = context.backbone
    if isinstance(backbone, Hiera):
        merges = "queries are max-pooled over 2 x 2 neighbours, and channels double"
    elif isinstance(backbone, T2TViT):
        merges = "overlapping neighbourhoods of 3 x 3 tokens are unfolded into one token"
    odd = any(side % 2 for stage in stages[:-1] for side in stage.grid)
    text = (
        f"Between stages {merges}. Each stage has a quarter of the tokens of the one before, and "
        f"each token covers more of the image: the panels show the image at the resolution of the "
        f"tokens. The stages form a feature pyramid for detection and segmentation heads."
    )
    if odd and isinstance(backbone, Swin):
        text += " Odd sides are padded with one row or column of zeros first."
    merging = not isinstance(backbone, Hiera | T2TViT)
    return ExplanationFigure(
        name="cut-stages",
        section="cut",
        title="Stages: fewer tokens, more channels",
        text=text,
        figure=_draw_stages(context, stages, merging=merging),
        formula=_MERGE if merging else "",
        source="Liu et al. 2021, arXiv 2103.14030, section 3.1" if merging else "",
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
    )


def _draw_stages(context: Context, stages: Sequence[StageGrid], *, merging: bool) -> Figure:
    image = input_image(context)
    ratio = panel_ratio(context.shown_size)
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
        set_panel(axes, _coarsen(image, stage), words)
    if merging:
        _draw_merging(figure.add_subplot(rows[1]), stages[0].channels)
    return figure


def _coarsen(image: NDArray[np.float32], stage: StageGrid) -> NDArray[np.float32]:
    """Mean colour of each token's pixels, at the size of the image."""
    height, width = image.shape[:2]
    rows = np.minimum(np.arange(height) // stage.stride, stage.grid[0] - 1)
    columns = np.minimum(np.arange(width) // stage.stride, stage.grid[1] - 1)
    numbers = rows[:, None] * stage.grid[1] + columns[None]
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
