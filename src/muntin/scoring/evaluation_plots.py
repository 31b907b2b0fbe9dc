# SPDX-License-Identifier: Apache-2.0
"""Plots of an evaluation, and the best and worst predictions beside the ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from muntin.data.archives import read_bytes
from muntin.data.cache import ImageCache
from muntin.data.decoding import Decoding, decode_with_facts
from muntin.data.entry_images import read_pixels
from muntin.data.transforms import to_shown
from muntin.data.value_ranges import OWN
from muntin.drawing.detection_drawing import draw_detection_pair
from muntin.drawing.layout import Thumbnail, draw_sheet
from muntin.drawing.plots import draw_bars, draw_confusion, draw_errors, draw_precision_recall
from muntin.drawing.pose_drawing import annotated_poses, draw_pose_pair
from muntin.drawing.result_drawing import draw_semantic_pair
from muntin.drawing.saving import save_figure, save_image
from muntin.errors import plural
from muntin.metrics.class_metrics import ClassificationMetric, SemanticMetric, count_pixels
from muntin.metrics.detection_metric import DetectionMetric
from muntin.metrics.pose_metric import PoseMetric
from muntin.ops.boxes import box_iou
from muntin.results import DEFAULT_SCORE_THRESHOLD
from muntin.samples import Classes
from muntin.scoring.evaluator import Scored

_SIDE = 800  # pixels: width of a ground truth and a prediction in a sheet, which is shown as it is


def draw_evaluation(scored: Scored, store: ImageCache, classes: Classes, folder: Path) -> None:
    """Draw the plots of an evaluation into a folder, by the kind of metric."""
    _draw(scored.metric, scored, store, classes, folder)


@singledispatch
def _draw(
    metric: object, scored: Scored, store: ImageCache, classes: Classes, folder: Path
) -> None:
    message = f"metric must be one of muntin.metrics, got {type(metric).__name__}."
    raise TypeError(message)


@_draw.register
def _(
    metric: ClassificationMetric, scored: Scored, store: ImageCache, classes: Classes, folder: Path
) -> None:
    """Confusion matrix, per-class figures and the worst errors."""
    figures, outputs = scored.figures, scored.outputs
    name, value = next((n, figures[n]) for n in ("top1", "map", "loss") if n in figures)
    per_class = next((n for n in ("recall", "average_precision") if n in figures), "")
    if per_class:
        values = dict(zip(classes.names, figures[per_class], strict=True))
        title = f"{per_class.replace('_', ' ')} of each class"
        save_figure(draw_bars(values, title, per_class.replace("_", " ")), folder / "per_class.png")
    if classes.multi_label or not len(outputs.indices):
        return
    counts = metric.confusion.numpy()
    title = f"{name} {value:.3f} on {plural(figures['num_images'], 'image')}"
    save_figure(draw_confusion(counts, classes.names, title), folder / "confusion.png")
    tiles = []
    scores = outputs.answers.softmax(dim=1)
    for row in outputs.losses.argsort(descending=True)[:24].tolist():
        predicted, truth = int(scores[row].argmax()), int(outputs.truth[row])
        index = int(outputs.indices[row])
        kept = store.load(index)
        if predicted == truth or kept is None:
            continue
        lines = (
            f"true: {classes.names[truth]} {float(scores[row, truth]):.2f}",
            f"predicted: {classes.names[predicted]} {float(scores[row, predicted]):.2f}",
            "/".join(Path(scored.listing.entries[index].path).parts[-2:]),
        )
        tiles.append(Thumbnail(pixels=to_shown(kept.pixels), lines=lines, good=False))
    if tiles:
        sheet = draw_sheet(tiles, "Worst errors: lowest score of the true class first")
        save_image(sheet, folder / "worst_mistakes.png")


@_draw.register
def _(
    metric: DetectionMetric, scored: Scored, store: ImageCache, classes: Classes, folder: Path
) -> None:
    """Precision against recall, per-class figures, and the best and worst images."""
    figures = scored.figures
    if not figures["num_images"]:
        return
    kind: Literal["box", "mask"]
    for kind in ("box", "mask") if metric.masks else ("box",):
        curves = metric.curves(kind)
        title = (
            f"{kind} AP {_format(figures[f'{kind}_ap'])} (mean over IoU 0.5 to 0.95), "
            f"AP50 {_format(figures[f'{kind}_ap50'])}; curves at IoU 0.5"
        )
        plot = draw_precision_recall(
            curves.recall, curves.precision, classes.names, title, num_objects=curves.num_objects
        )
        save_figure(plot, folder / f"precision_recall_{kind}.png")
        values = dict(zip(classes.names, figures[f"{kind}_ap_per_class"], strict=True))
        plot = draw_bars(values, f"{kind} AP of each class", f"{kind} AP")
        save_figure(plot, folder / f"per_class_{kind}.png")
    threshold = figures["best_threshold"] or DEFAULT_SCORE_THRESHOLD
    threshold = threshold if scored.threshold is None else scored.threshold

    def draw(quality: float, row: int) -> Thumbnail:
        path, pixels = _open(scored, row)
        found = scored.outputs.answers[row].above(threshold)
        truth = scored.outputs.truth[row]
        pair = draw_detection_pair(pixels, truth, found, classes.names, side=_SIDE)
        return _caption(pair, f"F1 {quality:.2f} at IoU 0.5", path)

    title = (
        f"images: ground truth, and detections of score {threshold:.2f} and more; one colour: "
        f"boxes that match, IoU 0.5 and more"
    )
    _save_extremes(_rank(scored, threshold), draw, title, folder)


def _rank(scored: Scored, threshold: float) -> list[tuple[float, int]]:
    """F1 at an overlap of 0.5, class by class, and row of each image; worst first.

    Ties are ordered by the number of objects: more of them, more evidence.
    """
    rows = []
    pairs = zip(scored.outputs.answers, scored.outputs.truth, strict=True)
    for row, (found, truth) in enumerate(pairs):
        sure = found.above(threshold)
        single = ~truth.crowd
        hits = 0
        for class_id in set(sure.class_ids.tolist()):
            predicted = sure.boxes[sure.class_ids == class_id]
            hits += _count_hits(predicted, truth.boxes[single & (truth.class_ids == class_id)])
        total = len(sure) + int(single.sum())
        rows.append((2 * hits / total if total else 1.0, total, row))
    return [(quality, row) for quality, _, row in sorted(rows)]


def _count_hits(predicted: NDArray[np.float64], annotated: NDArray[np.floating[Any]]) -> int:
    """Count boxes, best first, that each match a different object (IoU from 0.5)."""
    if not len(predicted) or not len(annotated):
        return 0
    overlap = box_iou(torch.from_numpy(predicted), torch.from_numpy(annotated).double()).numpy()
    hits = 0
    for row in overlap:
        best = int(row.argmax())
        if row[best] >= 0.5:
            hits += 1
            overlap[:, best] = 0
    return hits


@_draw.register
def _(
    metric: SemanticMetric, scored: Scored, store: ImageCache, classes: Classes, folder: Path
) -> None:
    """Confusion matrix, per-class figures, and the best and worst images."""
    figures, outputs = scored.figures, scored.outputs
    if not figures["num_images"]:
        return
    values = dict(zip(classes.names, figures["iou"], strict=True))
    title = f"IoU of each class, mean {_format(figures['miou'])}"
    save_figure(draw_bars(values, title, "IoU"), folder / "per_class.png")
    title = f"pixels, accuracy {_format(figures['pixel_accuracy'])}"
    save_figure(draw_confusion(metric.confusion, classes.names, title), folder / "confusion.png")
    rows = []
    for row, (predicted, annotated) in enumerate(zip(outputs.answers, outputs.truth, strict=True)):
        counts = count_pixels(predicted.labels, annotated, len(classes.names))
        if counts.sum():
            rows.append((float(counts.trace() / counts.sum()), row))

    def draw(right: float, row: int) -> Thumbnail:
        path, pixels = _open(scored, row)
        pair = draw_semantic_pair(pixels, outputs.truth[row], outputs.answers[row], side=_SIDE)
        return _caption(pair, f"{right:.1%} of the pixels correct", path, parts=3)

    _save_extremes(sorted(rows), draw, "images: ground truth and prediction", folder)


@_draw.register
def _(
    metric: PoseMetric, scored: Scored, store: ImageCache, classes: Classes, folder: Path
) -> None:
    """Keypoint errors, per-keypoint figures, and the best and worst instances."""
    figures, outputs = scored.figures, scored.outputs
    distances, names = metric.distances, metric.skeleton.names
    if not np.isfinite(distances).any():
        return
    title = f"mean error {figures['mean_pixel_error']:.2f} px, PCK {_format(figures['pck'])}"
    save_figure(draw_errors(distances, names, title), folder / "errors.png")
    values = dict(zip(names, figures["pck_per_keypoint"], strict=True))
    save_figure(draw_bars(values, "PCK of each keypoint", "PCK"), folder / "per_keypoint.png")
    known = np.isfinite(distances)
    means = np.where(known, distances, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    order = np.argsort(-means, kind="stable")
    rows = [(float(means[row]), int(row)) for row in order if known[row].any()]

    def draw(mean: float, row: int) -> Thumbnail:
        truth, answer = outputs.truth[metric.owners[row]], outputs.answers[metric.owners[row]]
        how = Decoding(size=answer.size)
        data = read_bytes(scored.listing.source, truth.path)
        pixels, _ = decode_with_facts(data, where=truth.path, how=how)
        wanted = [truth.row] if truth.row >= 0 else range(len(truth.objects))
        annotated = annotated_poses(truth.objects, wanted, metric.skeleton)
        found = answer.above(metric.score_threshold)
        pair = draw_pose_pair(pixels, annotated, found, side=_SIDE)
        return _caption(pair, f"mean error {mean:.1f} px", truth.path)

    _save_extremes(rows, draw, "instances: ground truth and prediction", folder)


def _format(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _open(scored: Scored, row: int) -> tuple[str, NDArray[np.uint8]]:
    """Path and pixels of the image of an output, turned as it was scored."""
    entry = scored.listing.entries[int(scored.outputs.indices[row])]
    size = scored.outputs.answers[row].size
    return entry.path, read_pixels(scored.listing.source, entry, OWN, size=size)[0]


def _caption(drawn: Image.Image, text: str, path: str, *, parts: int = 2) -> Thumbnail:
    lines = (text, "/".join(Path(path).parts[-parts:]))
    return Thumbnail(pixels=np.asarray(drawn), lines=lines)


def _save_extremes(
    rows: Sequence[tuple[float, int]],
    draw: Callable[[float, int], Thumbnail],
    title: str,
    folder: Path,
) -> None:
    """Save a sheet of the six worst and one of the six best rows, which come worst first."""
    for name, chosen in (("worst", rows[:6]), ("best", rows[::-1][:6])):
        tiles = [draw(*row) for row in chosen]
        sheet = draw_sheet(tiles, f"{name.capitalize()} {title}", columns=2, side=_SIDE)
        save_image(sheet, folder / f"{name}.png")
