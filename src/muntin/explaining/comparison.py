# SPDX-License-Identifier: Apache-2.0
"""Comparison of two models on the same images: similarity of layers, agreement of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from muntin.drawing.result_drawing import draw_result
from muntin.drawing.style import INK, PURPLE, VERMILION, clean_label
from muntin.errors import ConfigError, plural, shorten
from muntin.explaining import plotting as kit
from muntin.explaining.context import Context
from muntin.explaining.feature_maps import compare_layers
from muntin.explaining.figures import Result, Results, find_text, make_figure, make_missing
from muntin.ops.boxes import box_iou
from muntin.ops.similarity import MIN_EXAMPLES
from muntin.results import Detections, Labels, Poses, SemanticMap

MAX_LABELLED = 12
MAX_DRAWN = 4
_MEASURES = {
    Labels: "same_class",
    Detections: "same_boxes",
    SemanticMap: "same_pixels",
    Poses: "same_keypoints",
}


def show_comparison(first: Sequence[Context], second: Sequence[Context]) -> Results:
    """Compare two models, or two checkpoints of one model, on the same images in the same order."""
    _check_pairs(first, second)
    return [_show_layers(first, second), show_predictions(first, second)]


def _check_pairs(first: Sequence[Context], second: Sequence[Context]) -> None:
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


def _name_fresh(first: Sequence[Context], second: Sequence[Context]) -> str:
    """Names of the models with untrained weights."""
    return " and of ".join(side[0].name for side in (first, second) if not side[0].trained)


def _show_layers(first: Sequence[Context], second: Sequence[Context]) -> Result:
    if first[0].backbone is None or second[0].backbone is None:
        return make_missing("comparison-exported")
    compared = compare_layers(first, second)
    if compared is None:
        return make_missing("comparison-few", count=MIN_EXAMPLES)
    rows, columns, values, count = compared
    names, fresh = (first[0].name, second[0].name), _name_fresh(first, second)
    named: dict[str, Any] = {"first": names[0], "second": names[1]}
    return make_figure(
        "comparison-layers",
        _draw_layers(rows, columns, values, names),
        ("text", "untrained" if fresh else "trained", count < 100 and "noisy"),
        arrays={"cka": values.astype(np.float32)},
        facts={
            **named,
            "first_blocks": rows,
            "second_blocks": columns,
            "most_alike": [columns[place] for place in values.argmax(axis=1).tolist()],
            "mean_of_diagonal": float(np.diag(values).mean()) if rows == columns else None,
            "num_cells": count,
        },
        **named,
        count=count,
        images=plural(len(first), "image"),
        fresh=fresh,
    )


def _draw_layers(
    rows: Sequence[str], columns: Sequence[str], values: NDArray[np.float64], names: tuple[str, str]
) -> Figure:
    longest = max(len(rows), len(columns))
    side = max(0.27 if longest <= 24 else 6.4 / longest, min(0.5, 4.2 / longest))
    width = min(9.0, side * len(columns) + 2.2)
    figure, (axes,) = kit.start_plots(1, side * len(rows) + 1.2, width=width)
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=1)
    best = values.argmax(axis=1)
    axes.plot(
        best, range(len(rows)), linestyle="none", marker="o", markersize=min(9.0, 26 * side),
        markerfacecolor="none", markeredgecolor=VERMILION, markeredgewidth=1.6,
    )  # fmt: skip
    for labels, set_ticks in ((columns, axes.set_xticks), (rows, axes.set_yticks)):
        step = -(-len(labels) // 24)
        set_ticks(range(0, len(labels), step), labels[::step], fontsize=8)
    axes.tick_params(axis="x", rotation=90)
    across = kit.truncate(f"blocks of {names[1]}", figure.get_figwidth() - 1.0)
    down = kit.truncate(f"blocks of {names[0]}", figure.get_figheight() - 0.2)
    axes.set_xlabel(across, fontsize=9, color=INK)
    axes.set_ylabel(down, fontsize=9, color=INK)
    kit.add_colour_bar(figure, image, axes, "linear CKA", fraction=0.05)
    return figure


def show_predictions(first: Sequence[Context], second: Sequence[Context]) -> Result:
    """Show the predictions of two models side by side, worst agreement first."""
    names, fresh = (first[0].name, second[0].name), _name_fresh(first, second)
    named: dict[str, Any] = {"first": names[0], "second": names[1]}
    predictions = [(a.prediction, b.prediction) for a, b in zip(first, second, strict=True)]
    # Keypoints have names of their own; of all others, the classes of the model are compared.
    lists = [
        result.keypoint_names if isinstance(result, Poses) else side[0].classes.names
        for side, result in zip((first, second), predictions[0], strict=True)
    ]
    shared = _share_names(*lists)
    if not shared:
        known = [shorten(one, limit=3) for one in lists]
        fields = {"first_names": known[0], "second_names": known[1]}
        return make_missing("comparison-no-class", **named, **fields)
    shares = np.array([agreement(*pair) for pair in predictions])
    order = np.argsort(shares, kind="stable").tolist()
    thresholds = {f"{one.threshold:.2f}" for one in predictions[0]}
    kind, differ = type(predictions[0][0]), int((shares < 1).sum())
    worst = order[: MAX_LABELLED if kind is Labels else MAX_DRAWN]
    partly = set(lists[0]) != set(lists[1])
    draw = _draw_labels if kind is Labels else _draw_pairs
    entry = "comparison-answers"
    return make_figure(
        entry,
        draw([first[i] for i in worst], [predictions[i] for i in worst], shares[worst], names),
        (
            "text",
            "partly" if partly else differ > 0 and not fresh and "check",
            bool(fresh) and "untrained",
        ),
        arrays={"agreement": shares},
        facts={
            **named,
            "agreement": float(shares.mean()),
            "num_images": len(shares),
            "differ": [first[i].path or f"image {i}" for i in order if shares[i] < 1],
        },
        **named,
        share=shares.mean(),
        measure=find_text(entry, _MEASURES[kind], threshold=" or ".join(sorted(thresholds))),
        differ=differ,
        images=plural(len(first), "image"),
        shown="" if len(worst) == len(shares) else find_text(entry, "shown", worst=len(worst)),
        shared=len(shared),
        first_classes=len(lists[0]),
        second_classes=len(lists[1]),
        fresh=fresh,
    )


def _share_names(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Names that two models share; none if the lists differ and one is just numbers."""
    if first == second:
        return tuple(first) or ("numbers",)
    numbered = (tuple(f"class {k}" for k in range(len(names))) for names in (first, second))
    if any(tuple(names) == plain for names, plain in zip((first, second), numbered, strict=True)):
        return ()
    return tuple(name for name in first if name in set(second))


@singledispatch
def agreement(first: object, second: object) -> float:
    """Agreement of two results of one type for one image, in [0, 1].

    Classes and keypoints are compared by name, so their numbering may differ.
    """
    message = f"results must be of muntin.results, got {type(first).__name__}."
    raise TypeError(message)


@agreement.register
def _(first: Labels, second: Labels) -> float:
    return float(first.best == second.best)


@agreement.register
def _(first: Detections, second: Detections) -> float:
    first, second = first.above(first.threshold), second.above(second.threshold)
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
    return first.labels != table[second.labels]


def _draw_labels(
    contexts: Sequence[Context],
    predictions: Sequence[tuple[Labels, Labels]],
    shares: NDArray[np.float64],
    names: tuple[str, str],
) -> Figure:
    """Each image under both labels, framed if they differ."""
    columns = min(4, max(len(contexts), 2))
    ratio = max(min(kit.panel_ratio(context.size), 1.4) for context in contexts)
    rows = -(-len(contexts) // columns)
    figure, axes = kit.panels(rows, columns, ratio=ratio, width=2.2 * columns, extra=0.5)
    figure.set_figheight(figure.get_figheight() + 0.5)
    room = figure.get_figwidth() - 0.8
    above, below = (kit.truncate(name, room) for name in names)
    figure.suptitle(f"above: {above}\nbelow: {below}", fontsize=9, color=INK)
    for panel, context, pair, share in zip(axes.flat, contexts, predictions, shares, strict=False):
        labels = [
            f"{clean_label(one.best, int(one.class_ids[0]), max_length=20)} {one.scores[0]:.2f}"
            for one in pair
        ]
        kit.set_panel(panel, context.pixels, "\n".join(labels))
        if share < 1:
            kit.mark_box(panel, (0, 0, context.size[1], context.size[0]), PURPLE)
    return figure


def _draw_pairs(
    contexts: Sequence[Context],
    predictions: Sequence[tuple[Any, Any]],
    shares: NDArray[np.float64],
    names: tuple[str, str],
) -> Figure:
    """Both predictions, side by side; for maps, a third panel of differences."""
    drawn = [
        [np.asarray(draw_result(context.pixels, one)) for one in pair]
        for context, pair in zip(contexts, predictions, strict=True)
    ]
    maps = isinstance(predictions[0][0], SemanticMap)
    ratio = max(one.shape[0] / one.shape[1] for row in drawn for one in row)
    columns = 3 if maps else 2
    figure, lines = kit.panels(len(contexts), columns, ratio=min(ratio, 1.6))
    titles = [kit.truncate(name, figure.get_figwidth() / columns - 0.1) for name in names]
    for line, row, context, pair, share in zip(
        lines, drawn, contexts, predictions, shares, strict=True
    ):
        for panel, image, title in zip(line, row, titles, strict=False):
            kit.set_panel(panel, image, title)
        if maps:
            grey = np.repeat(context.pixels.mean(axis=2, keepdims=True), 3, axis=2) / 255
            differing = _differing(*pair)[..., None]
            image = np.where(differing, np.array([0.84, 0.37, 0.0]), 0.4 + 0.6 * grey)
            kit.set_panel(line[2], image, f"where they differ: {100 * (1 - share):.1f} %")
    return figure
