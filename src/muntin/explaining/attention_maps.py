# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Attention maps of a point and of the class token, by layer and by head.

Letters: h heads, H, W sides of a grid of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.explaining.attention_rollout import show_distances, show_rollout
from muntin.explaining.attention_trace import trace
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_grid import ImageGrid, fit_titles, name_heads
from muntin.explaining.layers import MAX_PAIRS, AttentionLayer
from muntin.explaining.point_layers import (
    make_point_layers,
    query_attention,
    query_rows,
    weights_to_map,
)
from muntin.explaining.token_lookup import cell_at, find_point, token_at
from muntin.explaining.token_plotting import blend, input_image, note_on_weights, panel_ratio
from muntin.shapes import Float

__all__ = ["show_attention"]

_COLUMNS = 5
_HEAD_COLUMNS = 8
_MAX_LAYERS = 14
_MAX_HEADS = 24
_MIN_ELSEWHERE = 0.005
_UNIFORM_RATIO = 0.6
"""Ratio of smallest to largest weight above which a map is nearly uniform."""

_PRODUCT = (
    "<mfrac><mrow><mi>Q</mi><msup><mi>K</mi><mi>T</mi></msup></mrow>"
    "<msqrt><mi>d</mi></msqrt></mfrac>"
)
_COSINE = (
    "<mfrac><mrow><mi>cos</mi><mo>(</mo><mi>Q</mi><mo>,</mo><mi>K</mi><mo>)</mo></mrow>"
    "<mi>&#964;</mi></mfrac>"
)
_ADDED = "<mo>+</mo><mi>B</mi><mo>+</mo><mi>M</mi>"


def _formula(scores: str) -> str:
    return (
        "<math display='block'><mrow><mi>A</mi><mo>=</mo><mi>softmax</mi><mo>(</mo>"
        f"{scores}<mo>)</mo></mrow></math>"
    )


_FORMULAS = {
    "product": (_formula(_PRODUCT), "Vaswani et al. 2017, arXiv 1706.03762, equation 1"),
    "biased": (_formula(_PRODUCT + _ADDED), "Liu et al. 2021, arXiv 2103.14030, equation 4"),
    "cosine": (_formula(_COSINE + _ADDED), "Liu et al. 2022, arXiv 2111.09883, equation 2"),
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueryAttention:
    """Attention of one query token in one layer.

    Attributes:
        layer: The layer.
        maps: Weights of each head on the grid of keys; NaN where the query cannot attend.
        elsewhere: Fraction of the attention, mean over heads, on padding and prefix tokens.
    """

    layer: AttentionLayer
    maps: Float[Tensor, "h H W"]
    elsewhere: float

    @property
    def mean(self) -> Float[Tensor, "H W"]:
        """Mean over the heads."""
        return self.maps.mean(dim=0)


def show_attention(
    context: Context, *, max_pairs: int = MAX_PAIRS
) -> list[ExplanationFigure | MissingFigure]:
    """Show the attention of a point and of the class token, rollout and attention distances.

    Args:
        context: Its `point` is the query.
        max_pairs: Maximum number of token pairs of a layer; larger layers are skipped.

    Returns:
        Attention of the point in every layer (with tables for the clickable image) and by head,
        attention of the class token, rollout, and mean attention distances, as far as the network
        has them.

    Raises:
        ShapeError: The backbone does not accept this image size.
    """
    title = "Attention maps"
    if context.backbone is None:
        reason = (
            "An exported file does not expose its attention weights. Explain the run that it was "
            "exported from; attribution by occlusion is available here."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    layers = trace(context.backbone, context.images)
    if not layers:
        reason = (
            f"{context.name} has no supported attention layers (ViT, Swin, Hiera, T2T-ViT; from "
            f"timm, ViT and Swin V1). Attribution and feature maps are available."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    small = [layer for layer in layers if layer.num_pairs <= max_pairs]
    figures: list[ExplanationFigure | MissingFigure] = []
    if small:
        figures += [*_show_point(context, small), *_show_class_token(context, small)]
        figures += show_rollout(context, layers, find_point(context))
        figures += show_distances(context, small)
    if len(small) < len(layers):
        skipped = ", ".join(layer.title for layer in layers if layer not in small)
        reason = f"Too many tokens at this image size: {skipped}. Use a smaller image to see them."
        figures.append(MissingFigure(section="attention", title=title, reason=reason))
    return figures


def _attention_of(layer: AttentionLayer, row: int) -> QueryAttention:
    weights = query_attention(layer, row)
    away = layer.keys[row // layer.queries.shape[1]] < 0
    return QueryAttention(
        layer=layer,
        maps=weights_to_map(layer, weights, row),
        elsewhere=float(weights[:, away].sum(dim=1).mean()),
    )


def _show_point(
    context: Context, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    point = find_point(context)
    rows = [int(query_rows(layer)[token_at(layer, point)]) for layer in layers]
    attentions = [_attention_of(layer, row) for layer, row in zip(layers, rows, strict=True)]
    text = (
        "Each panel shows the attention of the marked token in one layer, averaged over the "
        "heads. Brighter means more attention; the maximum weight is given in the title, and the "
        "weights of a token sum to 1. "
    )
    if any(layer.layout is not None for layer in layers):
        text += "Pale areas are outside the window of the token, which cannot attend to them. "
    if any(layer.layout is not None and any(layer.layout.shift) for layer in layers):
        text += (
            "Windows of shifted blocks are drawn at their position in the image; they are cut at "
            "its border, because tokens that the cyclic shift moved from the opposite side are "
            "masked. "
        )
    if any(one.elsewhere >= _MIN_ELSEWHERE for one in attentions):
        names = dict.fromkeys(layer.elsewhere for layer in layers if layer.elsewhere)
        text += f"Elsewhere: attention on {' or '.join(names)}. "
    text += _note_on_uniformity(attentions)
    text += "On the page, click the image to choose another query."
    formula, source = _FORMULAS[layers[-1].scores]
    arrays = {f"layer_{n:02}": one.maps.numpy() for n, one in enumerate(attentions, 1)}
    facts = _facts(context, attentions)
    facts["point"] = [round(value, 2) for value in point]
    return [
        ExplanationFigure(
            name="attention-point",
            section="attention",
            title="Attention of a point",
            text=text + note_on_weights(context),
            figure=_draw_layers(context, attentions, point, "query"),
            formula=formula,
            source=source,
            arrays=arrays,
            facts=facts,
            layers=make_point_layers(layers),
        ),
        ExplanationFigure(
            name="attention-point-heads",
            section="attention",
            title="Attention of a point, by head",
            text=(
                "The same query, head by head, in some of the layers. Heads of one layer "
                "specialise: some attend locally, some to similar features, some almost "
                "uniformly. Each panel has its own scale." + note_on_weights(context)
            ),
            figure=_draw_heads(context, attentions, point),
            formula=formula,
            source=source,
            arrays=arrays,
            facts=facts,
        ),
    ]


def _show_class_token(
    context: Context, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    layers = [layer for layer in layers if layer.prefix]
    title = "Attention of the class token"
    if not layers:
        read = (
            "its classifier reads the mean of the feature map"
            if context.task.dense is None
            else "its head reads the feature maps"
        )
        reason = (
            f"{context.name} has no class token: {read}. The attention of a point and attribution "
            f"are available."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    attentions = [_attention_of(layer, 0) for layer in layers]
    results: list[ExplanationFigure | MissingFigure] = []
    text = (
        "The class token has no position in the image; it aggregates what the classifier reads. "
        "Each panel shows its attention to the patches in one layer, averaged over the heads. "
        "Elsewhere: attention on itself and on other prefix tokens. "
    )
    if len(layers[-1].prefix) > 1:
        text += f"Other prefix tokens: {', '.join(layers[-1].prefix[1:])}. "
    text += _note_on_uniformity(attentions)
    arrays = {f"layer_{n:02}": one.maps.numpy() for n, one in enumerate(attentions, 1)}
    for name, heading, words, figure in (
        ("attention-class-token", title, text, _draw_layers(context, attentions, None, "image")),
        (
            "attention-class-token-heads",
            "Attention of the class token, by head",
            "The attention of the class token, head by head, in some of the layers; the last row "
            "is closest to the output. Each panel has its own scale.",
            _draw_heads(context, attentions, None),
        ),
    ):
        results.append(
            ExplanationFigure(
                name=name,
                section="attention",
                title=heading,
                text=words.rstrip() + note_on_weights(context),
                figure=figure,
                formula=_FORMULAS["product"][0],
                source="Dosovitskiy et al. 2021, arXiv 2010.11929, appendix A",
                arrays=arrays,
                facts=_facts(context, attentions),
            )
        )
    return results


def _note_on_uniformity(attentions: Sequence[QueryAttention]) -> str:
    """A note on the colour scale, if most maps are nearly uniform."""
    means = [one.mean.numpy() for one in attentions]
    even = sum(float(np.nanmin(one) / np.nanmax(one)) > _UNIFORM_RATIO for one in means)
    if 2 * even < len(attentions):
        return ""
    return (
        "The colour scale starts at 0, so layers with nearly uniform attention, as most here, are "
        "bright everywhere. "
    )


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
    image = input_image(context)
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
        weights = one.mean.numpy()
        _show_part(
            image_grid, divmod(place, _COLUMNS), image, weights, one.layer, box, point, words
        )
    return image_grid.figure


def _show_part(
    image_grid: ImageGrid,
    place: tuple[int, int],
    image: NDArray[np.float32],
    weights: NDArray[np.float32],
    layer: AttentionLayer,
    box: tuple[int, int, int, int],
    point: tuple[float, float] | None,
    words: str = "",
) -> None:
    """Overlay weights on the region of an image inside a box (left, top, right, bottom)."""
    left, top, right, bottom = box
    painted = blend(image, weights, layer.stride)[top:bottom, left:right]
    mark = None
    if point is not None:
        cell = cell_at(layer, point)
        mark = (cell[0] - left, cell[1] - top, cell[2] - left, cell[3] - top)
    image_grid.show(*place, painted, words, mark=mark)


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
    image = input_image(context)
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
        for column, weights in enumerate(maps):
            _show_part(image_grid, (row, column), image, weights, one.layer, box, point)
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
