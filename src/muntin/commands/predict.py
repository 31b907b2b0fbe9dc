# SPDX-License-Identifier: Apache-2.0
"""``muntin predict RUN IMAGE...``."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from muntin.commands.prediction_output import (
    FileOptions,
    Output,
    VideoOptions,
    check_files,
    predict_images,
    predict_videos,
)
from muntin.commands.values import (
    DetectorOption,
    DeviceOption,
    JsonOption,
    OnOption,
    RunArgument,
    open_run_aloud,
    parse_bands,
    parse_names,
    parse_scales,
    parse_settings,
    parse_tile,
    parse_time,
)
from muntin.errors import UsageError, plural

if TYPE_CHECKING:
    from muntin.prediction.video_streams import VideoSource
    from muntin.runs import Run

_Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Files in --out: drawing, masks, json, csv, parquet, coco, yolo, labelme, deeplabcut.",
    ),
]
_Crops = Annotated[
    bool, typer.Option("--save-crop", help="Cut objects out, into a folder a class in --out.")
]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on: skip inputs whose results are in --out.")
]
_Threshold = Annotated[
    float | None,
    typer.Option(
        help="Minimum score (poses: of the box); default: best F1 in validation.", min=0, max=1
    ),
]
_Tile = Annotated[
    str, typer.Option(help="Tile side in pixels for large images (segmentation: window), or auto.")
]
_Tta = Annotated[
    bool, typer.Option("--tta", help="Test-time augmentation: average with the mirrored image.")
]
_Scales = Annotated[
    str, typer.Option(help="Segmentation only: average over scales, such as 0.75,1,1.25.")
]
_Select = Annotated[
    list[str] | None,
    typer.Option("--select", help="Detection only: suppression=soft, max_detections=1000."),
]
_Track = Annotated[
    bool, typer.Option("--track", help="Videos: give objects ids; a folder is the frames of one.")
]
_Smooth = Annotated[
    bool, typer.Option("--smooth", help="Videos: smooth keypoints, as --track follows them.")
]
_Show = Annotated[
    bool, typer.Option("--show", help="Videos: show frames in a window; q, or closing it, ends.")
]
_MaxTime = Annotated[
    str, typer.Option(help="Videos and streams: end after 90s, 15m or 2h; default: no limit.")
]
_Bands = Annotated[
    str,
    typer.Option(help="Drawings of more than three bands: 4,3,2 as red, green, blue."),
]
_Images = Annotated[
    list[str],
    typer.Argument(
        help="Images, folders, glob patterns, videos, cameras (0), or rtsp:// and http:// streams."
    ),
]
_Engine = Annotated[
    str, typer.Option(help="eager, compile, onnxruntime, openvino, cuda, or auto: the fastest.")
]


def predict(
    run: RunArgument,
    images: _Images,
    out: Annotated[str, typer.Option(help="Folder for results, named as inputs.")] = "",
    formats: _Format = None,
    save_crop: _Crops = False,
    force: Annotated[bool, typer.Option("--force", help="Replace results in --out.")] = False,
    resume: _Resume = False,
    as_json: JsonOption = False,
    threshold: _Threshold = None,
    tile: _Tile = "",
    tta: _Tta = False,
    scales: _Scales = "",
    select: _Select = None,
    bands: _Bands = "",
    detector: DetectorOption = "",
    track: _Track = False,
    smooth: _Smooth = False,
    max_time: _MaxTime = "",
    show: _Show = False,
    device: DeviceOption = "auto",
    engine: _Engine = "eager",
    precision: Annotated[str, typer.Option(help="Precision of the engine: fp32 or bf16.")] = "fp32",
    on: OnOption = "",
) -> int:
    """Predict images or videos; exit code 1 if any could not be read."""
    passes = {"tta": tta, "tile": parse_tile(tile), "scales": parse_scales(scales)}
    chosen = parse_settings(select, "--select")
    how = VideoOptions(track, smooth, parse_time(max_time))
    options = FileOptions(
        out, _parse_formats(formats), save_crop, force, resume, parse_bands(bands)
    )
    files = check_files(options)
    from muntin.prediction.from_run import load

    paths, videos, missing = _find_inputs(images, files, folders=track or smooth)
    opened = open_run_aloud(run)
    _check_tracking(opened, how, has_videos=bool(videos))
    if show and not videos:
        message = "--show is for videos, cameras and streams, got none. Omit it."
        raise UsageError(message)
    _check_cluster(on, videos)
    min_score, reason = _choose_threshold(opened, threshold)
    about: dict[str, Any] = {"run": opened.path.name, "threshold": threshold, **passes}
    about |= {"detector": detector, "select": chosen, **how._asdict()}
    with Output(opened, files, min_score, about, as_json=as_json) as output:
        paths, videos = output.plan(paths, videos)
        # Without a detector the threshold selects results, not boxes.
        loading: dict[str, Any] = {"engine": engine, "precision": precision, "detector": detector}
        loading["on"] = on
        loading["say"] = lambda line: typer.echo(line, err=True)
        box_threshold = threshold if detector else None
        predictor: Any = load(
            opened, device=device, select=chosen, detector_threshold=box_threshold, **loading
        )
        predictor.threshold = min_score
        found = predictor.stream(paths, strict=False, **passes)
        results = (result.above(threshold or 0.0) for result in found)
        num_results, shrunk = predict_images(results, output, len(paths))
        strict = len(images) == 1
        frames = predict_videos(predictor, videos, output, how, passes, strict=strict, show=show)
        output.print()
        unread = output.num_unreadable
    if not as_json:
        for video, number in frames.items():
            typer.echo(f"{video}: {plural(number, 'frame')}")
        if reason:
            typer.echo(f"score threshold: {min_score:.2f}, {reason} (change: --threshold)")
        out = out if num_results or frames or not (paths or videos) else ""
        if opened.task.top_down:
            _describe_thresholds(detector, threshold)
        _advise(opened, shrunk, tile, out, has_videos=bool(frames) and not show)
    return int(missing or num_results < len(paths) or len(frames) < len(videos) or unread)


def _parse_formats(text: str | None) -> tuple[str, ...]:
    """Parse comma-separated names; none are those that suit the task."""
    names = parse_names(text or "")
    if text is not None and not names:
        message = f"--format must name formats, such as csv,drawing, got {text!r}. Or omit it."
        raise UsageError(message)
    return names


def _check_tracking(run: Run, options: VideoOptions, *, has_videos: bool) -> None:
    """Refuse to track what has no objects, or no frames."""
    from muntin.errors import ConfigError
    from muntin.prediction.tracking import refuse_untracked

    if options.track or options.smooth:
        refuse_untracked(run.task.kind, smooth=options.smooth)
        if not has_videos:
            message = "--track and --smooth need a video, a stream or a folder of frames, got none."
            raise ConfigError(message)


def _check_cluster(on: str, videos: list[VideoSource]) -> None:
    """Refuse what is no address, and videos: their frames come one behind the other."""
    from muntin.clusters.ray_cluster import check_address
    from muntin.errors import ConfigError

    if on and check_address(on) and videos:
        message = f"--on is for images, got the video {videos[0].name}. Leave --on out for videos."
        raise ConfigError(message)


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


def _advise(run: Run, shrunk: int, tile: str, out: str, *, has_videos: bool) -> None:
    merges = run.task.dense is not None and run.task.dense.merges
    if merges and not tile and shrunk:
        typer.echo(
            f"{plural(shrunk, 'image')} scaled down until objects were small or not found: "
            f"--tile auto may find more"
        )
    if out:
        typer.echo(f"written to: {out}")
    elif has_videos:
        typer.echo("nothing was written; use --out FOLDER to save annotated videos")


def _find_below(place: str, files: FileOptions) -> list[Path]:
    """Images of one input; of a folder around that of results, those that are no results."""
    from muntin.errors import ConfigError
    from muntin.prediction.batch import find_images
    from muntin.prediction.formats.format_table import writes_images

    out = files.folder
    top, results = (Path(os.path.realpath(each)) for each in (place, out))
    _tell_of_videos(place, results if out and top != results else None)
    if not out or not top.is_dir() or top not in (results, *results.parents):
        return find_images([place])
    if top == results:
        if not writes_images(files.formats, crops=files.crops):
            return find_images([place])
        message = (
            f"--out must not be a folder of inputs, got {out}: images that are written there would "
            f"be inputs the next time. Choose another name, or formats without images, such as "
            f"--format labelme."
        )
        raise ConfigError(message)
    found = find_images([place])
    kept = [path for path in found if results not in Path(os.path.realpath(path)).parents]
    if gone := len(found) - len(kept):
        typer.echo(f"{plural(gone, 'image')} in {out} left out, as results lie there", err=True)
    return kept


def _tell_of_videos(place: str, results: Path | None) -> None:
    """Say which videos of a folder are no inputs; those in the folder of results are results."""
    from muntin.prediction.video import VIDEO_SUFFIXES

    if not Path(place).is_dir():
        return
    videos = sorted(
        path
        for path in Path(place).rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()
        if results not in Path(os.path.realpath(path)).parents
    )
    if videos:
        text = f"{plural(len(videos), 'video')} in {place} left out, the first is {videos[0]}"
        typer.echo(f"{text}: give videos by their names, or by a pattern", err=True)


class _Inputs(NamedTuple):
    """Images, videos, and whether any input was skipped."""

    paths: list[Path]
    videos: list[VideoSource]
    missing: bool


def _find_inputs(places: list[str], files: FileOptions, *, folders: bool) -> _Inputs:
    """Find what is to be predicted, each once; with `folders` a folder is the frames of a video."""
    from muntin.prediction.formats.finished_inputs import spell
    from muntin.prediction.video_streams import split_videos

    videos, others = split_videos(places, folders=folders)
    paths, missing = _find_all(others, files) if others else ([], False)
    matched, images = split_videos([*map(str, paths)])  # a pattern may match videos
    found: dict[str, Path] = {}
    for image in images:
        found.setdefault(spell(image), Path(image))
    frames: dict[str, VideoSource] = {}
    for video in (*videos, *matched):
        frames.setdefault(spell(video.place), video)
    names = [video.name for video in frames.values()]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        message = (
            f"addresses must differ in more than password and query, which names of results leave "
            f"out, got {twice} twice. Give each to a call of its own."
        )
        raise UsageError(message)
    if repeated := len(paths) + len(videos) - len(found) - len(frames):
        typer.echo(f"{plural(repeated, 'input')} left out: given more than once", err=True)
    return _Inputs([*found.values()], [*frames.values()], missing)


def _find_all(places: list[str], files: FileOptions) -> tuple[list[Path], bool]:
    """Existing images, and whether any input was skipped; a single missing input is an error."""
    from muntin.errors import DataError, MuntinWarning

    paths, missing = [], False
    for place in places:
        try:
            paths += _find_below(place, files)
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
