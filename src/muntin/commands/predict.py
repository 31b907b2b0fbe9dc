# SPDX-License-Identifier: Apache-2.0
"""``muntin predict RUN IMAGE...``."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muntin.commands.values import (
    DetectorOption,
    DeviceOption,
    JsonOption,
    RunArgument,
    open_run_aloud,
    parse_scales,
    parse_settings,
    parse_tile,
)
from muntin.commands.video_prediction import (
    JsonList,
    Output,
    plan_files,
    predict_videos,
    split_videos,
    write_pose_table,
)
from muntin.errors import plural

if TYPE_CHECKING:
    from muntin.runs import Run

MIN_TILING_RATIO = 3
"""Ratio of image side to training side from which tiling is suggested."""


def predict(
    run: RunArgument,
    images: Annotated[list[str], typer.Argument(help="Images, folders, glob patterns or videos.")],
    out: Annotated[str, typer.Option(help="Folder for annotated images, named as inputs.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace results in --out.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Skip inputs whose results are in --out.")
    ] = False,
    as_json: JsonOption = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Minimum score (poses: of the box); default: best F1 in validation.", min=0, max=1
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
    detector: DetectorOption = "",
    device: DeviceOption = "auto",
    engine: Annotated[
        str, typer.Option(help="eager, compile, onnxruntime, openvino, cuda, or auto: the fastest.")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="Precision of the engine: fp32 or bf16.")] = "fp32",
) -> int:
    """Predict images or videos; exit code 1 if any could not be read."""
    passes = {"tta": tta, "tile": parse_tile(tile), "scales": parse_scales(scales)}
    chosen = parse_settings(select, "--select")
    from muntin.prediction.from_run import load

    videos, others = split_videos(images)
    paths, missing = _find_all(others, out) if others else ([], False)
    opened = open_run_aloud(run)
    names, paths, videos = plan_files(
        out, opened.task.kind, paths, videos, force=force, resume=resume
    )
    min_score, reason = _choose_threshold(opened, threshold)
    options: dict[str, Any] = {"engine": engine, "precision": precision, "detector": detector}
    options["say"] = partial(typer.echo, err=True)
    # Without a detector the threshold selects results, not boxes.
    box_threshold = threshold if detector else None
    predictor: Any = load(
        opened, device=device, select=chosen, detector_threshold=box_threshold, **options
    )
    with JsonList() as document:
        output = Output(
            folder=out,
            names=names,
            min_score=min_score,
            scorer=opened.path.name,
            document=document if as_json else None,
        )
        found = predictor.stream(paths, strict=False, **passes)
        num_results, largest = _show_results(
            (result.above(threshold or 0.0) for result in found), output, len(paths)
        )
        strict = len(images) == 1
        frames = predict_videos(partial(predictor.stream, **passes), videos, output, strict=strict)
        if as_json:
            document.print()
    if not as_json:
        for video, number in frames.items():
            typer.echo(f"{video}: {plural(number, 'frame')}")
        if reason:
            typer.echo(f"score threshold: {min_score:.2f}, {reason} (change: --threshold)")
        if opened.task.top_down:
            _describe_thresholds(detector, threshold)
        _advise(opened, largest, tile, out, has_videos=bool(frames))
    return int(missing or num_results < len(paths) or len(frames) < len(videos))


def _choose_threshold(run: Run, threshold: float | None) -> tuple[float, str]:
    """Minimum score of what is shown, and why if the user did not give it."""
    from muntin.errors import ConfigError
    from muntin.prediction.from_run import find_threshold

    if threshold is None:
        return find_threshold(run) if run.task.detects else (0.0, "")
    if run.task.kind == "segmentation":
        message = "--threshold has no effect on segmentation: every pixel gets a class. Omit it."
        raise ConfigError(message)
    return threshold, ""


def _advise(run: Run, largest: int, tile: str, out: str, *, has_videos: bool) -> None:
    merges = run.task.dense is not None and run.task.dense.merges
    if merges and not tile and largest > MIN_TILING_RATIO * max(run.preprocessing.img_size):
        typer.echo("large images were downscaled; use --tile auto to detect small objects")
    if out:
        typer.echo(f"written to: {out}")
    elif has_videos:
        typer.echo("nothing was written; use --out FOLDER to save annotated videos")


def _show_results(results: Iterable[Any], output: Output, total: int) -> tuple[int, int]:
    """Print, draw and write results as they arrive; only poses are collected, for the CSV.

    Return the number of results, and the longer side in pixels of the largest image.
    """
    from muntin.results import Poses

    number, largest = 0, 0
    poses: list[Poses] = []
    for result in results:
        if output.folder:
            _draw(result, output)
            poses += [result] if isinstance(result, Poses) else []
        if output.document is None:
            typer.echo(f"{result.path}: {_describe(result, output.min_score)}")
        else:
            output.document.add(result.to_dict())
        number, largest = number + 1, max(largest, *result.size)
        if number % 100 == 0:  # how far it is
            typer.echo(f"{number} of {total} images", err=True)
    if output.folder:
        write_pose_table(poses, output)
    return number, largest


def _find_below(place: str, out: str) -> list[Path]:
    """Images of one input; of a folder around that of results, those that are no results."""
    from muntin.errors import ConfigError
    from muntin.prediction.batch import find_images

    top, results = (Path(os.path.realpath(each)) for each in (place, out))
    if not out or not top.is_dir() or top not in (results, *results.parents):
        return find_images([place])
    if top == results:
        message = (
            f"--out must not be a folder of inputs, got {out}: its results would be inputs the "
            f"next time. Choose another name."
        )
        raise ConfigError(message)
    found = find_images([place])
    kept = [path for path in found if results not in Path(os.path.realpath(path)).parents]
    if gone := len(found) - len(kept):
        typer.echo(f"{plural(gone, 'image')} in {out} left out, as results lie there", err=True)
    return kept


def _find_all(places: list[str], out: str) -> tuple[list[Path], bool]:
    """Existing images, and whether any input was skipped; a single missing input is an error."""
    from muntin.errors import DataError, MuntinWarning

    paths, missing = [], False
    for place in places:
        try:
            paths += _find_below(place, out)
        except DataError as error:
            if len(places) == 1:
                raise
            missing = True
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
    return paths, missing


def _describe_thresholds(detector: str, threshold: float | None) -> None:
    from muntin.prediction.from_run import find_threshold
    from muntin.published import open_run
    from muntin.results import DEFAULT_SCORE_THRESHOLD

    if detector:
        score, reason = find_threshold(open_run(detector))
        source = f", {reason}" if threshold is None else ""
        score = score if threshold is None else threshold
        typer.echo(f"score threshold of boxes: {score:.2f}{source} (change: --threshold)")
    elif threshold is not None:
        typer.echo(f"score threshold of instances: {threshold:g} (mean of their keypoints)")
    typer.echo(f"score threshold of keypoints: {DEFAULT_SCORE_THRESHOLD:g}; others are not drawn")


def _draw(result: Any, output: Output) -> None:  # noqa: ANN401 (one of muntin.results)
    from muntin.drawing.saving import save_image, save_labels
    from muntin.prediction.predictor import draw
    from muntin.results import Detections, Poses, SemanticMap

    shown = result.above(output.min_score) if isinstance(result, Detections | Poses) else result
    save_image(draw(Path(result.path), shown), output.place(result.path, ".png"))
    if isinstance(result, SemanticMap):
        save_labels(result.labels, output.place(result.path, "_labels.png"))


def _describe(result: Any, min_score: float) -> str:  # noqa: ANN401 (one of muntin.results)
    """One line: the best classes, or the number of objects of each class."""
    from muntin.results import DEFAULT_SCORE_THRESHOLD, Detections, Poses, SemanticMap

    if isinstance(result, Poses):
        poses = result.above(min_score)
        points = int((poses.keypoints[:, :, 2] >= DEFAULT_SCORE_THRESHOLD).sum())
        sure = f"with score >= {DEFAULT_SCORE_THRESHOLD:g}"
        return f"{plural(len(poses), 'instance')}, {plural(points, 'keypoint')} {sure}"
    if isinstance(result, SemanticMap):
        shares = result.counts / result.labels.size
        ranked = [int(i) for i in (-shares).argsort(kind="stable") if shares[i] > 0]
        return ", ".join(f"{result.class_names[i]} {shares[i]:.1%}" for i in ranked[:6])
    if isinstance(result, Detections):
        counts = Counter(result.above(min_score).class_names)
        return ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "no objects"
    best = zip(result.class_names[:3], result.scores[:3], strict=True)
    text = ", ".join(f"{name} {score:.2f}" for name, score in best)
    return text or f"no class with score >= {min_score}"
