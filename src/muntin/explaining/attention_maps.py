# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attention maps of a point and of the class token, by layer and by head.

Letters: h heads, H, W sides of a grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.explaining.attention_layers import (
    MAX_PAIRS,
    AttentionLayer,
    cell_at,
    make_point_layers,
    query_attention,
    query_rows,
    token_at,
    weights_to_map,
)
from muntin.explaining.attention_rollout import show_distances, show_rollout
from muntin.explaining.context import Context
from muntin.explaining.figures import (
    ExplanationFigure,
    MissingFigure,
    Results,
    find_text,
    make_figure,
    make_missing,
)
from muntin.explaining.plotting import (
    ImageGrid,
    blend_tokens,
    fit_titles,
    name_heads,
    panel_ratio,
    to_floats,
)
from muntin.shapes import Float

__all__ = ["show_attention"]

_COLUMNS = 5
_HEAD_COLUMNS = 8
_MAX_LAYERS = 14
_MAX_HEADS = 24
_MIN_ELSEWHERE = 0.005
_UNIFORM_RATIO = 0.6
"""Ratio of smallest to largest weight above which a map is nearly uniform."""

# Of the formula, by what the softmax is taken of.
_FORMULAS = {"product": "attention", "biased": "attention-biased", "cosine": "attention-cosine"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueryAttention:
    """Attention of one query token in one layer.

    Attributes:
        layer: The layer.
        maps: Weights on the grid of keys; NaN where the query cannot attend.
        elsewhere: Fraction of the attention, mean over heads, on padding and prefix tokens.
    """

    layer: AttentionLayer
    maps: Float[Tensor, "h H W"]
    elsewhere: float

    @property
    def mean(self) -> Float[Tensor, "H W"]:
        """Mean over the heads."""
        return self.maps.mean(dim=0)


def show_attention(context: Context, *, max_pairs: int = MAX_PAIRS) -> Results:
    """Show the attention of a point and of the class token, rollout and attention distances.

    Args:
        context: Its `query` is the point.
        max_pairs: Maximum number of token pairs of a layer; larger layers are skipped.

    Raises:
        ShapeError: The backbone does not accept this image size.
    """
    if context.backbone is None:
        return [make_missing("attention-exported")]
    layers = context.recording.layers
    if not layers:
        return [make_missing("attention-unsupported", name=context.name)]
    small = [layer for layer in layers if layer.num_pairs <= max_pairs]
    figures: list[ExplanationFigure | MissingFigure] = []
    if small:
        figures += [*_show_point(context, small), *_show_class_token(context, small)]
        figures += [show_rollout(context, layers), show_distances(context, small)]
    if len(small) < len(layers):
        skipped = ", ".join(layer.title for layer in layers if layer not in small)
        figures.append(make_missing("attention-large", layers=skipped))
    return figures


def _attention_of(layer: AttentionLayer, row: int) -> QueryAttention:
    weights = query_attention(layer, row)
    away = layer.keys[row // layer.queries.shape[1]] < 0
    return QueryAttention(
        layer=layer,
        maps=weights_to_map(layer, weights, row),
        elsewhere=float(weights[:, away].sum(dim=1).mean()),
    )


def _show_point(context: Context, layers: Sequence[AttentionLayer]) -> list[ExplanationFigure]:
    point = context.query
    rows = [int(query_rows(layer)[token_at(layer, point)]) for layer in layers]
    attentions = [_attention_of(layer, row) for layer, row in zip(layers, rows, strict=True)]
    layouts = [layer.layout for layer in layers if layer.layout is not None]
    parts = (
        "text",
        bool(layouts) and "windows",
        any(any(layout.shift) for layout in layouts) and "shifted",
        any(one.elsewhere >= _MIN_ELSEWHERE for one in attentions) and "elsewhere",
        _is_uniform(attentions) and "uniform",
        "click",
        context.fresh,
    )
    names = dict.fromkeys(layer.elsewhere for layer in layers if layer.elsewhere)
    shared: dict[str, Any] = {
        "formula": _FORMULAS[layers[-1].scores],
        "arrays": {f"layer_{n:02}": one.maps.numpy() for n, one in enumerate(attentions, 1)},
        "facts": {**_facts(context, attentions), "point": [round(value, 2) for value in point]},
    }
    return [
        make_figure(
            "attention-point",
            _draw_layers(context, attentions, point, "query"),
            parts,
            layers=make_point_layers(layers),
            elsewhere=" or ".join(names),
            **shared,
        ),
        make_figure(
            "attention-point-heads",
            _draw_heads(context, attentions, point),
            ("text", context.fresh),
            **shared,
        ),
    ]


def _show_class_token(context: Context, layers: Sequence[AttentionLayer]) -> Results:
    layers = [layer for layer in layers if layer.prefix]
    if not layers:
        entry = "attention-no-class-token"
        reads = "classifier" if context.task.dense is None else "dense"
        return [make_missing(entry, name=context.name, reads=find_text(f"missing.{entry}", reads))]
    attentions = [_attention_of(layer, 0) for layer in layers]
    others = ", ".join(layers[-1].prefix[1:])
    parts = (
        "text", bool(others) and "others", _is_uniform(attentions) and "uniform", context.fresh,
    )  # fmt: skip
    shared: dict[str, Any] = {
        "arrays": {f"layer_{n:02}": one.maps.numpy() for n, one in enumerate(attentions, 1)},
        "facts": _facts(context, attentions),
        "others": others,
    }
    name = "attention-class-token"
    return [
        make_figure(name, _draw_layers(context, attentions, None, "image"), parts, **shared),
        make_figure(
            f"{name}-heads", _draw_heads(context, attentions, None), ("text", context.fresh),
            **shared,
        ),
    ]  # fmt: skip


def _is_uniform(attentions: Sequence[QueryAttention]) -> bool:
    """Whether most maps are nearly uniform, so that their colours need a word."""
    means = [one.mean.numpy() for one in attentions]
    even = sum(float(np.nanmin(one) / np.nanmax(one)) > _UNIFORM_RATIO for one in means)
    return 2 * even >= len(attentions)


def _facts(context: Context, attentions: Sequence[QueryAttention]) -> dict[str, object]:
    rows = [
        {
            "layer": one.layer.title,
            "array": f"layer_{number:02}",
            "heads": one.layer.num_heads,
            "grid": list(one.layer.grid),
            "stride": one.layer.stride,
            "elsewhere": round(one.elsewhere, 4),
        }
        for number, one in enumerate(attentions, 1)
    ]
    return {"size": list(context.shown_size), "layers": rows}


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced indices, including the first and the last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, limit))})


def _draw_layers(
    context: Context,
    attentions: Sequence[QueryAttention],
    point: tuple[float, float] | None,
    name: str,
) -> Figure:
    image = to_floats(context.shown)
    chosen = [attentions[place] for place in _spread(len(attentions), _MAX_LAYERS)]
    rows = -(-(len(chosen) + 1) // _COLUMNS)
    boxes, titles = [], [name]
    for one in chosen:
        weights = one.mean.numpy()
        box, factor = _enlarge(image, weights, one.layer.stride)
        words = f"{one.layer.title}\nmax\u00a0{np.nanmax(weights):.2g}"
        if one.elsewhere >= _MIN_ELSEWHERE:
            words += f", elsewhere\u00a0{one.elsewhere:.0%}"
        boxes.append(box)
        titles.append(words + (f", {factor}\u00a0x\u00a0zoom" if factor > 1 else ""))
    (name, *titles), extra = fit_titles(titles, _COLUMNS)
    image_grid = ImageGrid(rows, _COLUMNS, ratio=panel_ratio(context.shown_size), extra=extra)
    cell = None if point is None else cell_at(chosen[0].layer, point)
    image_grid.show(0, 0, image, name, mark=cell)
    for place, (one, box, words) in enumerate(zip(chosen, boxes, titles, strict=True), 1):
        painted = blend_tokens(image, one.mean.numpy(), one.layer.stride)
        mark = None if point is None else cell_at(one.layer, point)
        image_grid.show(*divmod(place, _COLUMNS), painted, words, mark=mark, box=box)
    return image_grid.figure


def _enlarge(
    image: NDArray[np.float32], weights: NDArray[np.float32], stride: int
) -> tuple[tuple[int, int, int, int], int]:
    """The image region around a small window, in pixels, and its zoom factor."""
    size = image.shape[:2]
    places = np.isfinite(weights).nonzero()
    longest = max(int(np.ptp(each)) + 1 for each in places) * stride
    factor = max(1, min(size) // (3 * longest))
    starts, sides = [], []
    for each, length in zip(places, size, strict=True):
        side = length // factor
        middle = (int(each.min()) + int(each.max()) + 1) * stride // 2
        starts.append(min(max(middle - side // 2, 0), length - side))
        sides.append(side)
    (top, left), (high, wide) = starts, sides
    return (left, top, left + wide, top + high), factor


def _draw_heads(
    context: Context, attentions: Sequence[QueryAttention], point: tuple[float, float] | None
) -> Figure:
    image = to_floats(context.shown)
    parts = [
        (attentions[place], first)
        for place in _choose_heads(attentions)
        for first in range(0, min(attentions[place].layer.num_heads, _MAX_HEADS), _HEAD_COLUMNS)
    ]
    image_grid = ImageGrid(
        len(parts), _HEAD_COLUMNS, ratio=panel_ratio(context.shown_size), extra=0.25
    )
    for row, (one, first) in enumerate(parts):
        maps = one.maps[first : min(first + _HEAD_COLUMNS, _MAX_HEADS)].numpy()
        box, _ = _enlarge(image, maps[0], one.layer.stride)
        mark = None if point is None else cell_at(one.layer, point)
        for column, weights in enumerate(maps):
            painted = blend_tokens(image, weights, one.layer.stride)
            image_grid.show(row, column, painted, mark=mark, box=box)
        image_grid.name(row, f"{one.layer.title}, {name_heads(first, len(maps))}")
    return image_grid.figure


def _choose_heads(attentions: Sequence[QueryAttention]) -> list[int]:
    """Indices of the last layer of each stage; of four layers if there is one stage."""
    stages = [one.layer.stage for one in attentions]
    if len({*stages} - {0}) == 1:
        blocks = [place for place, stage in enumerate(stages) if stage]
        return [blocks[place] for place in _spread(len(blocks), 4)]
    ends = {stage: place for place, stage in enumerate(stages) if stage}
    return list(ends.values())
