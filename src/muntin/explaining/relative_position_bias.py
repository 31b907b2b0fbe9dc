# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Relative position biases: learned tables (Swin, SimMIM) and continuous ones (Swin V2).

Letters: h heads, H, W height and width of a bias table, n offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_grid import ImageGrid, name_heads
from muntin.explaining.layers import AttentionLayer
from muntin.explaining.token_plotting import INK, PALETTE, note_on_weights
from muntin.models.swin import WindowAttention
from muntin.models.swin_v2 import CosineWindowAttention
from muntin.models.vit import SelfAttention
from muntin.ops.positions import expand_relative_position_bias
from muntin.shapes import Float, Size

__all__ = ["BiasTable", "find_biases", "show_relative_bias"]

_COLUMNS = 8
_MAX_HEADS = 24
_TABLE = (
    "<math display='block'><mrow><msub><mi>B</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>=</mo>"
    "<mover><mi>B</mi><mo>^</mo></mover><mo>[</mo><msub><mi>y</mi><mi>i</mi></msub><mo>&#8722;</mo>"
    "<msub><mi>y</mi><mi>j</mi></msub><mo>,</mo><msub><mi>x</mi><mi>i</mi></msub><mo>&#8722;</mo>"
    "<msub><mi>x</mi><mi>j</mi></msub><mo>]</mo></mrow></math>"
)
_CONTINUOUS = (
    "<math display='block'><mrow><mi>B</mi><mo>=</mo><mn>16</mn><mi>&#963;</mi><mo>(</mo>"
    "<mi>G</mi><mo>(</mo><mover><mrow><mi>&#916;</mi><mi>x</mi></mrow><mo>^</mo></mover><mo>,</mo>"
    "<mover><mrow><mi>&#916;</mi><mi>y</mi></mrow><mo>^</mo></mover><mo>)</mo><mo>)</mo><mo>,</mo>"
    "<mspace width='1em'/><mover><mrow><mi>&#916;</mi><mi>x</mi></mrow><mo>^</mo></mover><mo>=</mo>"
    "<mi>sign</mi><mo>(</mo><mi>&#916;</mi><mi>x</mi><mo>)</mo><mi>log</mi><mo>(</mo><mn>1</mn>"
    "<mo>+</mo><mo>|</mo><mi>&#916;</mi><mi>x</mi><mo>|</mo><mo>)</mo></mrow></math>"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BiasTable:
    """Relative position bias of one layer.

    Attributes:
        layer: The layer.
        values: Bias of each head by offset from query to key. The query is the centre; keys to
            its right are on the right.
    """

    layer: AttentionLayer
    values: Float[Tensor, "h H W"]


def find_biases(backbone: Any, layers: Sequence[AttentionLayer]) -> list[BiasTable]:  # noqa: ANN401
    """Read the bias tables of the layers that have one.

    Args:
        backbone: The backbone of the layers.
        layers: Attention layers from `muntin.explaining.attention_trace.trace`.
    """
    tables = []
    for layer in layers:
        module = backbone.get_submodule(layer.name)
        module = getattr(module, "attn", module)  # timm's reader hooks the block, not its attention
        values = _read_table(module, layer)
        if values is not None:
            tables.append(BiasTable(layer=layer, values=values))
    return tables


@torch.no_grad()
def _read_table(module: Any, layer: AttentionLayer) -> Tensor | None:  # noqa: ANN401
    if isinstance(module, CosineWindowAttention):
        assert layer.layout is not None, "Swin V2 has windows"
        return _table_from_pairs(
            module.relative_position_bias(layer.layout).detach(), layer.layout.window
        )
    table = getattr(module, "relative_position_bias_table", None)
    if table is None:
        return None
    if isinstance(module, SelfAttention):
        table, window = table[:-3], module.grid
    elif isinstance(module, WindowAttention):
        window = (module.window, module.window)
    else:
        window = tuple(module.window_size)
    grid = table.detach().float().t().unflatten(1, (2 * window[0] - 1, 2 * window[1] - 1))
    return grid.flip(1, 2)  # the table is indexed by query minus key


def _table_from_pairs(bias: Float[Tensor, "h N N"], window: Size) -> Float[Tensor, "h H W"]:
    """Recover the table from the matrix of all pairs, in which an offset has one value."""
    rows, columns = (2 * side - 1 for side in window)
    numbers = torch.arange(rows * columns, dtype=torch.float64)[:, None]
    # Expanding the numbers of the cells tells from which cell each pair got its value.
    index = (
        expand_relative_position_bias(numbers, table_window=window, window=window)[0]
        .long()
        .flatten()
    )
    table = bias.new_zeros(len(bias), rows * columns)
    table[:, index] = bias.flatten(1)
    return table.unflatten(1, (rows, columns)).flip(1, 2)


def show_relative_bias(
    context: Context, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    """Show the relative position biases of a model; empty if it has none.

    Args:
        context: The model.
        layers: Attention layers from `muntin.explaining.attention_trace.trace`.
    """
    biases = find_biases(context.backbone, layers)
    if not biases:
        return []
    shown: list[ExplanationFigure | MissingFigure] = [_show_tables(context, biases)]
    cosine = [bias.layer for bias in biases if bias.layer.scores == "cosine"]
    if cosine:
        shown.append(_show_continuous(context, cosine))
    return shown


def _show_tables(context: Context, biases: Sequence[BiasTable]) -> ExplanationFigure:
    cosine = biases[0].layer.scores == "cosine"
    made = "computed by a small MLP from the offset" if cosine else "learned, one value per offset"
    return ExplanationFigure(
        name="positions-relative-bias",
        section="positions",
        title="Relative position bias by head",
        text=(
            f"Each panel shows one head, with the query at its centre. A pixel is the key at that "
            f"offset, and its colour the bias added to the attention logit before the softmax: "
            f"bright keys are favoured. The biases are {made} and shared by all positions of the "
            f"map. Trained heads favour neighbours, a row, a column or a direction. Each layer has "
            f"its own scale, given above it." + note_on_weights(context)
        ),
        figure=_draw_tables(biases),
        formula=_CONTINUOUS if cosine else _TABLE,
        source=(
            "Liu et al. 2022, arXiv 2111.09883, section 3.3"
            if cosine
            else "Liu et al. 2021, arXiv 2103.14030, equation 4"
        ),
        arrays={f"table_{n:02}": bias.values.numpy() for n, bias in enumerate(biases, 1)},
        facts={
            "tables": [
                {"layer": bias.layer.title, "array": f"table_{number:02}"}
                for number, bias in enumerate(biases, 1)
            ]
        },
    )


def _draw_tables(biases: Sequence[BiasTable]) -> Figure:
    stages = {bias.layer.stage: bias for bias in biases}
    spread = np.linspace(0, len(biases) - 1, min(len(biases), 4)).round().astype(int)
    chosen = list(stages.values()) if len(stages) > 1 else [biases[place] for place in spread]
    parts = [
        (bias, first)
        for bias in chosen
        for first in range(0, min(len(bias.values), _MAX_HEADS), _COLUMNS)
    ]
    image_grid = ImageGrid(len(parts), _COLUMNS, ratio=1.0, extra=0.25, ends=("lowest", "highest"))
    for row, (bias, first) in enumerate(parts):
        shown = bias.values[first : min(first + _COLUMNS, _MAX_HEADS)].numpy()
        low, high = float(bias.values.min()), float(bias.values.max())
        for column, values in enumerate(shown):
            x, y = values.shape[1] // 2, values.shape[0] // 2
            image_grid.show(row, column, values, mark=(x, y, x + 1, y + 1), low=low, high=high)
        title = f"{bias.layer.title}, {name_heads(first, len(shown))}"
        image_grid.name(row, f"{title}; {low:.2g} to {high:.2g}")
    return image_grid.figure


def _show_continuous(context: Context, layers: Sequence[AttentionLayer]) -> ExplanationFigure:
    stages = list({layer.stage: layer for layer in layers}.values())
    curves = [_sample_bias(context.backbone, layer) for layer in stages]
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for axes, layer, (offsets, values) in zip(panels, stages, curves, strict=True):
        assert layer.layout is not None, "Swin V2 has windows"
        edge = layer.layout.window[1] - 1
        axes.axvspan(-edge, edge, color="#EEEEEE", zorder=0)
        for head, line in enumerate(values[: len(PALETTE)]):
            axes.plot(offsets, line, color=PALETTE[head], linewidth=1.4, label=f"head {head + 1}")
            whole = offsets % 1 == 0
            axes.plot(offsets[whole], line[whole], ".", color=PALETTE[head], ms=3.5)
        axes.set_title(f"stage {layer.stage}", fontsize=9, color=INK)
        axes.set_xlabel("offset to the right, tokens", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("bias", fontsize=8)
    panels[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ExplanationFigure(
        name="positions-continuous-bias",
        section="positions",
        title="Continuous position bias beyond the window",
        text=(
            "Bias of a key in the row of its query against the horizontal offset in tokens, for "
            "the first heads of the last block of each stage. Dots are integer offsets; the window "
            "is shaded in grey. The MLP takes log-spaced offsets and extrapolates beyond the "
            "window, so the same weights work with larger windows." + note_on_weights(context)
        ),
        figure=figure,
        formula=_CONTINUOUS,
        source="Liu et al. 2022, arXiv 2111.09883, section 3.3, equations 3 and 4",
        arrays={
            f"{name}_stage_{layer.stage}": values
            for layer, pair in zip(stages, curves, strict=True)
            for name, values in zip(("offsets", "bias"), pair, strict=True)
        },
    )


@torch.no_grad()
def _sample_bias(backbone: Any, layer: AttentionLayer) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Sample the bias of each head along a row, up to twice the window."""
    module = backbone.get_submodule(layer.name)
    assert layer.layout is not None, "Swin V2 has windows"
    fixed = module.pretrained_window
    known = fixed or layer.layout.built_window[1]
    reach = 2 * layer.layout.window[1]
    offsets = torch.linspace(-reach, reach, 16 * reach + 1)
    scaled = 8 * offsets / max(known - 1, 1)
    logs = scaled.sign() * torch.log2(scaled.abs() + 1) / 3
    # The MLP's input is (down, right), query minus key: hence the sign.
    pairs = torch.stack([torch.zeros_like(logs), -logs], dim=1)
    weight = next(module.cpb_mlp.parameters())
    values = 16 * torch.sigmoid(module.cpb_mlp(pairs.to(weight)))  # n, h
    return offsets.numpy(), values.float().t().contiguous().numpy()
