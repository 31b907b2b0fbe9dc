# SPDX-License-Identifier: Apache-2.0
"""Attention of a point and of the class token, by layer and by head; rollout and distances.

Letters: h heads, H, W sides of a grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.drawing.style import BLUE, GREEN, INK, VERMILION
from muntin.explaining import plotting as kit
from muntin.explaining.attention_layers import (
    MAX_PAIRS,
    AttentionLayer,
    can_roll_out,
    make_point_layers,
    roll_out,
)
from muntin.explaining.context import Context
from muntin.explaining.figures import Result, Results, find_text, make_figure, make_missing
from muntin.shapes import Float

_COLUMNS = 5
_MAX_LAYERS = 14
_MIN_ELSEWHERE = 0.005
_UNIFORM_RATIO = 0.6
"""Ratio of smallest to largest weight above which a map is nearly uniform."""

# Of the formula, by what the softmax is taken of.
_FORMULAS = {"product": "attention", "biased": "attention-biased", "cosine": "attention-cosine"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueryAttention:
    """Attention of one query token in one layer; NaN where it cannot attend.

    `elsewhere` is the fraction, mean over heads, on padding and prefix tokens; `cell` are the edges
    of the query (see `AttentionLayer.cell_at`), None for the class token.
    """

    layer: AttentionLayer
    maps: Float[Tensor, "h H W"]
    elsewhere: float
    cell: tuple[float, float, float, float] | None

    @property
    def mean(self) -> Float[Tensor, "H W"]:
        """Mean over the heads."""
        return self.maps.mean(dim=0)


def show_attention(context: Context, *, max_pairs: int = MAX_PAIRS) -> Results:
    """Show the attention of a point and of the class token, rollout and attention distances.

    Layers of more than `max_pairs` token pairs are skipped.
    """
    if context.backbone is None:
        return [make_missing("attention-exported")]
    layers = context.recording.layers
    if not layers:
        return [make_missing("attention-unsupported", name=context.name)]
    small = [layer for layer in layers if layer.num_pairs <= max_pairs]
    figures: list[Result] = []
    if small:
        figures += [*_show_point(context, small), *_show_class_token(context, small)]
        figures += [_show_rollout(context, layers), _show_distances(context, small)]
    if len(small) < len(layers):
        skipped = ", ".join(layer.title for layer in layers if layer not in small)
        figures.append(make_missing("attention-large", layers=skipped))
    return figures


def _attention_of(layer: AttentionLayer, point: tuple[float, float] | None) -> QueryAttention:
    """Attention of the token at a point (x, y) in pixels of the input, or of the class token."""
    row = 0 if point is None else int(layer.query_rows()[layer.token_at(point)])
    weights = layer.query_attention(row)
    away = layer.keys[row // layer.queries.shape[1]] < 0
    return QueryAttention(
        layer=layer,
        maps=layer.weights_to_map(weights, row),
        elsewhere=float(weights[:, away].sum(dim=1).mean()),
        cell=None if point is None else layer.cell_at(point),
    )


def _show_point(context: Context, layers: Sequence[AttentionLayer]) -> Results:
    point = context.query
    attentions = [_attention_of(layer, point) for layer in layers]
    parts = (
        "text",
        any(layer.layout is not None for layer in layers) and "windows",
        any(layer.is_shifted for layer in layers) and "shifted",
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
            _draw_layers(context, attentions),
            parts,
            layers=make_point_layers(layers),
            elsewhere=" or ".join(names),
            **shared,
        ),
        make_figure(
            "attention-point-heads",
            _draw_heads(context, attentions),
            ("text", context.fresh),
            **shared,
        ),
    ]


def _show_class_token(context: Context, layers: Sequence[AttentionLayer]) -> Results:
    layers = [layer for layer in layers if layer.has_class_token]
    if not layers:
        entry = "attention-no-class-token"
        reads = "classifier" if context.task.dense is None else "dense"
        return [make_missing(entry, name=context.name, reads=find_text(f"missing.{entry}", reads))]
    attentions = [_attention_of(layer, None) for layer in layers]
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
        make_figure(name, _draw_layers(context, attentions), parts, **shared),
        make_figure(
            f"{name}-heads", _draw_heads(context, attentions), ("text", context.fresh), **shared
        ),
    ]


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


def _draw_layers(context: Context, attentions: Sequence[QueryAttention]) -> Figure:
    image = kit.to_floats(context.shown)
    chosen = [attentions[place] for place in kit.spread(len(attentions), _MAX_LAYERS)]
    rows = -(-(len(chosen) + 1) // _COLUMNS)
    boxes, titles = [], ["image" if chosen[0].cell is None else "query"]
    for one in chosen:
        weights = one.mean.numpy()
        box, factor = _enlarge(image, weights, one.layer.stride)
        words = f"{one.layer.title}\nmax\u00a0{np.nanmax(weights):.2g}"
        if one.elsewhere >= _MIN_ELSEWHERE:
            words += f", elsewhere\u00a0{one.elsewhere:.0%}"
        boxes.append(box)
        titles.append(words + (f", {factor}\u00a0x\u00a0zoom" if factor > 1 else ""))
    (name, *titles), extra = kit.fit_titles(titles, _COLUMNS)
    image_grid = kit.ImageGrid(
        rows, _COLUMNS, ratio=kit.panel_ratio(context.shown_size), extra=extra
    )
    image_grid.show(0, 0, image, name, mark=chosen[0].cell)
    for place, (one, box, words) in enumerate(zip(chosen, boxes, titles, strict=True), 1):
        painted = kit.blend_tokens(image, one.mean.numpy(), one.layer.stride)
        image_grid.show(*divmod(place, _COLUMNS), painted, words, mark=one.cell, box=box)
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


def _draw_heads(context: Context, attentions: Sequence[QueryAttention]) -> Figure:
    image, layers = kit.to_floats(context.shown), []
    for one in (attentions[place] for place in _choose_heads(attentions)):
        maps, stride = one.maps.numpy(), one.layer.stride
        layers.append(
            kit.HeadMaps(
                title=one.layer.title,
                maps=maps,
                paint=partial(kit.blend_tokens, image, stride=stride),
                options={"mark": one.cell, "box": _enlarge(image, maps[0], stride)[0]},
            )
        )
    return kit.show_heads(layers, ratio=kit.panel_ratio(context.shown_size))


def _choose_heads(attentions: Sequence[QueryAttention]) -> list[int]:
    """Indices of the last layer of each stage; of four layers if there is one stage."""
    stages = [one.layer.stage for one in attentions]
    if len({*stages} - {0}) == 1:
        blocks = [place for place, stage in enumerate(stages) if stage]
        return [blocks[place] for place in kit.spread(len(blocks), 4)]
    ends = {stage: place for place, stage in enumerate(stages) if stage}
    return list(ends.values())


def _show_rollout(context: Context, layers: Sequence[AttentionLayer]) -> Result:
    layers = [layer for layer in layers if layer.stage]  # without tokens-to-token steps
    if not can_roll_out(layers):
        return make_missing("attention-no-rollout", name=context.name)
    if layers[0].num_pairs > MAX_PAIRS:
        return make_missing("attention-large-rollout")
    first, before = layers[0], len(layers[0].prefix)
    start = torch.zeros(2, first.queries.shape[1])
    if first.has_class_token:
        start[0, 0] = 1
    else:
        start[0, before:] = 1 / (start.shape[1] - before)
    start[1, before + first.token_at(context.query)] = 1
    rows = roll_out(layers, start)
    maps = rows[:, before:].unflatten(1, first.grid).numpy()
    last = (start @ layers[-1].mean_attention()[0])[:, before:].unflatten(1, first.grid).numpy()
    start_name = "the class token" if first.has_class_token else "the mean of all tokens"
    return make_figure(
        "attention-rollout",
        _draw_rollout(context, first, start_name, last, maps),
        ("text", context.fresh),
        arrays={"rollout": maps, "last_layer": last},
        facts={
            "rows": [start_name, "the point"],
            "kept by tokens without a place": rows[:, :before].sum(dim=1).tolist(),
        },
        begin=start_name,
    )


def _draw_rollout(
    context: Context,
    layer: AttentionLayer,
    start_name: str,
    last: np.ndarray,
    maps: np.ndarray,
) -> Figure:
    image = kit.to_floats(context.shown)
    image_grid = kit.ImageGrid(1, 5, ratio=kit.panel_ratio(context.shown_size), extra=0.4)
    cell = layer.cell_at(context.query)
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
        image_grid.show(0, column, kit.blend_tokens(image, weights, layer.stride), title, mark=mark)
    return image_grid.figure


def _show_distances(context: Context, layers: Sequence[AttentionLayer]) -> Result:
    measured = [layer.measure_distances() for layer in layers]
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
    figure, (axes,) = kit.start_plots(1, 3.6)
    kinds = {
        "global": (BLUE, "o"),
        "inside windows": (GREEN, "s"),
        "inside shifted windows": (VERMILION, "^"),
    }
    named: set[str] = set()
    for place, (layer, (distances, uniform)) in enumerate(zip(layers, measured, strict=True)):
        kind = "global" if layer.layout is None or layer.is_global else "inside windows"
        kind = "inside shifted windows" if layer.is_shifted else kind
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
    kit.label_axes(axes, y="mean distance, pixels")
    axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return figure
