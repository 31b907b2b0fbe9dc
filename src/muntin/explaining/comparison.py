# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How two models differ: layer by layer, and in what they say of the same images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from muntin.errors import ConfigError
from muntin.explaining.activation_recorder import MAX_PREFIX, record, tensors_in
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_overlays import INK, truncate
from muntin.explaining.prediction_agreement import show_prediction_agreement
from muntin.features import name_blocks
from muntin.ops.similarity import FEWEST_EXAMPLES, centred_gram, compare_grams
from muntin.shapes import Float, Size

__all__ = ["block_maps", "compare_layers", "show_comparison"]

MAX_CELLS = 8
"""Along each side of the grid on which layers are compared."""

MAX_EXAMPLES = 1024
_FORMULA = (
    "<math display='block'><mrow><mi>CKA</mi><mo>(</mo><mi>X</mi><mo>,</mo><mi>Y</mi><mo>)</mo>"
    "<mo>=</mo><mfrac><mrow><mi>HSIC</mi><mo>(</mo><mi>X</mi><msup><mi>X</mi><mo>&#x22A4;</mo>"
    "</msup><mo>,</mo><mi>Y</mi><msup><mi>Y</mi><mo>&#x22A4;</mo></msup><mo>)</mo></mrow><msqrt>"
    "<mrow><mi>HSIC</mi><mo>(</mo><mi>X</mi><msup><mi>X</mi><mo>&#x22A4;</mo></msup><mo>,</mo>"
    "<mi>X</mi><msup><mi>X</mi><mo>&#x22A4;</mo></msup><mo>)</mo><mspace width='0.2em'/>"
    "<mi>HSIC</mi><mo>(</mo><mi>Y</mi><msup><mi>Y</mi><mo>&#x22A4;</mo></msup><mo>,</mo><mi>Y</mi>"
    "<msup><mi>Y</mi><mo>&#x22A4;</mo></msup><mo>)</mo></mrow></msqrt></mfrac></mrow></math>"
)


def show_comparison(
    first: Sequence[Context], second: Sequence[Context]
) -> list[ExplanationFigure | MissingFigure]:
    """Show where two models, or two checkpoints of one, differ.

    Args:
        first: The images as one model sees them.
        second: The same images, in the same order, as the other sees them.

    Returns:
        How alike their layers are, and what each says of the images, those on which they differ
        most first.

    Raises:
        ConfigError: The images are not the same, there are none, or the tasks are of two kinds.
    """
    _check_pairs(first, second)
    return [_show_layers(first, second), *show_prediction_agreement(first, second)]


def _check_pairs(first: Sequence[Context], second: Sequence[Context]) -> None:
    if not first or len(first) != len(second):
        message = (
            f"two models must be compared on the same images, at least one, got {len(first)} and "
            f"{len(second)}."
        )
        raise ConfigError(message)
    for one, other in zip(first, second, strict=True):
        if not np.array_equal(one.pixels, other.pixels):
            message = (
                f"two models must be compared on the same images, got {one.path!r} and "
                f"{other.path!r}, which differ."
            )
            raise ConfigError(message)
    if first[0].task.name != second[0].task.name:
        message = (
            f"two models must have one task to be compared, got {first[0].task.name} and "
            f"{second[0].task.name}."
        )
        raise ConfigError(message)


def _show_layers(
    first: Sequence[Context], second: Sequence[Context]
) -> ExplanationFigure | MissingFigure:
    title = "How alike the layers are"
    names = (first[0].name, second[0].name)
    if first[0].backbone is None or second[0].backbone is None:
        reason = (
            "An exported file has no layers to look into. What both say of the images is shown, "
            "and the layers can be compared between the runs that were exported."
        )
        return MissingFigure(section="comparison", title=title, reason=reason)
    compared = compare_layers(first, second)
    if compared is None:
        reason = (
            f"Layers are compared by their cells, of which there must be at least "
            f"{FEWEST_EXAMPLES} in all images together. Give more images, or larger ones."
        )
        return MissingFigure(section="comparison", title=title, reason=reason)
    rows, columns, values, count = compared
    best = values.argmax(axis=1)
    mean = float(np.diag(values).mean()) if rows == columns else None
    text = (
        f"Each square compares a block of {names[0]} (down) with a block of {names[1]} (across) by "
        f"linear CKA on {count} cells of {len(first)} image{'s' * (len(first) > 1)}: 1 = the "
        f"same features up to rotation and scale, 0 = nothing in common. The ring marks the block "
        f"of {names[1]} that is most like each block of {names[0]}."
    )
    fresh = [side[0].name for side in (first, second) if not side[0].trained]
    if fresh:
        text += (
            f" The weights of {' and of '.join(fresh)} are fresh: nothing was learnt there, so "
            f"differences do not tell what was learnt, and what is alike comes from how the models "
            f"are built."
        )
    else:
        text += (
            " Two trainings of one model are bright along the diagonal; where it darkens, they "
            "have learnt different things."
        )
    if count < 100:
        text += " So few cells say little: compare more images."
    return ExplanationFigure(
        name="comparison-layers",
        section="comparison",
        title=title,
        text=text,
        figure=_draw_layers(rows, columns, values, names),
        formula=_FORMULA,
        source=(
            "Kornblith et al. 2019, arXiv 1905.00414, equation 5, with the unbiased HSIC of Song "
            "et al. 2012"
        ),
        arrays={"cka": values.astype(np.float32)},
        facts={
            "first": names[0],
            "second": names[1],
            "first_blocks": rows,
            "second_blocks": columns,
            "most_alike": [columns[place] for place in best.tolist()],
            "mean_of_diagonal": mean,
            "num_cells": count,
        },
    )


def compare_layers(
    first: Sequence[Context], second: Sequence[Context]
) -> tuple[list[str], list[str], NDArray[np.float64], int] | None:
    """Compare every block of a model with every block of another.

    Args:
        first: Images as one model sees them.
        second: The same as the other sees them.

    Returns:
        The blocks of both, the linear CKA of each pair, and the number of cells that it was
        computed from; None where there are too few.
    """
    per_side = min(MAX_CELLS, max(1, math.isqrt(MAX_EXAMPLES // len(first))))
    sides: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    for pair in zip(first, second, strict=True):
        layers = [block_maps(context) for context in pair]
        grids = [tuple(one.shape[1:]) for side in layers for one in side.values()]
        high, wide = (min(per_side, *(sizes[axis] for sizes in grids)) for axis in (0, 1))
        for kept, side in zip(sides, layers, strict=True):
            for name, one in side.items():
                cells = F.adaptive_avg_pool2d(one[None].float(), (high, wide))[0]
                kept.setdefault(name, []).append(cells.flatten(1).T)
    count = sum(len(part) for part in next(iter(sides[0].values())))
    if count < FEWEST_EXAMPLES:
        return None
    grams = [
        {name: centred_gram(torch.cat(parts)) for name, parts in side.items()} for side in sides
    ]
    values = [[compare_grams(a, b) for b in grams[1].values()] for a in grams[0].values()]
    return [*grams[0]], [*grams[1]], np.array(values), count


def block_maps(context: Context) -> dict[str, Float[Tensor, "C H W"]]:
    """Give the map after every block of a backbone, in order.

    Args:
        context: Its backbone names its blocks.

    Returns:
        Maps by the numbers of the blocks, such as "3.2" for the second of the third stage; those
        that the backbone gives, "map 1" and so on, where it has no blocks, or where their tokens
        are in an order of their own.
    """
    backbone: Any = context.backbone
    blocks = dict(zip(backbone.blocks, _number_blocks(name_blocks(backbone)), strict=True))
    with torch.no_grad(), record(blocks) as outputs:
        maps = backbone(context.images)
    image = (context.images.shape[2], context.images.shape[3])
    grids = [(one.shape[2], one.shape[3]) for one in maps]
    found: dict[str, Tensor] = {}
    for module, output in outputs:
        seen = _see_as_map(tensors_in(output)[0], image, grids)
        if seen is not None:
            found[blocks[module]] = seen
    flat = any(tensors_in(output)[0].ndim == 3 for _, output in outputs)
    if not found or (
        flat and len(maps) > 1 and not any(_is_one_of(one[0], found.values()) for one in maps)
    ):
        return {f"map {number}": one[0] for number, one in enumerate(maps, 1)}
    return found


def _number_blocks(names: Sequence[str]) -> list[str]:
    """The numbers in the names of blocks, from 1; counted through where names have no such."""
    numbers = [[int(word) + 1 for word in name.split(".") if word.isdigit()] for name in names]
    labels = [".".join(map(str, one)) for one in numbers]
    return labels if len(set(labels)) == len(names) else [str(n + 1) for n in range(len(names))]


def _is_one_of(wanted: Tensor, layers: Iterable[Tensor]) -> bool:
    """Whether a map is what a block gave, but for padding at the right and at the bottom."""
    high, wide = wanted.shape[1:]
    return any(torch.equal(one[:, :high, :wide], wanted) for one in layers)


def _see_as_map(tensor: Tensor, image: Size, grids: Sequence[Size]) -> Tensor | None:
    """(C, H, W) of what a block gave for one image: the layout whose cells are square."""
    if tensor.ndim == 4:
        last, first = tensor[0].permute(2, 0, 1), tensor[0]
        return min((last, first), key=lambda one: _skew(image, (one.shape[1], one.shape[2])))
    if tensor.ndim == 3:
        for grid in grids:
            prefix = tensor.shape[1] - grid[0] * grid[1]
            if 0 <= prefix <= MAX_PREFIX:
                return tensor[0, prefix:].T.unflatten(1, grid)
    return None


def _skew(image: Size, grid: Size) -> float:
    return abs(math.log(image[0] * grid[1] / (image[1] * grid[0])))


def _draw_layers(
    rows: Sequence[str], columns: Sequence[str], values: NDArray[np.float64], names: tuple[str, str]
) -> Figure:
    side = 0.27 if max(len(rows), len(columns)) <= 24 else 6.4 / max(len(rows), len(columns))
    side = max(side, min(0.5, 4.2 / max(len(rows), len(columns))))
    figure = Figure(
        figsize=(min(9.0, side * len(columns) + 2.2), side * len(rows) + 1.2),
        layout="constrained",
        facecolor="white",
    )
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
    best = values.argmax(axis=1)
    axes.plot(
        best, range(len(rows)), linestyle="none", marker="o", markersize=min(9.0, 26 * side),
        markerfacecolor="none", markeredgecolor="#D55E00", markeredgewidth=1.6,
    )  # fmt: skip
    for labels, set_ticks in ((columns, axes.set_xticks), (rows, axes.set_yticks)):
        step = -(-len(labels) // 24)
        set_ticks(range(0, len(labels), step), labels[::step], fontsize=8)
    axes.tick_params(axis="x", rotation=90)
    across, down = (truncate(f"blocks of {name}", room) for name, room in zip(
        names[::-1], (figure.get_figwidth() - 1.0, figure.get_figheight() - 0.2), strict=True
    ))  # fmt: skip
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(down, fontsize=9, color=INK)
    bar = figure.colorbar(image, ax=axes, fraction=0.05)
    bar.set_label("linear CKA", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    return figure
