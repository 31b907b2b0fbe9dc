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

from muntin.commands.clips import predict_clips, split_clips, write_table
from muntin.commands.json_output import JsonList
from muntin.commands.values import parse_scales, parse_settings, parse_tile

if TYPE_CHECKING:
    from muntin.runs import Run

__all__ = ["predict"]


SHRUNK = 3
"""From so many times the size that a run sees on, it is said that tiles find more."""


def predict(
    run: Annotated[str, typer.Argument(help="A run folder or exported file.")],
    images: Annotated[list[str], typer.Argument(help="Images, folders, patterns, videos.")],
    out: Annotated[str, typer.Option(help="Folder for images with their results.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Leave out what scores less (poses: whose box); a run knows its own.", min=0, max=1
        ),
    ] = None,
    tile: Annotated[
        str, typer.Option(help="See large images in tiles (of a map: windows) of N pixels; auto.")
    ] = "",
    tta: Annotated[bool, typer.Option("--tta", help="See the mirrored image too.")] = False,
    scales: Annotated[
        str, typer.Option(help="Of a map: see it at several sizes, such as 0.75,1,1.25.")
    ] = "",
    select: Annotated[
        list[str] | None,
        typer.Option("--select", help="Of a detector: suppression=soft, max_detections=1000."),
    ] = None,
    detector: Annotated[
        str, typer.Option(help="For keypoints: a run that finds the subjects.")
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="eager, compile, onnxruntime, openvino, cuda; auto measures them.")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="Of the engine: fp32, bf16.")] = "fp32",
) -> int:
    """Say what images show; exit code 1 if any could not be read."""
    tile_side, chosen = parse_tile(tile), parse_settings(select or [], "--select")
    sizes = parse_scales(scales)
    from muntin.errors import ConfigError
    from muntin.prediction.from_run import load
    from muntin.prediction.thresholds import find_threshold
    from muntin.runs import Run

    clips, others = split_clips(images)
    paths, missing = _find_all(others) if others else ([], False)
    opened = Run.open(run)
    if threshold is not None and opened.task.kind == "segmentation":
        message = "every pixel has a class, so a map has no use for --threshold. Leave it out."
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
    ways: dict[str, Any] = {"tta": tta, "tile": tile_side, "scales": sizes}
    sure, why = threshold or 0.0, ""
    if opened.task.detects and threshold is None:
        sure, why = find_threshold(opened)
    strict, scorer = len(images) == 1, opened.path.name
    with JsonList() as document:
        found = predictor.stream(paths, strict=False, **ways)
        shown = _show_results(
            (result.above(threshold or 0.0) for result in found),
            out=out, sure=sure, scorer=scorer, document=document if as_json else None,
        )  # fmt: skip
        frames = predict_clips(
            partial(predictor, **ways), clips, out, sure,
            scorer=scorer, strict=strict, document=document if as_json else None,
        )  # fmt: skip
        if as_json:
            document.print()
    if not as_json:
        for clip, count in frames.items():
            typer.echo(f"{clip}: {count} frame{'s' * (count != 1)}")
        if why:
            typer.echo(f"counted and drawn: scores from {sure:.2f} on, {why} (--threshold)")
        if opened.task.top_down:
            _explain_poses(detector, threshold)
        _advise(opened, shown.largest, tile, out, has_clips=bool(frames))
    return int(missing or shown.num_results < len(paths) or len(frames) < len(clips))


def _advise(run: Run, largest: int, tile: str, out: str, *, has_clips: bool) -> None:
    merges = run.task.dense is not None and run.task.dense.merges
    if merges and not tile and largest > SHRUNK * max(run.preprocessing.img_size):
        typer.echo("large images were shrunk a lot: --tile auto finds small objects")
    if out:
        typer.echo(f"images: {out}")
    elif has_clips:
        typer.echo("nothing was written: --out FOLDER keeps the videos with their results")


class _Shown(NamedTuple):
    """How many results were shown, and the longer side in pixels of the largest image."""

    num_results: int
    largest: int


def _show_results(
    results: Iterable[Any], *, out: str, sure: float, scorer: str, document: JsonList | None
) -> _Shown:
    """Print, draw and write results as they come; only poses are kept, for their table."""
    from muntin.results import Poses

    count, largest = 0, 0
    poses: list[Poses] = []
    for result in results:
        if out:
            _draw(count, result, out, sure)
            poses += [result] if isinstance(result, Poses) else []
        if document is None:
            typer.echo(f"{result.path}: {_describe(result, sure)}")
        else:
            document.add(result.to_dict())
        count, largest = count + 1, max(largest, *result.size)
    if out:
        write_table(poses, out, scorer=scorer)
    return _Shown(count, largest)


def _find_all(places: list[str]) -> tuple[list[Path], bool]:
    """The images that are there, and whether a place was left out; a single one must be there."""
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
            warnings.warn(f"left out: {error}", MuntinWarning, stacklevel=2)
    return paths, missing


def _explain_poses(detector: str, threshold: float | None) -> None:
    """Say which subjects are told, and which of their keypoints are called sure."""
    from muntin.prediction.thresholds import find_threshold
    from muntin.results import SURE
    from muntin.runs import Run

    if detector:
        score, why = find_threshold(Run.open(detector))
        because = f", {why}" if threshold is None else ""
        score = score if threshold is None else threshold
        typer.echo(f"subjects: the detector's boxes from {score:.2f} on{because} (--threshold)")
    elif threshold is not None:
        typer.echo(f"subjects: those that score {threshold:g} or more, the mean of their keypoints")
    typer.echo(f"sure keypoints score {SURE:g} or more of 1; the others are not drawn")


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


def _describe(result: Any, sure: float) -> str:  # noqa: ANN401 (one of muntin.results)
    """A line: the best classes, or how many objects of each class."""
    from muntin.results import SURE, Detections, Poses, SemanticMap

    if isinstance(result, Poses):
        told = result.above(sure)
        points = int((told.keypoints[:, :, 2] >= SURE).sum())
        return (
            f"{len(told)} subject{'s' * (len(told) != 1)}, "
            f"{points} sure keypoint{'s' * (points != 1)}"
        )
    if isinstance(result, SemanticMap):
        shares = result.counts / result.labels.size
        ranked = [int(i) for i in (-shares).argsort(kind="stable") if shares[i] > 0]
        return ", ".join(f"{result.class_names[i]} {shares[i]:.1%}" for i in ranked[:6])
    if isinstance(result, Detections):
        counts = Counter(result.above(sure).class_names)
        return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "nothing"
    best = zip(result.class_names[:3], result.scores[:3], strict=True)
    said = ", ".join(f"{name} {score:.2f}" for name, score in best)
    return said or f"nothing above {sure}"
