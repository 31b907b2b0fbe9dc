# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attention rollout through all layers, and the mean attention distance of heads.

Letters: T tokens including prefix tokens, R rows, h heads, G groups (windows) of tokens that attend
to each other, Q queries and N keys of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from muntin.drawing.colours import BLUE, GREEN, INK, VERMILION
from muntin.explaining.attention_layers import MAX_PAIRS, AttentionLayer, cell_at, token_at
from muntin.explaining.context import Context
from muntin.explaining.figures import ExplanationFigure, MissingFigure, make_figure, make_missing
from muntin.explaining.plotting import ImageGrid, blend_tokens, label_axes, panel_ratio, to_floats
from muntin.ops.windows import shift_mask
from muntin.shapes import Bool, Float, Size

__all__ = ["can_roll_out", "measure_distances", "roll_out", "show_distances", "show_rollout"]


def can_roll_out(layers: Sequence[AttentionLayer]) -> bool:
    """Whether all layers have the same tokens and global attention, as rollout assumes."""
    kinds = {(layer.grid, layer.prefix, layer.pooled) for layer in layers}
    return len(kinds) == 1 and all(layer.is_global for layer in layers)


def roll_out(layers: Sequence[AttentionLayer], start: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
    """Propagate attention from the last layer back to the patches, residual paths included.

    Args:
        layers: All layers of a network, in order; see `can_roll_out`.
        start: Weights of the output tokens to start from; rows sum to 1.

    Returns:
        Weights of the input tokens of the first layer; rows sum to 1.

    Source:
        Abnar and Zuidema 2020 (arXiv 2005.00928), section 3, attention rollout: the product of
        (A + I) / 2 over the layers, A the mean over heads. Compared with the product of whole
        matrices in tests/explaining/test_attention_maps.py. Differs: only the rows in `start` are
        computed.
    """
    rows = start
    for layer in reversed(layers):
        rows = (rows + rows @ layer.mean_attention()[0]) / 2
    return rows


def measure_distances(layer: AttentionLayer) -> tuple[Float[Tensor, " h"], float]:
    """Mean attention distance of each head: distance of keys to their query, by attention weight.

    Args:
        layer: The layer. Padding and prefix tokens are excluded: the remaining weights are
            renormalised to sum to 1.

    Returns:
        Mean over the queries in pixels of the network's input, for each head; and the value for
        uniform attention over all reachable keys.

    Source:
        Dosovitskiy et al. 2021 (arXiv 2010.11929), appendix D.7 and figure 7 (right). Differs:
        weights are renormalised without the class token.
    """
    is_query = layer.queries >= 0  # G, Q
    away = torch.cdist(
        _centres(layer.queries, layer.query_grid, layer.stride * layer.pooled),
        _centres(layer.keys, layer.grid, layer.stride),
    )  # G, Q, N
    reached = _reachable(layer)
    means = []
    for weights in layer.attention_weights():
        inside = weights * reached
        far = (inside * away).sum(dim=-1) / inside.sum(dim=-1).clamp(min=1e-12)  # G, Q
        means.append(far[is_query].mean())
    uniform = (reached * away).sum(dim=-1) / reached.sum(dim=-1).clamp(min=1)
    return torch.stack(means), float(uniform[is_query].mean())


def _reachable(layer: AttentionLayer) -> Bool[Tensor, "G Q N"]:
    """Pairs that the shift mask permits and whose key has a position in the image."""
    inside = (layer.keys >= 0)[:, None].expand(-1, layer.queries.shape[1], -1)
    mask = None if layer.layout is None else shift_mask(layer.layout)
    return inside if mask is None else inside & (mask == 0)


def _centres(numbers: Tensor, grid: Size, stride: int) -> Float[Tensor, "G n 2"]:
    """(row, column) of the centres of tokens in pixels."""
    places = torch.stack([numbers // grid[1], numbers % grid[1]], dim=-1)
    return (places.float() + 0.5) * stride


def show_rollout(
    context: Context, layers: Sequence[AttentionLayer]
) -> ExplanationFigure | MissingFigure:
    """Show attention rollout of a network with global attention."""
    layers = [layer for layer in layers if layer.stage]  # without tokens-to-token steps
    if not can_roll_out(layers):
        return make_missing("attention-no-rollout", name=context.name)
    if layers[0].num_pairs > MAX_PAIRS:
        return make_missing("attention-large-rollout")
    first, before = layers[0], len(layers[0].prefix)
    start = torch.zeros(2, first.queries.shape[1])
    if before:
        start[0, 0] = 1
    else:
        start[0] = 1 / start.shape[1]
    start[1, before + token_at(first, context.query)] = 1
    rows = roll_out(layers, start)
    maps = rows[:, before:].unflatten(1, first.grid).numpy()
    last = (start @ layers[-1].mean_attention()[0])[:, before:].unflatten(1, first.grid).numpy()
    start_name = "the class token" if before else "the mean of all tokens"
    return make_figure(
        "attention-rollout",
        _draw_rollout(context, first, start_name, last, maps),
        ("text", context.fresh),
        arrays={"rollout": maps, "last_layer": last},
        facts={
            "rows": [start_name, "the point"],
            "kept by tokens without a place": rows[:, :before].sum(dim=1).tolist(),
        },
        start=start_name,
    )


def _draw_rollout(
    context: Context,
    layer: AttentionLayer,
    start_name: str,
    last: np.ndarray,
    maps: np.ndarray,
) -> Figure:
    image = to_floats(context.shown)
    image_grid = ImageGrid(1, 5, ratio=panel_ratio(context.shown_size), extra=0.4)
    cell = cell_at(layer, context.query)
    image_grid.show(0, 0, image, "the image", mark=cell)
    for column, (weights, title, mark) in enumerate(
        (
            (last[0], f"last layer, from\n{start_name}", None),
            (maps[0], f"rollout, from\n{start_name}", None),
            (last[1], "last layer, from\nthe point", cell),
            (maps[1], "rollout, from\nthe point", cell),
        ),
        1,
    ):
        image_grid.show(0, column, blend_tokens(image, weights, layer.stride), title, mark=mark)
    return image_grid.figure


def show_distances(context: Context, layers: Sequence[AttentionLayer]) -> ExplanationFigure:
    """Show the mean attention distance of each head of each layer."""
    measured = [measure_distances(layer) for layer in layers]
    windows = any(layer.layout is not None for layer in layers)
    return make_figure(
        "attention-distance",
        _draw_distances(layers, measured),
        ("text", "windows" if windows else "global", context.fresh),
        arrays={f"layer_{n:02}": row.numpy() for n, (row, _) in enumerate(measured, 1)},
        facts={
            "unit": "pixels",
            "layers": [
                {"layer": layer.title, "mean": float(row.mean()), "if equal": equal}
                for layer, (row, equal) in zip(layers, measured, strict=True)
            ],
        },
        height=context.shown_size[0],
        width=context.shown_size[1],
    )


def _draw_distances(
    layers: Sequence[AttentionLayer], measured: Sequence[tuple[Tensor, float]]
) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    kinds = {
        "global": (BLUE, "o"),
        "inside windows": (GREEN, "s"),
        "inside shifted windows": (VERMILION, "^"),
    }
    named: set[str] = set()
    for place, (layer, (distances, uniform)) in enumerate(zip(layers, measured, strict=True)):
        inside = "inside windows" if layer.layout is not None else "global"
        shifted = layer.layout is not None and any(layer.layout.shift)
        kind = "inside shifted windows" if shifted else "global" if layer.is_global else inside
        colour, marker = kinds[kind]
        axes.scatter(
            np.full(len(distances), place), distances.numpy(), s=22, c=colour, marker=marker,
            alpha=0.75, linewidths=0, label=None if kind in named else f"head, {kind}",
        )  # fmt: skip
        axes.plot(
            [place - 0.35, place + 0.35], [uniform] * 2, color=INK, linewidth=1.4,
            label=None if named else "uniform attention",
        )  # fmt: skip
        named.add(kind)
    names = [layer.title.split(" (")[0].replace(", ", "\n") for layer in layers]
    names = [name.replace("tokens to token", "t2t") for name in names]
    step = -(-len(names) // 12)
    axes.set_xticks(range(0, len(names), step), names[::step], fontsize=8)
    axes.set_ylim(bottom=0)
    label_axes(axes, y="mean distance, pixels")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return figure
