# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attention of every token of a layer, small enough to be part of a page.

Letters: T tokens of a grid, h heads, H, W sides of the grid, G groups of tokens that look at each
other, Q queries and N keys of a group.
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

__all__ = ["lay_on_map", "look_from", "make_point_layers"]

MOST_BYTES = 4 * 2**20
"""Weights of all layers together, one byte each."""

FEWEST_KEYS = 16
"""Of a token; a layer for which there is less room is left out."""

_UNREACHABLE = 1e-30  # a pair that the shift mask keeps apart has less


def asking_rows(layer: AttentionLayer) -> Int[Tensor, " T"]:
    """Give for each token of the grid the row, among all G * Q, in which it asks."""
    numbers = layer.queries.flatten()  # G*Q
    known = numbers >= 0
    rows = torch.empty(int(known.sum()), dtype=torch.long)
    rows[numbers[known]] = torch.arange(len(numbers))[known]
    if layer.pooled == 1:
        return rows
    down, across = (torch.arange(side) // layer.pooled for side in layer.grid)
    return rows.view(layer.query_grid)[down[:, None], across[None]].flatten()


def look_from(layer: AttentionLayer, row: int) -> Float[Tensor, "h N"]:
    """Give what one query takes of each key of its group, head by head.

    Args:
        layer: The layer.
        row: Which one, among all G * Q; those of `asking_rows`, or that of a class token.
    """
    group, query = divmod(row, layer.queries.shape[1])
    # A copy, or the whole of each head would be kept.
    return torch.stack([weights[group, query].clone() for weights in layer.attention_weights()])


def lay_on_map(
    layer: AttentionLayer, weights: Float[Tensor, "h N"], row: int
) -> Float[Tensor, "h H W"]:
    """Put weights where their keys lie in the image.

    Args:
        layer: The layer.
        weights: As `look_from` gives them.
        row: The same.

    Returns:
        Weights; NaN where nothing is looked at.
    """
    keys = layer.keys[row // layer.queries.shape[1]]
    found = torch.full((len(weights), layer.grid[0] * layer.grid[1]), torch.nan)
    inside = keys >= 0
    found[:, keys[inside]] = weights[:, inside]
    if layer.layout is not None and any(layer.layout.shift):
        found[found < _UNREACHABLE] = torch.nan
    return found.unflatten(1, layer.grid)


def make_point_layers(
    layers: Sequence[AttentionLayer], most_bytes: int = MOST_BYTES
) -> tuple[PointLayer, ...]:
    """Make tables for clicking: the mean over heads of each layer, and single heads if they fit.

    Where not even the means fit, each token keeps its largest weights only; so does a layer that
    would take more than an eighth of the room. A layer for which
    fewer than 16 keys a token would be left is left out.

    Args:
        layers: In order.
        most_bytes: Weights of all tables together.

    Returns:
        Tables in the order of the layers; heads follow their mean.
    """
    kept, with_heads = _plan(layers, most_bytes)
    tables = []
    for place, layer in enumerate(layers):
        if place not in kept:
            continue
        rows = asking_rows(layer)
        keys = layer.keys[rows // layer.queries.shape[1]].to(torch.int32)  # T, N
        shared = keys.numpy()
        title = f"{layer.title}, mean of {layer.num_heads} heads"
        title = layer.title if layer.num_heads == 1 else title
        weights = layer.mean_attention().flatten(0, 1)[rows]  # T, N
        if kept[place] < weights.shape[1]:
            weights, chosen = weights.topk(kept[place], dim=1)
            shared = keys.gather(1, chosen).numpy()
        tables.append(_make_table(layer, title, shared, weights))
        if place in with_heads:
            tables += [
                _make_table(layer, f"{layer.title}, head {head}", shared, each.flatten(0, 1)[rows])
                for head, each in enumerate(layer.attention_weights(), 1)
            ]
    return tuple(tables)


def _plan(layers: Sequence[AttentionLayer], most_bytes: int) -> tuple[dict[int, int], set[int]]:
    """Keys that each token of a layer keeps, and the layers whose heads are kept as well."""
    tokens = [layer.grid[0] * layer.grid[1] for layer in layers]
    whole = [count * layer.keys.shape[1] for count, layer in zip(tokens, layers, strict=True)]
    left, kept = most_bytes, {}
    most = max(most_bytes // 8, most_bytes // max(len(layers), 1))  # or one fine layer takes all
    waiting = sorted(range(len(layers)), key=lambda place: whole[place])
    for done, place in enumerate(waiting):
        num_keys = layers[place].keys.shape[1]
        share = min(most, left // (len(waiting) - done))
        count = min(num_keys, share // tokens[place])
        if count >= min(num_keys, FEWEST_KEYS):
            kept[place] = count
            left -= count * tokens[place]
    with_heads = set()
    for place in reversed(range(len(layers))):
        heads = layers[place].num_heads
        full = kept.get(place) == layers[place].keys.shape[1]
        if full and heads > 1 and whole[place] * heads <= left:
            with_heads.add(place)
            left -= whole[place] * heads
    return kept, with_heads


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
