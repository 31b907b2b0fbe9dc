# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Who looks at whom: attention from a point and from the class token, and what follows from it.

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
from muntin.explaining.point_layers import asking_rows, lay_on_map, look_from, make_point_layers
from muntin.explaining.token_lookup import cell_at, find_point, token_at
from muntin.explaining.token_plotting import blend, input_image, note_on_weights, panel_ratio
from muntin.shapes import Float

__all__ = ["show_attention"]

_COLUMNS = 5
_HEAD_COLUMNS = 8
_MAX_LAYERS = 14
_MAX_HEADS = 24
_TOLD = 0.005
_EVEN = 0.6
"""Smallest weight as a part of the largest from which on panels look alike."""

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
class Look:
    """What one token of a layer takes of the others.

    Attributes:
        layer: The layer.
        maps: NaN where nothing is looked at.
        elsewhere: Share, mean of the heads, that goes to padding and to tokens without a place.
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
    """Show who looks at whom.

    Args:
        context: Looked from its `point`.
        max_pairs: Pairs of tokens up to which a layer is shown.

    Returns:
        Attention from the point in every layer (with tables for clicking) and in single heads,
        attention from the class token, rollout, and mean attention distances, each as far as the
        network has it.

    Raises:
        ShapeError: The backbone refuses this height and width.
    """
    title = "Attention maps"
    if context.backbone is None:
        reason = (
            "An exported file holds no attention to look at: its engine runs one graph and gives "
            "its output. Explain the run that it was exported from; what decided can be seen here."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    layers = trace(context.backbone, context.images)
    if not layers:
        reason = (
            f"{context.name} has no attention layers of a kind that can be read (ViT, Swin, Hiera, "
            f"T2T-ViT; of timm, ViT and Swin V1). What decided and what the maps hold can be seen."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    small = [layer for layer in layers if layer.num_pairs <= max_pairs]
    shown: list[ExplanationFigure | MissingFigure] = []
    if small:
        shown += [*_show_point(context, small), *_show_class_token(context, small)]
        shown += show_rollout(context, layers, find_point(context))
        shown += show_distances(context, small)
    if len(small) < len(layers):
        left_out = ", ".join(layer.title for layer in layers if layer not in small)
        reason = f"Too many tokens at this size: {left_out}. A smaller image shows them."
        shown.append(MissingFigure(section="attention", title=title, reason=reason))
    return shown


def _look(layer: AttentionLayer, row: int) -> Look:
    weights = look_from(layer, row)
    away = layer.keys[row // layer.queries.shape[1]] < 0
    return Look(
        layer=layer,
        maps=lay_on_map(layer, weights, row),
        elsewhere=float(weights[:, away].sum(dim=1).mean()),
    )


def _show_point(
    context: Context, layers: Sequence[AttentionLayer]
) -> list[ExplanationFigure | MissingFigure]:
    point = find_point(context)
    rows = [int(asking_rows(layer)[token_at(layer, point)]) for layer in layers]
    looks = [_look(layer, row) for layer, row in zip(layers, rows, strict=True)]
    text = (
        "Each image shows one layer: how much the marked token takes of every other, mean "
        "over the heads. Bright is much; the largest weight is written above, and all weights of "
        "a token sum to 1. "
    )
    if any(layer.layout is not None for layer in layers):
        text += "Where the image stays pale the token cannot look: windows end there. "
    if any(layer.layout is not None and any(layer.layout.shift) for layer in layers):
        text += (
            "Windows of shifted blocks are put back to where they lie in the image; at its "
            "border they are cut, because tokens that the shift brought from the other side are "
            "masked. "
        )
    if any(look.elsewhere >= _TOLD for look in looks):
        names = dict.fromkeys(layer.elsewhere for layer in layers if layer.elsewhere)
        text += f"Elsewhere is what goes to {' or '.join(names)}. "
    text += _note_on_evenness(looks)
    text += "In the page, click any point of the image to look from there."
    formula, source = _FORMULAS[layers[-1].scores]
    arrays = {f"layer_{n:02}": look.maps.numpy() for n, look in enumerate(looks, 1)}
    facts = _facts(context, looks)
    facts["point"] = [round(value, 2) for value in point]
    return [
        ExplanationFigure(
            name="attention-point",
            section="attention",
            title="What a point looks at",
            text=text + note_on_weights(context),
            figure=_draw_layers(context, looks, point, "looked from here"),
            formula=formula,
            source=source,
            arrays=arrays,
            facts=facts,
            layers=make_point_layers(layers),
        ),
        ExplanationFigure(
            name="attention-point-heads",
            section="attention",
            title="What single heads look at from there",
            text=(
                "The same point, head by head, in some of the layers. Heads of one layer read "
                "different parts of the features: some look nearby, some at what is alike, some "
                "at nearly everything. Each image has its own scale." + note_on_weights(context)
            ),
            figure=_draw_heads(context, looks, point),
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
    title = "What the class token looks at"
    if not layers:
        read = (
            "its classifier reads the mean over the map"
            if context.task.dense is None
            else "its head reads the maps"
        )
        reason = (
            f"{context.name} has no class token: {read}. What a point looks at, and what decided, "
            f"can be seen."
        )
        return [MissingFigure(section="attention", title=title, reason=reason)]
    looks = [_look(layer, 0) for layer in layers]
    results: list[ExplanationFigure | MissingFigure] = []
    text = (
        "The class token has no place in the image; it collects what the classifier reads. Each "
        "image shows how much it takes of every patch in one layer, mean over the heads. What "
        "goes to itself and to others without a place is written as elsewhere. "
    )
    if len(layers[-1].prefix) > 1:
        text += f"Beside it stand: {', '.join(layers[-1].prefix[1:])}. "
    text += _note_on_evenness(looks)
    arrays = {f"layer_{n:02}": look.maps.numpy() for n, look in enumerate(looks, 1)}
    for name, heading, words, figure in (
        ("attention-class-token", title, text, _draw_layers(context, looks, None, "the image")),
        (
            "attention-class-token-heads",
            "What single heads look at from the class token",
            "The class token's attention, head by head, in some of the layers; the last row is "
            "closest to the answer. Each image has its own scale.",
            _draw_heads(context, looks, None),
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
                facts=_facts(context, looks),
            )
        )
    return results


def _note_on_evenness(looks: Sequence[Look]) -> str:
    """Say that the scale begins at 0 where that makes panels look alike."""
    means = [look.mean.numpy() for look in looks]
    even = sum(float(np.nanmin(one) / np.nanmax(one)) > _EVEN for one in means)
    if 2 * even < len(looks):
        return ""
    return (
        "Colours begin at 0, so layers that look at everything nearly alike, as most do here, are "
        "bright all over. "
    )


def _facts(context: Context, looks: Sequence[Look]) -> dict[str, object]:
    rows = [
        {
            "layer": look.layer.title,
            "array": f"layer_{number:02}",
            "heads": look.layer.num_heads,
            "grid": list(look.layer.grid),
            "stride": look.layer.stride,
            "elsewhere": round(look.elsewhere, 4),
        }
        for number, look in enumerate(looks, 1)
    ]
    return {"size": list(context.shown_size), "layers": rows}


def _spread(count: int, most: int) -> list[int]:
    """At most so many places, the first and the last among them, evenly between."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def _draw_layers(
    context: Context, looks: Sequence[Look], point: tuple[float, float] | None, name: str
) -> Figure:
    image = input_image(context)
    chosen = [looks[place] for place in _spread(len(looks), _MAX_LAYERS)]
    rows = -(-(len(chosen) + 1) // _COLUMNS)
    boxes, titles = [], [name]
    for look in chosen:
        weights = look.mean.numpy()
        box, factor = _enlarge(image, weights, look.layer.stride)
        words = f"{look.layer.title}\nlargest\u00a0{np.nanmax(weights):.2g}"
        if look.elsewhere >= _TOLD:
            words += f", elsewhere\u00a0{look.elsewhere:.0%}"
        boxes.append(box)
        titles.append(words + (f", {factor}\u00a0x\u00a0larger" if factor > 1 else ""))
    (name, *titles), extra = fit_titles(titles, _COLUMNS)
    image_grid = ImageGrid(rows, _COLUMNS, ratio=panel_ratio(context.shown_size), extra=extra)
    cell = None if point is None else cell_at(chosen[0].layer, point)
    image_grid.show(0, 0, image, name, mark=cell)
    for place, (look, box, words) in enumerate(zip(chosen, boxes, titles, strict=True), 1):
        weights = look.mean.numpy()
        _show_part(
            image_grid, divmod(place, _COLUMNS), image, weights, look.layer, box, point, words
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
    """Show weights over the part of an image inside a box: left, top, right, bottom."""
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
    """The part of an image around a small window, in pixels, and how much larger it is shown."""
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
    context: Context, looks: Sequence[Look], point: tuple[float, float] | None
) -> Figure:
    image = input_image(context)
    parts = [
        (looks[place], first)
        for place in _choose_heads(looks)
        for first in range(0, min(looks[place].layer.num_heads, _MAX_HEADS), _HEAD_COLUMNS)
    ]
    image_grid = ImageGrid(
        len(parts), _HEAD_COLUMNS, ratio=panel_ratio(context.shown_size), extra=0.25
    )
    for row, (look, first) in enumerate(parts):
        maps = look.maps[first : min(first + _HEAD_COLUMNS, _MAX_HEADS)].numpy()
        box, _ = _enlarge(image, maps[0], look.layer.stride)
        for column, weights in enumerate(maps):
            _show_part(image_grid, (row, column), image, weights, look.layer, box, point)
        image_grid.name(row, f"{look.layer.title}, {name_heads(first, len(maps))}")
    return image_grid.figure


def _choose_heads(looks: Sequence[Look]) -> list[int]:
    """The last layer of each stage; of one stage, four layers."""
    stages = [look.layer.stage for look in looks]
    if len({*stages} - {0}) == 1:
        blocks = [place for place, stage in enumerate(stages) if stage]
        return [blocks[place] for place in _spread(len(blocks), 4)]
    ends = {stage: place for place, stage in enumerate(stages) if stage}
    return list(ends.values())
