# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Agreement of the predictions of two models, by result type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from torchvision.ops import box_iou

from muntin.drawing.colours import colour_of
from muntin.drawing.fonts import clean_label
from muntin.errors import shorten
from muntin.explaining.context import Context
from muntin.explaining.explanation_figure import ExplanationFigure, MissingFigure
from muntin.explaining.image_overlays import INK, mark_box, truncate
from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Labels, Poses, SemanticMap

__all__ = ["agreement", "show_prediction_agreement"]

FIRST, SECOND = "#0072B2", "#D55E00"
"""Colours of the two models, from the Okabe-Ito palette."""

MAX_LABELLED = 12
MAX_DRAWN = 4
MAX_BOXES = 15
_AGREEMENT = {
    Labels: "fraction of images with the same top class",
    Detections: f"fraction of boxes with score >= {DEFAULT_SCORE_THRESHOLD} that match a box of "
    "the same class with IoU >= 0.5",
    SemanticMap: "fraction of pixels of the same class",
    Poses: "fraction of keypoints of the first instance that differ by at most 2 % of the image "
    "diagonal",
}


def show_prediction_agreement(
    first: Sequence[Context], second: Sequence[Context]
) -> list[ExplanationFigure | MissingFigure]:
    """Show the predictions of two models side by side, worst agreement first.

    Args:
        first: The images, opened for the first model.
        second: The same images, opened for the second model.

    Returns:
        One figure; a reason if the models share no class.
    """
    title = "Predictions of both models"
    names = (first[0].name, second[0].name)
    predictions = [
        (_predict(one), _predict(other)) for one, other in zip(first, second, strict=True)
    ]
    lists = [
        _list_names(side[0], one) for side, one in zip((first, second), predictions[0], strict=True)
    ]
    shared = _share_names(*lists)
    if not shared:
        reason = (
            f"The models share no class, so predictions cannot be compared: {names[0]} has "
            f"{shorten(lists[0], limit=3)}, {names[1]} has {shorten(lists[1], limit=3)}. The "
            f"similarity of layers does not depend on classes."
        )
        return [MissingFigure(section="comparison", title=title, reason=reason)]
    shares = np.array([agreement(*pair) for pair in predictions])
    order = np.argsort(shares, kind="stable").tolist()
    kind = type(predictions[0][0])
    worst = order[: MAX_LABELLED if kind is Labels else MAX_DRAWN]
    differ = int((shares < 1).sum())
    text = (
        f"Agreement of {names[0]} and {names[1]}: {shares.mean():.0%} ({_AGREEMENT[kind]}). "
        f"They differ on {differ} of {len(shares)} image{'s' * (len(shares) > 1)}"
        f"{'' if len(worst) == len(shares) else f'; the {len(worst)} worst are shown'}."
    )
    text += _describe_limits(first, second, lists, shared, differ=differ > 0)
    draw = _draw_labels if kind is Labels else _draw_pairs
    return [
        ExplanationFigure(
            name="comparison-answers",
            section="comparison",
            title=title,
            text=text,
            figure=draw(
                [first[i] for i in worst], [predictions[i] for i in worst], shares[worst], names
            ),
            arrays={"agreement": shares},
            facts={
                "first": names[0],
                "second": names[1],
                "agreement": float(shares.mean()),
                "num_images": len(shares),
                "differ": [first[i].path or f"image {i}" for i in order if shares[i] < 1],
            },
        )
    ]


def _list_names(context: Context, result: object) -> tuple[str, ...]:
    """Names of the classes or keypoints of a model."""
    return result.keypoint_names if isinstance(result, Poses) else context.classes.names


def _share_names(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Names that two models share; none if the lists differ and one is just numbered."""
    if first == second:
        return tuple(first) or ("numbers",)
    numbered = (tuple(f"class {k}" for k in range(len(names))) for names in (first, second))
    if any(tuple(names) == plain for names, plain in zip((first, second), numbered, strict=True)):
        return ()
    return tuple(name for name in first if name in set(second))


def _describe_limits(
    first: Sequence[Context],
    second: Sequence[Context],
    lists: Sequence[Sequence[str]],
    shared: Sequence[str],
    *,
    differ: bool,
) -> str:
    """Caveats of the comparison: partly shared classes, untrained weights."""
    fresh = [side[0].name for side in (first, second) if not side[0].trained]
    text = ""
    if set(lists[0]) != set(lists[1]):
        text += (
            f" They share {len(shared)} classes, of {len(lists[0])} and {len(lists[1])}; on other "
            f"classes they cannot agree."
        )
    elif differ and not fresh:
        text += " Check these first: at least one of the models is wrong on them."
    if fresh:
        text += (
            f" The weights of {' and of '.join(fresh)} are freshly initialised: predictions are at "
            f"chance level."
        )
    return text


def _predict(context: Context) -> Any:  # noqa: ANN401 (one of muntin.results)
    inputs = context.inputs()
    with torch.inference_mode():
        raw = context.task.predict(inputs)
        return context.task.decode(raw, inputs.metas, context.classes)[0]


@singledispatch
def agreement(first: object, second: object) -> float:
    """Agreement of two results for one image, in [0, 1].

    Classes and keypoints are compared by name, so their numbering may differ.

    Args:
        first: A result of `muntin.results`.
        second: A result of the same type.
    """
    message = f"results must be of muntin.results, got {type(first).__name__}."
    raise TypeError(message)


@agreement.register
def _(first: Labels, second: Labels) -> float:
    return float(first.best == second.best)


@agreement.register
def _(first: Detections, second: Detections) -> float:
    first, second = first.above(DEFAULT_SCORE_THRESHOLD), second.above(DEFAULT_SCORE_THRESHOLD)
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    overlaps = box_iou(torch.from_numpy(first.boxes), torch.from_numpy(second.boxes)).numpy()
    same = np.array([[a == b for b in second.class_names] for a in first.class_names])
    overlaps = np.where(same, overlaps, 0)
    # Greedy one-to-one matching, highest overlap first.
    pairs = 0
    while overlaps.size and overlaps.max() >= 0.5:
        row, column = np.unravel_index(int(overlaps.argmax()), overlaps.shape)
        overlaps = np.delete(np.delete(overlaps, row, axis=0), column, axis=1)
        pairs += 1
    return 2 * pairs / (len(first) + len(second))


@agreement.register
def _(first: SemanticMap, second: SemanticMap) -> float:
    return float((~_differing(first, second)).mean())


@agreement.register
def _(first: Poses, second: Poses) -> float:
    if not len(first) or not len(second):
        return float(len(first) == len(second))
    shared = [name for name in first.keypoint_names if name in second.keypoint_names]
    if not shared:
        return 0.0
    points = [
        pose.keypoints[0, [pose.keypoint_names.index(name) for name in shared], :2]
        for pose in (first, second)
    ]
    apart = np.linalg.norm(points[0] - points[1], axis=1)
    return float((apart <= 0.02 * np.hypot(*first.size)).mean())


def _differing(first: SemanticMap, second: SemanticMap) -> NDArray[np.bool_]:
    """Mask of the pixels whose class names differ."""
    numbers = {name: number for number, name in enumerate(first.class_names)}
    table = np.array([numbers.get(name, -1) for name in second.class_names], np.int16)
    differing: NDArray[np.bool_] = first.labels != table[second.labels]
    return differing


def _draw_labels(
    contexts: Sequence[Context],
    predictions: Sequence[tuple[Any, Any]],
    shares: NDArray[np.float64],
    names: tuple[str, str],
) -> Figure:
    """Each image above both labels, framed if they differ."""
    columns = min(4, max(len(contexts), 2))
    rows = -(-len(contexts) // columns)
    shape = max(min(context.size[0] / context.size[1], 1.4) for context in contexts)
    wide, side = 2.2, 2.0  # inches of a cell, and of the image in it
    high, head = side * shape + 0.62, 0.22 * 3 + 0.1
    figure = Figure(figsize=(wide * columns, high * rows + head), facecolor="white")
    size = (wide * columns, high * rows + head)
    for place, (context, pair, share) in enumerate(zip(contexts, predictions, shares, strict=True)):
        row, column = divmod(place, columns)
        bottom = (rows - 1 - row) * high + 0.5
        left = column * wide + (wide - side) / 2
        panel = figure.add_axes(
            (left / size[0], bottom / size[1], side / size[0], side * shape / size[1])
        )
        panel.imshow(context.pixels)
        panel.set_anchor("S")
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_linewidth(2.5)
        panel.spines[:].set_color("#cccccc" if share == 1 else "#CC79A7")
        for down, colour, labels in zip((0.09, 0.28), (FIRST, SECOND), pair, strict=True):
            name = clean_label(labels.best, int(labels.class_ids[0]), max_length=20)
            figure.text(
                (left + side / 2) / size[0], (bottom - down) / size[1],
                f"{name} {labels.scores[0]:.2f}", ha="center", va="top", fontsize=9, color=colour,
            )  # fmt: skip
    handles = [
        Patch(color=colour, label=truncate(name, size[0] - 0.8))
        for colour, name in zip((FIRST, SECOND), names, strict=True)
    ]
    if (shares < 1).any():
        handles.append(Patch(facecolor="none", edgecolor="#CC79A7", linewidth=2.5, label="differ"))
    figure.legend(handles=handles, loc="upper center", ncols=1, frameon=False, fontsize=9)
    return figure


def _draw_pairs(
    contexts: Sequence[Context],
    predictions: Sequence[tuple[Any, Any]],
    shares: NDArray[np.float64],
    names: tuple[str, str],
) -> Figure:
    """Both predictions drawn on the image, side by side; for maps, a third panel of differences."""
    maps = isinstance(predictions[0][0], SemanticMap)
    columns = 3 if maps else 2
    width = 2.95 if maps else 4.2
    shapes = [min(context.size[0] / context.size[1], 1.4) for context in contexts]
    figure = Figure(
        figsize=(width * columns, sum(width * shape + 0.35 for shape in shapes) + 0.5 * maps),
        layout="constrained", facecolor="white",
    )  # fmt: skip
    grid = figure.subplots(len(contexts), columns, squeeze=False, height_ratios=shapes)
    for row, context, pair, share in zip(grid, contexts, predictions, shares, strict=True):
        for panel, result, name in zip(row, pair, names, strict=False):
            _draw(result, panel, context.pixels)
            panel.set_title(truncate(name, width - 0.1), fontsize=9, color=INK)
        if maps:
            grey = np.repeat(context.pixels.mean(axis=2, keepdims=True), 3, axis=2) / 255
            differing = _differing(*pair)[..., None]
            row[2].imshow(np.where(differing, np.array([0.84, 0.37, 0.0]), 0.4 + 0.6 * grey))
            row[2].set_title(f"where they differ: {100 * (1 - share):.1f} %", fontsize=9, color=INK)
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
    if maps:
        _name_classes(figure, [result for pair in predictions for result in pair])
    return figure


def _name_classes(figure: Figure, results: Sequence[SemanticMap]) -> None:
    """Add a legend of the classes that occur."""
    numbers = {name: number for number, name in enumerate(results[0].class_names)}
    present = {one.class_names[k] for one in results for k in np.flatnonzero(one.counts).tolist()}
    named = sorted((numbers[name], name) for name in present if name in numbers)[:12]
    handles = [
        Patch(color=_colour(number), label=clean_label(name, number)) for number, name in named
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)


@singledispatch
def _draw(result: object, axes: Axes, pixels: NDArray[np.uint8]) -> None:
    message = f"result must be one of muntin.results, got {type(result).__name__}."
    raise TypeError(message)


@_draw.register
def _(result: Detections, axes: Axes, pixels: NDArray[np.uint8]) -> None:
    axes.imshow(pixels)
    sure = result.above(DEFAULT_SCORE_THRESHOLD)
    rows = zip(sure.boxes, sure.class_ids.tolist(), sure.scores, sure.class_names, strict=True)
    for box, class_id, score, name in list(rows)[:MAX_BOXES]:
        colour = _colour(class_id)
        mark_box(axes, box.tolist(), colour)
        axes.text(
            max(float(box[0]), 0.0), float(box[1]), f"{clean_label(name, class_id)} {score:.2f}",
            fontsize=8, color=INK, va="bottom", clip_on=True,
            bbox={"facecolor": "white", "edgecolor": colour, "pad": 1, "alpha": 0.85},
        )  # fmt: skip


@_draw.register
def _(result: SemanticMap, axes: Axes, pixels: NDArray[np.uint8]) -> None:
    colours = np.array([_colour(number) for number in range(len(result.class_names))])
    grey = pixels.mean(axis=2, keepdims=True) / 255
    axes.imshow(0.35 * grey + 0.65 * colours[result.labels])


@_draw.register
def _(result: Poses, axes: Axes, pixels: NDArray[np.uint8]) -> None:
    axes.imshow(pixels)
    for pose in result.keypoints[:MAX_BOXES]:
        for start, end in result.edges:
            ends = pose[[start, end]]
            axes.plot(ends[:, 0], ends[:, 1], color="white", linewidth=1.5)
        for number, (x, y, score) in enumerate(pose):
            axes.plot(
                x, y, marker="o", markersize=6, color=_colour(number), markeredgecolor="white",
                alpha=1.0 if score >= DEFAULT_SCORE_THRESHOLD else 0.4,
            )  # fmt: skip


def _colour(number: int) -> Any:  # noqa: ANN401 (red, green and blue from 0 to 1)
    return tuple(part / 255 for part in colour_of(number))
