# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attention tables of all tokens of a layer, compact enough to embed in the page.

Letters: T tokens of a grid, h heads, H, W rows and columns of the grid, G groups (windows) of
tokens that attend to each other, Q queries and N keys of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.explaining.explanation_figure import PointLayer
from muntin.explaining.layers import AttentionLayer
from muntin.shapes import Float, Int

__all__ = ["make_point_layers", "query_attention", "weights_to_map"]

MAX_BYTES = 4 * 2**20
"""Budget for the weights of all layers, one byte each."""

MIN_KEYS = 16
"""Keys per token below which a layer is omitted."""

_UNREACHABLE = 1e-30  # pairs that the shift mask separates have smaller weights


def query_rows(layer: AttentionLayer) -> Int[Tensor, " T"]:
    """Index of the query of each token of the grid, among all G * Q."""
    numbers = layer.queries.flatten()  # G*Q
    known = numbers >= 0
    rows = torch.empty(int(known.sum()), dtype=torch.long)
    rows[numbers[known]] = torch.arange(len(numbers))[known]
    if layer.pooled == 1:
        return rows
    down, across = (torch.arange(side) // layer.pooled for side in layer.grid)
    return rows.view(layer.query_grid)[down[:, None], across[None]].flatten()


def query_attention(layer: AttentionLayer, row: int) -> Float[Tensor, "h N"]:
    """Attention of one query to each key of its group, by head.

    Args:
        layer: The layer.
        row: Index of the query among all G * Q: from `query_rows`, or that of a class token.
    """
    group, query = divmod(row, layer.queries.shape[1])
    # Cloned: a view would keep the weights of the whole head alive.
    return torch.stack([weights[group, query].clone() for weights in layer.attention_weights()])


def weights_to_map(
    layer: AttentionLayer, weights: Float[Tensor, "h N"], row: int
) -> Float[Tensor, "h H W"]:
    """Scatter weights to the positions of their keys.

    Args:
        layer: The layer.
        weights: Result of `query_attention`.
        row: Index of the query, as for `query_attention`.

    Returns:
        Weights; NaN for tokens that the query cannot attend to.
    """
    keys = layer.keys[row // layer.queries.shape[1]]
    weight_map = torch.full((len(weights), layer.grid[0] * layer.grid[1]), torch.nan)
    inside = keys >= 0
    weight_map[:, keys[inside]] = weights[:, inside]
    if layer.layout is not None and any(layer.layout.shift):
        weight_map[weight_map < _UNREACHABLE] = torch.nan
    return weight_map.unflatten(1, layer.grid)


def make_point_layers(
    layers: Sequence[AttentionLayer], max_bytes: int = MAX_BYTES
) -> tuple[PointLayer, ...]:
    """Build the tables of the clickable maps: the mean over heads, and single heads if they fit.

    If the means exceed the budget, each token keeps its largest weights only; so does a layer that
    would take more than an eighth of the budget. Layers with fewer than `MIN_KEYS` remaining keys
    per token are omitted.

    Args:
        layers: Layers in execution order.
        max_bytes: Budget for the weights of all tables.

    Returns:
        Tables in the order of the layers; heads follow their mean.
    """
    included, with_heads = _plan(layers, max_bytes)
    tables = []
    for place, layer in enumerate(layers):
        if place not in included:
            continue
        rows = query_rows(layer)
        keys = layer.keys[rows // layer.queries.shape[1]].to(torch.int32)  # T, N
        shared = keys.numpy()
        title = f"{layer.title}, mean of {layer.num_heads} heads"
        title = layer.title if layer.num_heads == 1 else title
        weights = layer.mean_attention().flatten(0, 1)[rows]  # T, N
        if included[place] < weights.shape[1]:
            weights, chosen = weights.topk(included[place], dim=1)
            shared = keys.gather(1, chosen).numpy()
        tables.append(_make_table(layer, title, shared, weights))
        if place in with_heads:
            tables += [
                _make_table(layer, f"{layer.title}, head {head}", shared, each.flatten(0, 1)[rows])
                for head, each in enumerate(layer.attention_weights(), 1)
            ]
    return tuple(tables)


def _plan(layers: Sequence[AttentionLayer], max_bytes: int) -> tuple[dict[int, int], set[int]]:
    """Number of keys per token of each included layer, and the layers that include heads."""
    tokens = [layer.grid[0] * layer.grid[1] for layer in layers]
    whole = [count * layer.keys.shape[1] for count, layer in zip(tokens, layers, strict=True)]
    left, included = max_bytes, {}
    # Without a limit per layer, one layer with a fine grid would use up the budget.
    limit = max(max_bytes // 8, max_bytes // max(len(layers), 1))
    waiting = sorted(range(len(layers)), key=lambda place: whole[place])
    for done, place in enumerate(waiting):
        num_keys = layers[place].keys.shape[1]
        share = min(limit, left // (len(waiting) - done))
        count = min(num_keys, share // tokens[place])
        if count >= min(num_keys, MIN_KEYS):
            included[place] = count
            left -= count * tokens[place]
    with_heads = set()
    # The last layers first: their heads are the most specialised.
    for place in reversed(range(len(layers))):
        heads = layers[place].num_heads
        full = included.get(place) == layers[place].keys.shape[1]
        if full and heads > 1 and whole[place] * heads <= left:
            with_heads.add(place)
            left -= whole[place] * heads
    return included, with_heads


def _make_table(
    layer: AttentionLayer, title: str, keys: NDArray[np.int32], weights: Float[Tensor, "T N"]
) -> PointLayer:
    largest = weights.amax(dim=1, keepdim=True)
    return PointLayer(
        title=title,
        grid=layer.grid,
        covered=(float(layer.grid[0] * layer.stride), float(layer.grid[1] * layer.stride)),
        keys=keys,
        weights=(weights / largest * 255).round().to(torch.uint8).numpy(),
        largest=largest[:, 0].numpy(),
        elsewhere=layer.elsewhere,
    )
