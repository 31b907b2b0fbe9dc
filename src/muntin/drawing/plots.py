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

_MOST_CLASSES, _WORST = 25, 20  # of a confusion matrix; drawn of more
_SMOOTHED = 30  # epochs


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

    Shades are shares of the row, so rare classes can be read; cells hold the percentage and, below
    it, the count. Of more than 25 classes, the 20 with the most errors are drawn, and the sum of
    the others' columns; "(none)" marks a class without images.
    """
    names = [clean_label(name, place) for place, name in enumerate(class_names)]
    absent = counts.sum(axis=1) == 0
    rows = [f"{name} (none)" if no else name for name, no in zip(names, absent, strict=True)]
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(names) > _MOST_CLASSES:
        wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
        worst = np.sort(np.argsort(-wrong, kind="stable")[:_WORST])
        others = np.delete(counts[worst], worst, axis=1).sum(axis=1, keepdims=True)
        title = f"{title}\nthe {_WORST} of {len(names)} classes with the most errors"
        counts, totals = np.concatenate([counts[worst][:, worst], others], axis=1), totals[worst]
        rows = [rows[place] for place in worst]
        names = [*(names[place] for place in worst), "all others"]
    cell = 0.46 if len(names) > 6 else 0.7  # inches
    figure, axes = _new_axes(cell * len(names) + 2.6, cell * len(rows) + 1.9, title)
    shares = counts / totals
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*counts.nonzero(), strict=True):
        share = shares[row, column]
        percent = f"{100 * share:.0f} %" if share >= 0.005 else "<1 %"
        axes.text(
            column, row, f"{percent}\n{_short_count(int(counts[row, column]))}",
            ha="center", va="center", color="white" if share > 0.55 else INK, fontsize=7.5,
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 20, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    bar = figure.colorbar(image, ax=axes, fraction=0.045)
    bar.set_label("share of the true class")
    return figure


def _short_count(count: int) -> str:
    """Write a count in at most five signs."""
    for size, sign in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if count >= size:
            size = min(size, 1000) if sign == "k" else size
            return f"{count / size:.3g}{sign}" if count < 999.5 * size else f"{count // size}{sign}"
    return str(count)


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
    """Draw a journal: losses, the goal's figure if it is another, and the learning rate.

    From 30 epochs on, losses and figures are smoothed, with what was measured faint behind.
    """
    own = () if goal == "loss" else ((goal or "figure", ((f"val_{goal}", "validation"),)),)
    wanted = (
        ("loss", (("train_loss", "training"), ("val_loss", "validation"))),
        *own,
        ("learning rate", (("learning_rate", "rate"),)),
    )
    figure = Figure(figsize=(11 * len(wanted) / 3, 3.2), layout="constrained")
    panels = figure.subplots(1, len(wanted))
    for axes, (title, columns) in zip(panels, wanted, strict=True):
        values: list[float] = []
        for colour, (key, name) in zip(LINE_COLOURS, columns, strict=False):
            points = np.array([(line["epoch"], line[key]) for line in lines if key in line])
            if len(points):
                _draw_curve(axes, points, colour, name, smooth=key != "learning_rate")
                values += points[:, 1].tolist()
        _set_limits(axes, values, share=bool(own) and title == goal)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _open_frame(axes, grid=True)
        if len(columns) > 1:
            axes.legend(frameon=False)
    return figure


def _draw_curve(
    axes: Axes, points: NDArray[np.float64], colour: str, name: str, *, smooth: bool
) -> None:
    """Draw (N, 2) epochs and values; of many, an exponential moving average over them."""
    style: dict[str, Any] = {"color": colour, "clip_on": False}
    if not smooth or len(points) < _SMOOTHED:
        mark = "o" if len(points) < 40 else ""
        axes.plot(*points.T, label=name, marker=mark, ms=5 if len(points) == 1 else 3, **style)
        return
    # Of both directions, so that the average does not lag behind.
    epochs, values = points.T
    weights = np.exp(-np.abs(epochs[:, None] - epochs) / max(2.0, len(points) / 30))
    axes.plot(epochs, values, alpha=0.3, lw=1, **style)
    means = weights @ values / weights.sum(axis=1)
    axes.plot(epochs, means, label=f"{name}, smoothed", **style)


def _set_limits(axes: Axes, values: Sequence[float], *, share: bool) -> None:
    """Choose limits that neither blow up nothing nor leave the range of a share, [0, 1]."""
    axes.ticklabel_format(axis="y", useOffset=False)
    finite = [value for value in values if np.isfinite(value)]
    if len(finite) < len(values) or not finite:
        return
    low, high = min(finite), max(finite)
    epochs = np.unique(np.concatenate([line.get_xdata() for line in axes.get_lines()]))
    if len(epochs) == 1:
        axes.set_xlim(epochs[0] - 1, epochs[0] + 1)
    if len(epochs) == 1 or high - low < 0.02 * max(abs(high), abs(low)):  # nothing that changes
        low, high = (0.0, 1.0) if share else (min(0.0, 1.3 * low), max(1.3 * high, 0.0) or 1.0)
        axes.set_ylim(low, high)
    elif share:
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0.0), min(high, 1.0))


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
