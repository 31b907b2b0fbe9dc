# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attention through all layers at once (rollout), and how far heads look (mean distance).

Letters: T tokens with those before the patches, R rows, h heads, G groups of tokens that look at
each other, Q queries and N keys of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_grid import ImageGrid
from muntin.explaining.layers import MAX_PAIRS, AttentionLayer
from muntin.explaining.token_lookup import cell_at, token_at
from muntin.explaining.token_plotting import (
    BLUE,
    GREEN,
    INK,
    RED,
    blend,
    input_image,
    note_on_weights,
    panel_ratio,
)
from muntin.ops.windows import shift_mask
from muntin.shapes import Bool, Float, Size

__all__ = ["can_roll_out", "measure_distances", "roll_out", "show_distances", "show_rollout"]

_ROLLOUT = (
    "<math display='block'><mrow><mi>R</mi><mo>=</mo>"
    "<msub><mover><mi>A</mi><mo>~</mo></mover><mi>L</mi></msub><mo>&#8943;</mo>"
    "<msub><mover><mi>A</mi><mo>~</mo></mover><mn>1</mn></msub><mo>,</mo><mspace width='1em'/>"
    "<mover><mi>A</mi><mo>~</mo></mover><mo>=</mo><mfrac><mn>1</mn><mn>2</mn></mfrac><mo>(</mo>"
    "<mover><mi>A</mi><mo>&#175;</mo></mover><mo>+</mo><mi>I</mi><mo>)</mo></mrow></math>"
)
_DISTANCE = (
    "<math display='block'><mrow><mi>D</mi><mo>=</mo><mfrac><mn>1</mn><mi>N</mi></mfrac>"
    "<munder><mo>&#8721;</mo><mi>i</mi></munder><munder><mo>&#8721;</mo><mi>j</mi></munder>"
    "<msub><mi>A</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub><mo>&#8214;</mo>"
    "<msub><mi>p</mi><mi>i</mi></msub><mo>&#8722;</mo><msub><mi>p</mi><mi>j</mi></msub>"
    "<mo>&#8214;</mo></mrow></math>"
)


def can_roll_out(layers: Sequence[AttentionLayer]) -> bool:
    """Whether every layer lets the same tokens look at all others, as rollout assumes."""
    kinds = {(layer.grid, layer.prefix, layer.pooled) for layer in layers}
    return len(kinds) == 1 and all(layer.is_global for layer in layers)


def roll_out(layers: Sequence[AttentionLayer], start: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
    """Follow attention from the last layer to the patches, shortcuts included.

    Args:
        layers: All of a network, in order; `can_roll_out` says whether they go together.
        start: Where to look from, after the last layer: shares of the tokens, which sum to 1.

    Returns:
        Shares of the tokens before the first layer; rows sum to 1.

    Source:
        Abnar and Zuidema 2020 (arXiv 2005.00928), section 3, attention rollout: the product of
        (A + 1) / 2 over the layers, A the mean over heads. Compared with the product of whole
        matrices in tests/explaining/test_attention_maps.py. Differs: only the rows that are asked for
        are computed.
    """
    rows = start
    for layer in reversed(layers):
        rows = (rows + rows @ layer.mean_attention()[0]) / 2
    return rows


def measure_distances(layer: AttentionLayer) -> tuple[Float[Tensor, " h"], float]:
    """Measure how far each head looks: distance of keys to their query, weighted by attention.

    Args:
        layer: The layer. Padding and tokens without a place do not count: the weights of the
            others are brought to a sum of 1 first.

    Returns:
        Mean over the queries, in pixels of the image as the network sees it, for each head; and
        what it would be if every token looked equally at all that it can reach.

    Source:
        Dosovitskiy et al. 2021 (arXiv 2010.11929), appendix D.7 and figure 7 (right). Differs:
        weights are brought to a sum of 1 without the class token.
    """
    asks = layer.queries >= 0  # G, Q
    away = torch.cdist(
        _centres(layer.queries, layer.query_grid, layer.stride * layer.pooled),
        _centres(layer.keys, layer.grid, layer.stride),
    )  # G, Q, N
    reached = _reachable(layer)
    means = []
    for weights in layer.attention_weights():
        inside = weights * reached
        far = (inside * away).sum(dim=-1) / inside.sum(dim=-1).clamp(min=1e-12)  # G, Q
        means.append(far[asks].mean())
    uniform = (reached * away).sum(dim=-1) / reached.sum(dim=-1).clamp(min=1)
    return torch.stack(means), float(uniform[asks].mean())


def _reachable(layer: AttentionLayer) -> Bool[Tensor, "G Q N"]:
    """Pairs that may look at each other and whose key has a place."""
    inside = (layer.keys >= 0)[:, None].expand(-1, layer.queries.shape[1], -1)
    mask = None if layer.layout is None else shift_mask(layer.layout)
    return inside if mask is None else inside & (mask == 0)


def _centres(numbers: Tensor, grid: Size, stride: int) -> Float[Tensor, "G n 2"]:
    """(row, column) of the middles of tokens, in pixels."""
    places = torch.stack([numbers // grid[1], numbers % grid[1]], dim=-1)
    return (places.float() + 0.5) * stride


def show_rollout(
    context: Context, layers: Sequence[AttentionLayer], point: tuple[float, float]
) -> list[ExplanationFigure | MissingFigure]:
    """Show what reaches the end of a global network, all layers together.

    Args:
        context: The model and its image.
        layers: All of its layers.
        point: (x, y) in pixels of the image as the network sees it.
    """
    title = "Attention through all layers (rollout)"
    layers = [layer for layer in layers if layer.stage]
    if not can_roll_out(layers):
        reason = (
            f"Rollout multiplies the attention of all layers, which must have the same tokens; "
            f"those of {context.name} change from stage to stage or stay inside windows. Each "
            f"layer's attention and the mean attention distance can be seen instead."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    if layers[0].num_pairs > MAX_PAIRS:
        reason = "Too many tokens at this size. A smaller image shows it."
        return [MissingFigure(section="attention", title=title, reason=reason)]
    first, before = layers[0], len(layers[0].prefix)
    start = torch.zeros(2, first.queries.shape[1])
    if before:
        start[0, 0] = 1
    else:
        start[0] = 1 / start.shape[1]
    start[1, before + token_at(first, point)] = 1
    rows = roll_out(layers, start)
    maps = rows[:, before:].unflatten(1, first.grid).numpy()
    last = (start @ layers[-1].mean_attention()[0])[:, before:].unflatten(1, first.grid).numpy()
    asked = "the class token" if before else "the mean of all tokens"
    return [
        ExplanationFigure(
            name="attention-rollout",
            section="attention",
            title=title,
            text=(
                f"What one layer looks at are tokens that have looked around themselves before. "
                f"Rollout follows attention from {asked}, and from the point, down through all "
                f"layers to the patches; half of each step goes through the shortcut, which "
                f"changes nothing. It shows what could have been mixed in, not what decided."
                + note_on_weights(context)
            ),
            figure=_draw_rollout(context, first, asked, point, last, maps),
            formula=_ROLLOUT,
            source="Abnar and Zuidema 2020, arXiv 2005.00928, section 3",
            arrays={"rollout": maps, "last_layer": last},
            facts={
                "rows": [asked, "the point"],
                "kept by tokens without a place": rows[:, :before].sum(dim=1).tolist(),
            },
        )
    ]


def _draw_rollout(
    context: Context,
    layer: AttentionLayer,
    asked: str,
    point: tuple[float, float],
    last: np.ndarray,
    maps: np.ndarray,
) -> Figure:
    image = input_image(context)
    image_grid = ImageGrid(1, 5, ratio=panel_ratio(context.shown_size), extra=0.4)
    cell = cell_at(layer, point)
    image_grid.show(0, 0, image, "the image", mark=cell)
    for column, (weights, words, mark) in enumerate(
        (
            (last[0], f"last layer, from\n{asked}", None),
            (maps[0], f"rollout, from\n{asked}", None),
            (last[1], "last layer, from\nthe point", cell),
            (maps[1], "rollout, from\nthe point", cell),
        ),
        1,
    ):
        image_grid.show(0, column, blend(image, weights, layer.stride), words, mark=mark)
    return image_grid.figure


def show_distances(
    context: Context, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    """Show how far each head of each layer looks.

    Args:
        context: The model and its image.
        layers: Those that are measured.
    """
    measured = [measure_distances(layer) for layer in layers]
    height, width = context.shown_size
    text = (
        f"Each dot is a head: how far from its query, in pixels, lies what it takes, on average "
        f"over the image ({height} x {width} pixels). The dash is where a head would be that "
        f"looks equally at everything it can reach; heads below it look at their neighbourhood. "
    )
    if any(layer.layout is not None for layer in layers):
        text += (
            "Windows keep every head close, but a window of a later stage covers more of the "
            "image, so the field of view grows with depth by construction."
        )
    else:
        text += (
            "In trained ViTs some heads of the first layers look nearby, as a convolution would, "
            "and others everywhere from the start."
        )
    return [
        ExplanationFigure(
            name="attention-distance",
            section="attention",
            title="How far heads look (mean attention distance)",
            text=text + note_on_weights(context),
            figure=_draw_distances(layers, measured),
            formula=_DISTANCE,
            source="Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7 and appendix D.7",
            arrays={f"layer_{n:02}": row.numpy() for n, (row, _) in enumerate(measured, 1)},
            facts={
                "unit": "pixels",
                "layers": [
                    {"layer": layer.title, "mean": float(row.mean()), "if equal": equal}
                    for layer, (row, equal) in zip(layers, measured, strict=True)
                ],
            },
        )
    ]


def _draw_distances(
    layers: Sequence[AttentionLayer], measured: Sequence[tuple[Tensor, float]]
) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    kinds = {
        "global": (BLUE, "o"),
        "inside windows": (GREEN, "s"),
        "inside shifted windows": (RED, "^"),
    }
    named: set[str] = set()
    for place, (layer, (distances, uniform)) in enumerate(zip(layers, measured, strict=True)):
        inside = "inside windows" if layer.layout is not None else "global"
        shifted = layer.layout is not None and any(layer.layout.shift)
        kind = "inside shifted windows" if shifted else "global" if layer.is_global else inside
        colour, marker = kinds[kind]
        axes.scatter(
            np.full(len(distances), place), distances.numpy(), s=22, c=colour, marker=marker,
            alpha=0.75, linewidths=0, label=None if kind in named else f"a head, {kind}",
        )  # fmt: skip
        axes.plot(
            [place - 0.35, place + 0.35], [uniform] * 2, color=INK, linewidth=1.4,
            label=None if named else "a head that looks at all equally",
        )  # fmt: skip
        named.add(kind)
    names = [layer.title.split(" (")[0].replace(", ", "\n") for layer in layers]
    names = [name.replace("tokens to token", "t2t") for name in names]
    step = -(-len(names) // 12)
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=8)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean distance, pixels", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return figure
