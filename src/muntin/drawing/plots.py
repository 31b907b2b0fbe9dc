# SPDX-License-Identifier: Apache-2.0
"""Curves, a confusion matrix and bars, with matplotlib's own objects (no global state)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from muntin.drawing.style import BLUE, INK, LINE_COLOURS, SKY, VERMILION, clean_label


def _new_axes(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    return figure, axes


def _open_frame(axes: Axes, *, grid: bool = False) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(visible=True, alpha=0.3)


def draw_confusion(counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> Figure:
    """Draw the confusion matrix: true classes (rows) against predicted classes (columns).

    Shades are shares of the row, so rare classes can be read; numbers are counts where they fit;
    "(none)" marks a class without images.
    """
    many = len(class_names)
    side = min(14.0, max(4.0, 0.42 * many + 2.2))
    figure, axes = _new_axes(side + 1, side, title)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if many <= 25:
        for row in range(many):
            for column in range(many):
                if counts[row, column]:
                    colour = "white" if shares[row, column] > 0.55 else INK
                    axes.text(
                        column, row, str(counts[row, column]),
                        ha="center", va="center", color=colour, fontsize=8,
                    )  # fmt: skip
    if many <= 60:
        names = [clean_label(name, place) for place, name in enumerate(class_names)]
        absent = counts.sum(axis=1) == 0
        rows = [f"{name} (none)" if no else name for name, no in zip(names, absent, strict=True)]
        axes.set_xticks(range(many), names, rotation=90, fontsize=8)
        axes.set_yticks(range(many), rows, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    bar = figure.colorbar(image, ax=axes, fraction=0.045)
    bar.set_label("share of the true class")
    return figure


def draw_bars(values: Mapping[str, float | None], title: str, label: str) -> Figure:
    """Draw one bar per name, lowest first; a name without a value gets "n/a"."""
    rows = sorted(values.items(), key=lambda row: -1.0 if row[1] is None else row[1])
    shown = rows[:40]
    cut = f" (the {len(shown)} lowest of {len(rows)})" if len(rows) > len(shown) else ""
    figure, axes = _new_axes(6.4, 0.24 * len(shown) + 1.3, title + cut)
    axes.barh(range(len(shown)), [value or 0.0 for _, value in shown], color=BLUE)
    for place, (_, value) in enumerate(shown):
        text = "n/a" if value is None else f"{value:.2f}"
        axes.text((value or 0.0) + 0.01, place, text, va="center", fontsize=8, color=INK)
    places = {name: place for place, name in enumerate(values)}
    names = [clean_label(name, places[name]) for name, _ in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12)
    axes.set_xlabel(label)
    _open_frame(axes)
    return figure


def draw_curves(lines: Sequence[Mapping[str, Any]], goal: str) -> Figure:
    """Draw a journal: losses, the goal's figure if it is another, and the learning rate."""
    own = () if goal == "loss" else ((goal or "figure", ((f"val_{goal}", "validation"),)),)
    wanted = (
        ("loss", (("train_loss", "training"), ("val_loss", "validation"))),
        *own,
        ("learning rate", (("learning_rate", "rate"),)),
    )
    figure = Figure(figsize=(11 * len(wanted) / 3, 3.2), layout="constrained")
    panels = figure.subplots(1, len(wanted))
    for axes, (title, columns) in zip(panels, wanted, strict=True):
        for colour, (key, name) in zip(LINE_COLOURS, columns, strict=False):
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                mark = "o" if len(points) < 40 else ""
                style = {"color": colour, "label": name, "marker": mark, "ms": 3, "clip_on": False}
                axes.plot(*zip(*points, strict=True), **style)
        if own and title == goal:
            # Shares: the axis ends at 0 and 1.
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, 0.0), min(high, 1.0))
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _open_frame(axes, grid=True)
        if len(columns) > 1:
            axes.legend(frameon=False)
    return figure


def draw_precision_recall(
    recall: NDArray[np.float64],
    precision: NDArray[np.float64],
    class_names: Sequence[str],
    title: str,
    *,
    num_objects: Sequence[int] | NDArray[np.int64] = (),
) -> Figure:
    """Draw precision against recall at an overlap (IoU) of 0.5: a line a class, their mean black.

    Precision is (K, R) for K classes over the grid of recall; classes with NaN have no truth and
    are left out. Of more than 10 classes, the 5 with the most objects and the 5 others with the
    lowest average precision are drawn; without `num_objects`, the 10 lowest. The average
    precision of each line (AP50) is in the legend.
    """
    figure, axes = _new_axes(7.6, 4.6, title)
    known = np.flatnonzero(np.isfinite(precision).all(axis=1))
    areas = precision.mean(axis=1)
    shown = known[np.argsort(areas[known], kind="stable")]
    if len(known) > 10:
        frequent = []
        if len(num_objects):
            counts = np.asarray(num_objects)[known]
            frequent = known[np.argsort(-counts, kind="stable")][:5].tolist()
        worst = [place for place in shown if place not in frequent][: 10 - len(frequent)]
        shown = np.array([place for place in shown if place in {*frequent, *worst}])
    for number, place in enumerate(reversed(shown)):
        axes.plot(
            recall,
            precision[place],
            color=LINE_COLOURS[number % len(LINE_COLOURS)],
            linestyle="-" if number < len(LINE_COLOURS) else "--",
            label=f"{clean_label(class_names[place], int(place))}  {areas[place]:.2f}",
            linewidth=1.4,
        )
    if len(known):
        mean = precision[known].mean(axis=0)
        label = f"mean of {len(known)}  {mean.mean():.2f}"
        axes.plot(recall, mean, color="black", linewidth=2.4, label=label, zorder=1.9)
        few = f"{len(shown)} of {len(known)} classes" if len(shown) < len(known) else "class"
        axes.legend(
            title=f"{few}  AP50", frameon=False, fontsize=8, title_fontsize=8,
            loc="center left", bbox_to_anchor=(1.01, 0.5), alignment="left",
        )  # fmt: skip
    else:
        axes.text(0.5, 0.5, "no annotated objects", ha="center", color=INK)
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("recall: share of the objects that are detected")
    axes.set_ylabel("precision: share of the detections that are correct")
    _open_frame(axes, grid=True)
    return figure


def draw_errors(distances: NDArray[np.float64], names: Sequence[str], title: str) -> Figure:
    """Draw keypoint errors: a histogram of all, and the median of each keypoint.

    Distances are (instances, keypoints) in pixels; NaN where a keypoint is not visible, infinite
    where it was not predicted.
    """
    finite = distances[np.isfinite(distances)]
    figure = Figure(figsize=(10, max(3.4, 0.22 * len(names) + 1.2)), layout="constrained")
    left, right = figure.subplots(1, 2)
    upper = float(np.percentile(finite, 99)) if len(finite) else 1.0
    beyond = int((finite > upper).sum())
    left.hist(finite[finite <= upper], bins=40, color=BLUE)
    if len(finite):
        for share, style in ((50, "-"), (90, "--")):
            value = float(np.percentile(finite, share))
            left.axvline(value, color=VERMILION, ls=style, label=f"{share} %: {value:.1f} px")
        left.legend(frameon=False, fontsize=8)
    note = f" ({beyond} beyond the right edge)" if beyond else ""
    left.set_xlabel(f"error in pixels of the original{note}")
    left.set_ylabel("keypoints")
    spread = []
    for column in distances.T:
        fine = column[np.isfinite(column)]
        spread.append(np.percentile(fine, (25, 50, 75)) if len(fine) else (np.nan,) * 3)
    quartiles = np.array(spread).reshape(-1, 3)
    order = np.argsort(-np.nan_to_num(quartiles[:, 1], nan=-1), kind="stable")
    places = np.arange(len(order))
    chosen = quartiles[order]
    errors = np.nan_to_num(np.abs(chosen[:, [0, 2]] - chosen[:, [1]]).T)
    right.barh(places, np.nan_to_num(chosen[:, 1]), xerr=errors, color=SKY, ecolor="#666666")
    right.set_yticks(places, [clean_label(names[k], int(k)) for k in order], fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("median error in pixels (lines: interquartile range)")
    for axes in (left, right):
        _open_frame(axes)
    figure.suptitle(title, fontsize=11)
    return figure
