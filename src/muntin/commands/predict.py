# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin predict RUN IMAGE...``."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from muntin.commands.json_output import JsonList
from muntin.commands.values import parse_scales, parse_settings, parse_tile
from muntin.commands.video_prediction import predict_videos, split_videos, write_pose_table

if TYPE_CHECKING:
    from muntin.runs import Run

__all__ = ["predict"]


MIN_TILING_RATIO = 3
"""Ratio of image side to training side from which tiling is suggested."""


def predict(
    run: Annotated[str, typer.Argument(help="A run folder or exported file.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders, glob patterns or videos.")],
    out: Annotated[str, typer.Option(help="Folder for annotated images.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Minimum score (poses: of the box); default: best F1 in validation.",
            min=0,
            max=1,
        ),
    ] = None,
    tile: Annotated[
        str,
        typer.Option(help="Tile side in pixels for large images (segmentation: window), or auto."),
    ] = "",
    tta: Annotated[
        bool, typer.Option("--tta", help="Test-time augmentation: average with the mirrored image.")
    ] = False,
    scales: Annotated[
        str, typer.Option(help="Segmentation only: average over scales, such as 0.75,1,1.25.")
    ] = "",
    select: Annotated[
        list[str] | None,
        typer.Option("--select", help="Detection only: suppression=soft, max_detections=1000."),
    ] = None,
    detector: Annotated[
        str, typer.Option(help="Keypoints only: a detection run that finds the instances.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="eager, compile, onnxruntime, openvino, cuda, or auto: the fastest.")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="Precision of the engine: fp32 or bf16.")] = "fp32",
) -> int:
    """Predict images or videos; exit code 1 if any could not be read."""
    tile_side, chosen = parse_tile(tile), parse_settings(select or [], "--select")
    sizes = parse_scales(scales)
    from muntin.errors import ConfigError
    from muntin.prediction.from_run import find_threshold, load
    from muntin.runs import Run

    videos, others = split_videos(images)
    paths, missing = _find_all(others) if others else ([], False)
    opened = Run.open(run)
    if threshold is not None and opened.task.kind == "segmentation":
        message = "--threshold has no effect on segmentation: every pixel gets a class. Omit it."
        raise ConfigError(message)
    options: dict[str, Any] = {"engine": engine, "precision": precision}
    predictor = load(
        opened,
        device=device,
        select=chosen,
        detector=detector,
        detector_threshold=threshold,
        **options,
    )
    passes: dict[str, Any] = {"tta": tta, "tile": tile_side, "scales": sizes}
    min_score, reason = threshold or 0.0, ""
    if opened.task.detects and threshold is None:
        min_score, reason = find_threshold(opened)
    strict, scorer = len(images) == 1, opened.path.name
    with JsonList() as document:
        found = predictor.stream(paths, strict=False, **passes)
        shown = _show_results(
            (result.above(threshold or 0.0) for result in found),
            out=out, min_score=min_score, scorer=scorer, document=document if as_json else None,
        )  # fmt: skip
        frames = predict_videos(
            partial(predictor, **passes), videos, out, min_score,
            scorer=scorer, strict=strict, document=document if as_json else None,
        )  # fmt: skip
        if as_json:
            document.print()
    if not as_json:
        for video, count in frames.items():
            typer.echo(f"{video}: {count} frame{'s' * (count != 1)}")
        if reason:
            typer.echo(f"score threshold: {min_score:.2f}, {reason} (change: --threshold)")
        if opened.task.top_down:
            _describe_thresholds(detector, threshold)
        _advise(opened, shown.largest, tile, out, has_videos=bool(frames))
    return int(missing or shown.num_results < len(paths) or len(frames) < len(videos))


def _advise(run: Run, largest: int, tile: str, out: str, *, has_videos: bool) -> None:
    merges = run.task.dense is not None and run.task.dense.merges
    if merges and not tile and largest > MIN_TILING_RATIO * max(run.preprocessing.img_size):
        typer.echo("large images were downscaled; use --tile auto to detect small objects")
    if out:
        typer.echo(f"written to: {out}")
    elif has_videos:
        typer.echo("nothing was written; use --out FOLDER to save annotated videos")


class _PredictSummary(NamedTuple):
    """Number of results, and the longer side in pixels of the largest image."""

    num_results: int
    largest: int


def _show_results(
    results: Iterable[Any], *, out: str, min_score: float, scorer: str, document: JsonList | None
) -> _PredictSummary:
    """Print, draw and write results as they arrive; only poses are collected, for the CSV."""
    from muntin.results import Poses

    count, largest = 0, 0
    poses: list[Poses] = []
    for result in results:
        if out:
            _draw(count, result, out, min_score)
            poses += [result] if isinstance(result, Poses) else []
        if document is None:
            typer.echo(f"{result.path}: {_describe(result, min_score)}")
        else:
            document.add(result.to_dict())
        count, largest = count + 1, max(largest, *result.size)
    if out:
        write_pose_table(poses, out, scorer=scorer)
    return _PredictSummary(count, largest)


def _find_all(places: list[str]) -> tuple[list[Path], bool]:
    """Existing images, and whether any input was skipped; a single missing input is an error."""
    from muntin.errors import DataError, MuntinWarning
    from muntin.prediction.sources import find_images

    paths, missing = [], False
    for place in places:
        try:
            paths += find_images([place])
        except DataError as error:
            if len(places) == 1:
                raise
            missing = True
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
    return paths, missing


def _describe_thresholds(detector: str, threshold: float | None) -> None:
    """Print the score thresholds of instances and keypoints."""
    from muntin.prediction.from_run import find_threshold
    from muntin.results import DEFAULT_SCORE_THRESHOLD
    from muntin.runs import Run

    if detector:
        score, reason = find_threshold(Run.open(detector))
        source = f", {reason}" if threshold is None else ""
        score = score if threshold is None else threshold
        typer.echo(f"score threshold of boxes: {score:.2f}{source} (change: --threshold)")
    elif threshold is not None:
        typer.echo(f"score threshold of instances: {threshold:g} (mean of their keypoints)")
    typer.echo(f"score threshold of keypoints: {DEFAULT_SCORE_THRESHOLD:g}; others are not drawn")


def _draw(number: int, result: Any, out: str, min_score: float) -> None:  # noqa: ANN401 (one of muntin.results)
    from muntin.drawing.saving import save_image, save_labels
    from muntin.prediction.predictor import draw
    from muntin.results import Detections, Poses, SemanticMap

    path = Path(result.path)
    name = "_".join(filter(None, (f"{number:05}", path.parent.name[-40:], path.stem[-40:])))
    shown = result.above(min_score) if isinstance(result, Detections | Poses) else result
    save_image(draw(path, shown), Path(out) / f"{name}.png")
    if isinstance(result, SemanticMap):
        save_labels(result.labels, Path(out) / f"{name}_labels.png")


def _describe(result: Any, min_score: float) -> str:  # noqa: ANN401 (one of muntin.results)
    """One line: the best classes, or the number of objects of each class."""
    from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Poses, SemanticMap

    if isinstance(result, Poses):
        poses = result.above(min_score)
        points = int((poses.keypoints[:, :, 2] >= DEFAULT_SCORE_THRESHOLD).sum())
        return (
            f"{len(poses)} instance{'s' * (len(poses) != 1)}, "
            f"{points} keypoint{'s' * (points != 1)} with score >= {DEFAULT_SCORE_THRESHOLD:g}"
        )
    if isinstance(result, SemanticMap):
        shares = result.counts / result.labels.size
        ranked = [int(i) for i in (-shares).argsort(kind="stable") if shares[i] > 0]
        return ", ".join(f"{result.class_names[i]} {shares[i]:.1%}" for i in ranked[:6])
    if isinstance(result, Detections):
        counts = Counter(result.above(min_score).class_names)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "no objects"
    best = zip(result.class_names[:3], result.scores[:3], strict=True)
    text = ", ".join(f"{name} {score:.2f}" for name, score in best)
    return text or f"no class with score >= {min_score}"
