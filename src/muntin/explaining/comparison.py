# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Comparison of two models on the same images: similarity of layers, and of predictions."""

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
from muntin.explaining.prediction_comparison import show_prediction_agreement
from muntin.features import name_blocks
from muntin.ops.similarity import MIN_EXAMPLES, centred_gram, compare_grams
from muntin.shapes import Float, Size

__all__ = ["block_maps", "compare_layers", "show_comparison"]

MAX_CELLS = 8
"""Maximum side of the grid to which feature maps are pooled for the comparison."""

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
    """Compare two models, or two checkpoints of one model.

    Args:
        first: The images, opened for the first model.
        second: The same images in the same order, opened for the second model.

    Returns:
        Similarity of the layers, and predictions side by side, worst agreement first.

    Raises:
        ConfigError: The images differ or are empty, or the tasks differ.
    """
    _check_pairs(first, second)
    return [_show_layers(first, second), *show_prediction_agreement(first, second)]


def _check_pairs(first: Sequence[Context], second: Sequence[Context]) -> None:
    if not first or len(first) != len(second):
        message = (
            f"a comparison needs the same images for both models, and at least one, got "
            f"{len(first)} and {len(second)}."
        )
        raise ConfigError(message)
    for one, other in zip(first, second, strict=True):
        if not np.array_equal(one.pixels, other.pixels):
            message = (
                f"a comparison needs the same images for both models, got {one.path!r} and "
                f"{other.path!r}."
            )
            raise ConfigError(message)
    if first[0].task.name != second[0].task.name:
        message = (
            f"models must have the same task to be compared, got {first[0].task.name} and "
            f"{second[0].task.name}."
        )
        raise ConfigError(message)


def _show_layers(
    first: Sequence[Context], second: Sequence[Context]
) -> ExplanationFigure | MissingFigure:
    title = "Similarity of layers"
    names = (first[0].name, second[0].name)
    if first[0].backbone is None or second[0].backbone is None:
        reason = (
            "An exported file does not expose its layers. Predictions are compared; compare the "
            "exported runs to see the similarity of layers."
        )
        return MissingFigure(section="comparison", title=title, reason=reason)
    compared = compare_layers(first, second)
    if compared is None:
        reason = (
            f"CKA needs at least {MIN_EXAMPLES} feature map cells in all images together. Pass "
            f"more or larger images."
        )
        return MissingFigure(section="comparison", title=title, reason=reason)
    rows, columns, values, count = compared
    best = values.argmax(axis=1)
    mean = float(np.diag(values).mean()) if rows == columns else None
    text = (
        f"Linear CKA between the blocks of {names[0]} (rows) and of {names[1]} (columns), on "
        f"{count} feature map cells of {len(first)} image{'s' * (len(first) > 1)}: 1 = the same "
        f"features up to rotation and scale, 0 = unrelated features. Rings mark the block of "
        f"{names[1]} that is most similar to each block of {names[0]}."
    )
    fresh = [side[0].name for side in (first, second) if not side[0].trained]
    if fresh:
        text += (
            f" The weights of {' and of '.join(fresh)} are freshly initialised, so similarity "
            f"reflects the architectures and not what was learned."
        )
    else:
        text += (
            " Two training runs of one architecture are bright along the diagonal; dark cells on "
            "it mark layers that learned different features."
        )
    if count < 100:
        text += " Estimates from so few cells are noisy: compare more images."
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
        first: The images, opened for the first model.
        second: The same images, opened for the second model.

    Returns:
        Block names of both, the linear CKA of each pair, and the number of cells used; None if
        they are fewer than `MIN_EXAMPLES`.
    """
    per_side = min(MAX_CELLS, max(1, math.isqrt(MAX_EXAMPLES // len(first))))
    sides: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    for pair in zip(first, second, strict=True):
        layers = [block_maps(context) for context in pair]
        grids = [tuple(one.shape[1:]) for side in layers for one in side.values()]
        # Blocks of both models are pooled to one grid, so that rows of the Gram matrices match.
        high, wide = (min(per_side, *(sizes[axis] for sizes in grids)) for axis in (0, 1))
        for pooled, side in zip(sides, layers, strict=True):
            for name, one in side.items():
                cells = F.adaptive_avg_pool2d(one[None].float(), (high, wide))[0]
                pooled.setdefault(name, []).append(cells.flatten(1).T)
    count = sum(len(part) for part in next(iter(sides[0].values())))
    if count < MIN_EXAMPLES:
        return None
    grams = [
        {name: centred_gram(torch.cat(parts)) for name, parts in side.items()} for side in sides
    ]
    values = [[compare_grams(a, b) for b in grams[1].values()] for a in grams[0].values()]
    return [*grams[0]], [*grams[1]], np.array(values), count


def block_maps(context: Context) -> dict[str, Float[Tensor, "C H W"]]:
    """Compute the feature map after every block of a backbone.

    Args:
        context: The image and the model.

    Returns:
        Maps by block number in order of computation, such as "3.2" for the second block of the
        third stage. The maps that the backbone returns ("map 1", ...) if it has no blocks, or if
        its blocks reorder tokens.
    """
    backbone: Any = context.backbone
    blocks = dict(zip(backbone.blocks, _number_blocks(name_blocks(backbone)), strict=True))
    with torch.no_grad(), record(blocks) as outputs:
        maps = backbone(context.images)
    image = (context.images.shape[2], context.images.shape[3])
    grids = [(one.shape[2], one.shape[3]) for one in maps]
    found: dict[str, Tensor] = {}
    for module, output in outputs:
        as_map = _to_map(tensors_in(output)[0], image, grids)
        if as_map is not None:
            found[blocks[module]] = as_map
    # Flattened tokens may be permuted (Hiera's mask units). They are in raster order only if one
    # of them equals a map that the backbone returns.
    flat = any(tensors_in(output)[0].ndim == 3 for _, output in outputs)
    if not found or (
        flat and len(maps) > 1 and not any(_is_one_of(one[0], found.values()) for one in maps)
    ):
        return {f"map {number}": one[0] for number, one in enumerate(maps, 1)}
    return found


def _number_blocks(names: Sequence[str]) -> list[str]:
    """Numbers in the block names, from 1; a running count if these are not unique."""
    numbers = [[int(word) + 1 for word in name.split(".") if word.isdigit()] for name in names]
    labels = [".".join(map(str, one)) for one in numbers]
    return labels if len(set(labels)) == len(names) else [str(n + 1) for n in range(len(names))]


def _is_one_of(wanted: Tensor, layers: Iterable[Tensor]) -> bool:
    """Whether a map equals the output of a block, ignoring padding at the right and bottom."""
    high, wide = wanted.shape[1:]
    return any(torch.equal(one[:, :high, :wide], wanted) for one in layers)


def _to_map(tensor: Tensor, image: Size, grids: Sequence[Size]) -> Tensor | None:
    """(C, H, W) map of a block's output for one image, in the layout whose cells are squarest."""
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
