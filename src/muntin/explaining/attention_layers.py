# SPDX-License-Identifier: Apache-2.0
"""One attention layer of a network: queries, keys, weights, token positions, and what they tell.

Letters: h heads, d width of a head, G groups (windows) of tokens that attend to each other,
Q queries and N keys of a group, T tokens of a grid, H, W its rows and columns, R rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.explaining.figures import PointLayer
from muntin.ops.windows import WindowLayout, shift_mask
from muntin.shapes import Bool, Float, Int, Size

MAX_PAIRS = 2**25
"""Maximum number of token pairs of one head that are computed at once; 128 MiB of weights."""

MAX_BYTES = 4 * 2**20
"""Budget for the weights of all layers, one byte each."""

MIN_KEYS = 16
"""Keys per token below which a layer is omitted."""

_UNREACHABLE = 1e-30  # pairs that the shift mask separates have smaller weights


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueriesAndKeys:
    """Queries, already multiplied by the scale, and keys of a layer.

    `bias` and `mask` are added to the scores. If `linear`, weights are the products divided by
    their sum (Performers) instead of the softmax of the scores.
    """

    queries: Float[Tensor, "h G Q d"]
    keys: Float[Tensor, "h G N d"]
    bias: Float[Tensor, "h Q N"] | None = None
    mask: Float[Tensor, "G Q N"] | None = None
    linear: bool = False

    def attention_weights(self, head: int) -> Float[Tensor, "G Q N"]:
        """Of one head; rows sum to 1."""
        # One head at a time: all heads together would take num_heads times MAX_PAIRS values.
        scores = self.queries[head] @ self.keys[head].transpose(1, 2)
        if self.linear:
            return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-30)
        if self.bias is not None:
            scores = scores + self.bias[head]
        if self.mask is not None:
            scores = scores + self.mask
        return scores.softmax(dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionLayer:
    """One attention layer and the positions of its tokens in the image.

    `stage` counts from 1, a plain ViT has one; 0 for layers before the blocks. `grid` is (rows,
    columns) of the keys, `stride` pixels apart; `pooled` is the query pooling of a side. `queries`
    and `keys` are row-major indices in their grids, -1 for padding and for the `prefix` (class and
    distillation tokens). The softmax takes `scores`: products or cosines, with bias and mask.
    """

    name: str
    title: str
    stage: int
    num_heads: int
    grid: Size
    stride: int
    queries: Int[Tensor, "G Q"]
    keys: Int[Tensor, "G N"]
    pair: Callable[[], QueriesAndKeys]
    prefix: tuple[str, ...] = ()
    layout: WindowLayout | None = None
    pooled: int = 1
    scores: Literal["product", "biased", "cosine"] = "product"

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is that of the class; registers alone belong to no output."""
        return self.prefix[:1] == ("class token",)

    @property
    def query_grid(self) -> Size:
        """(rows, columns)."""
        return self.grid[0] // self.pooled, self.grid[1] // self.pooled

    @property
    def num_pairs(self) -> int:
        """Number of token pairs that attend to each other, including padding."""
        return self.queries.numel() * self.keys.shape[1]

    @property
    def elsewhere(self) -> str:
        """Display name of the keys outside the image (prefix tokens, padding); may be empty."""
        names = list(self.prefix)
        if int((self.keys < 0).sum()) > len(self.prefix) * len(self.keys):
            names.append("padding")
        return " or ".join(name if name == "padding" else f"the {name}" for name in names)

    @property
    def is_global(self) -> bool:
        """Whether every token attends to every other."""
        return len(self.keys) == 1 and int((self.keys >= 0).sum()) == self.grid[0] * self.grid[1]

    @property
    def windows(self) -> WindowLayout:
        """The layout of a layer that has windows."""
        assert self.layout is not None, "a layer with windows"
        return self.layout

    @property
    def is_shifted(self) -> bool:
        """Whether it has windows that are shifted."""
        return self.layout is not None and any(self.layout.shift)

    def attention_weights(self) -> Iterator[Float[Tensor, "G Q N"]]:
        """Yield those of each head; rows (queries) sum to 1."""
        with torch.inference_mode(False), torch.no_grad():
            pairs = self.pair()
        for head in range(self.num_heads):
            with torch.inference_mode(False), torch.no_grad():
                weights = pairs.attention_weights(head)
            yield weights

    def mean_attention(self) -> Float[Tensor, "G Q N"]:
        """Average over the heads."""
        heads = self.attention_weights()
        total = next(heads)
        for weights in heads:
            total += weights
        return total / self.num_heads

    def token_at(self, point: tuple[float, float]) -> int:
        """Row-major index of the token that contains a point (x, y) in pixels of the input."""
        column = min(int(point[0] // self.stride), self.grid[1] - 1)
        row = min(int(point[1] // self.stride), self.grid[0] - 1)
        return row * self.grid[1] + column

    def cell_at(self, point: tuple[float, float]) -> tuple[float, float, float, float]:
        """Edges (left, top, right, bottom) in pixels of the query that contains a point.

        Tokens whose queries are pooled share one cell.
        """
        row, column = divmod(self.token_at(point), self.grid[1])
        row, column = row - row % self.pooled, column - column % self.pooled
        side = self.stride * self.pooled
        left, top = column * self.stride, row * self.stride
        return left, top, left + side, top + side

    def query_rows(self) -> Int[Tensor, " T"]:
        """Index of the query of each token of the grid, among all G * Q."""
        numbers = self.queries.flatten()  # G*Q
        known = numbers >= 0
        rows = torch.empty(int(known.sum()), dtype=torch.long)
        rows[numbers[known]] = torch.arange(len(numbers))[known]
        if self.pooled == 1:
            return rows
        down, across = (torch.arange(side) // self.pooled for side in self.grid)
        return rows.view(self.query_grid)[down[:, None], across[None]].flatten()

    def query_attention(self, row: int) -> Float[Tensor, "h N"]:
        """Attention of one query, by its row (see `query_rows`), to each key of its group."""
        group, query = divmod(row, self.queries.shape[1])
        # Cloned: a view would keep the weights of the whole head alive.
        return torch.stack([weights[group, query].clone() for weights in self.attention_weights()])

    def weights_to_map(self, weights: Float[Tensor, "h N"], row: int) -> Float[Tensor, "h H W"]:
        """Scatter what `query_attention` gave to the grid; NaN where the query cannot attend."""
        keys = self.keys[row // self.queries.shape[1]]
        weight_map = torch.full((len(weights), self.grid[0] * self.grid[1]), torch.nan)
        inside = keys >= 0
        weight_map[:, keys[inside]] = weights[:, inside]
        if self.is_shifted:
            weight_map[weight_map < _UNREACHABLE] = torch.nan
        return weight_map.unflatten(1, self.grid)

    def measure_distances(self) -> tuple[Float[Tensor, " h"], float]:
        """Mean distance of the keys of each head to their query, weighted by attention, in pixels.

        Also the value for uniform attention over all reachable keys.

        Source:
            Dosovitskiy et al. 2021 (arXiv 2010.11929), appendix D.7 and figure 7 (right). Differs:
            weights are renormalised without prefix tokens and padding.
        """
        is_query = self.queries >= 0  # G, Q
        away = torch.cdist(
            _centres(self.queries, self.query_grid, self.stride * self.pooled),
            _centres(self.keys, self.grid, self.stride),
        )  # G, Q, N
        reached = _reachable(self)
        means = []
        for weights in self.attention_weights():
            inside = weights * reached
            far = (inside * away).sum(dim=-1) / inside.sum(dim=-1).clamp(min=1e-12)  # G, Q
            means.append(far[is_query].mean())
        uniform = (reached * away).sum(dim=-1) / reached.sum(dim=-1).clamp(min=1)
        return torch.stack(means), float(uniform[is_query].mean())


def can_roll_out(layers: Sequence[AttentionLayer]) -> bool:
    """Whether all layers have the same tokens and global attention, as rollout assumes."""
    kinds = {(layer.grid, layer.prefix, layer.pooled) for layer in layers}
    return len(kinds) == 1 and all(layer.is_global for layer in layers)


def roll_out(layers: Sequence[AttentionLayer], start: Float[Tensor, "R T"]) -> Float[Tensor, "R T"]:
    """Propagate attention from the output tokens of `start` back to the patches.

    Residual paths are included; rows sum to 1.

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


def _reachable(layer: AttentionLayer) -> Bool[Tensor, "G Q N"]:
    """Pairs that the shift mask permits and whose key has a position in the image."""
    inside = (layer.keys >= 0)[:, None].expand(-1, layer.queries.shape[1], -1)
    mask = None if layer.layout is None else shift_mask(layer.layout)
    return inside if mask is None else inside & (mask == 0)


def _centres(numbers: Tensor, grid: Size, stride: int) -> Float[Tensor, "G n 2"]:
    """(row, column) of the centres of tokens in pixels."""
    places = torch.stack([numbers // grid[1], numbers % grid[1]], dim=-1)
    return (places.float() + 0.5) * stride


def make_point_layers(
    layers: Sequence[AttentionLayer], max_bytes: int = MAX_BYTES
) -> tuple[PointLayer, ...]:
    """Build the tables of the clickable map: the mean over heads, and single heads if they fit.

    If the means exceed the budget, each token keeps its largest weights only; so does a layer that
    would take more than an eighth of the budget. Layers with fewer than `MIN_KEYS` remaining keys
    per token are omitted. Tables are in the order of the layers; heads follow their mean.
    """
    included, with_heads = _plan(layers, max_bytes)
    tables = []
    for place, layer in enumerate(layers):
        if place not in included:
            continue
        rows = layer.query_rows()
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
