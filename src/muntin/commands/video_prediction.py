# SPDX-License-Identifier: Apache-2.0
"""``muntin predict``: videos, CSV tables of poses, and JSON lists of any length."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from muntin.commands.values import to_json
from muntin.errors import plural

POSES = "poses.csv"

MAX_BUFFER = 2**24
"""Characters held in memory; longer lists go to a temporary file."""


class JsonList(ExitStack):
    """Collects the items of a JSON list as text; the temporary file ends with the context.

    Nothing is printed before `print`, so that a command that fails leaves stdout empty.
    """

    def __init__(self) -> None:
        super().__init__()
        file = tempfile.SpooledTemporaryFile(MAX_BUFFER, "w+", encoding="utf-8", newline="")  # noqa: SIM115 (entered below)
        self._file = self.enter_context(file)
        self._count = 0

    def add(self, item: dict[str, Any]) -> None:
        """Append an item."""
        self._file.write(",\n" if self._count else "[\n")
        self._file.write(textwrap.indent(to_json(item), "  "))
        self._count += 1

    def mark(self) -> tuple[int, int]:
        """Return the current end, for `cut`."""
        return self._file.tell(), self._count

    def cut(self, mark: tuple[int, int]) -> None:
        """Remove everything added after a mark."""
        place, self._count = mark
        self._file.seek(place)
        self._file.truncate()

    def print(self) -> None:
        """Write the list to stdout."""
        self._file.write("\n]\n" if self._count else "[]\n")
        self._file.seek(0)
        shutil.copyfileobj(self._file, sys.stdout)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where results go: an empty folder writes nothing, without document each prints a line.

    The scorer is the name of the run, for the CSV tables of poses. `names` are the names of the
    files of each input, without their endings.
    """

    folder: str
    names: Mapping[str, str]
    min_score: float
    scorer: str
    document: JsonList | None

    def place(self, source: str, ending: str) -> Path:
        """The file of a result."""
        return Path(self.folder) / f"{self.names[source]}{ending}"

    def write_poses(self, poses: Sequence[Any], place: Path, frames: Sequence[str] = ()) -> None:
        """Write a CSV table, if there are poses."""
        from muntin.prediction.video import write_poses

        if poses:
            write_poses(place, poses, scorer=self.scorer, frames=frames)


def plan_files(
    folder: str, kind: str, paths: list[Path], videos: list[str], *, force: bool, resume: bool
) -> tuple[dict[str, str], list[Path], list[str]]:
    """Name the results of inputs; give also the images and videos that are to be predicted.

    With `resume` these are the inputs whose files are not all there. Before any work an error tells
    that a file is an input, or exists and is not to be replaced.
    """
    from muntin.prediction.result_names import name_results
    from muntin.staging import refuse_existing

    if not folder:
        return {}, paths, videos
    poses = kind == "keypoints"
    endings = {
        str(path): (".png", *(("_labels.png",) * (kind == "segmentation"))) for path in paths
    }
    endings |= dict.fromkeys(videos, (".mp4", *((".csv",) * poses)))
    table = [POSES] if poses and paths else []
    names = name_results(endings, table)
    files = {
        source: [Path(folder) / f"{names[source]}{each}" for each in endings[source]]
        for source in names
    }
    done = {source for source in files if resume and all(p.exists() for p in files[source])}
    places = [place for each in files.values() for place in each]
    refuse_existing(places, endings, option="--out", force=force or resume)
    # The table holds all images of a call: it cannot be continued.
    refuse_existing([Path(folder) / name for name in table], endings, option="--out", force=force)
    if done:
        typer.echo(f"{plural(len(done), 'input')} left out, with results in {folder}", err=True)
    return (
        names,
        [path for path in paths if str(path) not in done],
        [video for video in videos if video not in done],
    )


Stream = Callable[[Iterator[Any]], Iterator[Any]]


def split_videos(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate videos from other inputs by their suffix."""
    from muntin.prediction.video import VIDEO_SUFFIXES

    videos = [p for p in places if p.lower().endswith(VIDEO_SUFFIXES) and "://" not in p]
    return videos, [place for place in places if place not in videos]


def predict_videos(
    stream: Stream, videos: Sequence[str], output: Output, *, strict: bool
) -> dict[str, int]:
    """Predict and count every frame of videos; results are called ``VIDEO#0``, ``VIDEO#1`` ...

    Unless `strict`, an unreadable video is skipped with a warning.
    """
    from muntin.errors import DataError, MuntinWarning

    found = {}
    for video in videos:
        mark = None if output.document is None else output.document.mark()
        try:
            found[video] = _predict_video(stream, video, output)
        except DataError as error:
            if output.document is not None and mark is not None:
                output.document.cut(mark)
            if strict:
                raise
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
    return found


def _predict_video(stream: Stream, video: str, output: Output) -> int:
    from muntin.prediction.predictor import draw
    from muntin.prediction.video import frame_rate, predict_video, write_video
    from muntin.results import Poses

    count = 0
    poses: list[Poses] = []

    def frames() -> Iterator[tuple[Any, Any]]:
        nonlocal count
        for pixels, found in predict_video(stream, video):
            result = dataclasses.replace(found.above(output.min_score), path=f"{video}#{count}")
            count += 1
            if output.document is not None:
                output.document.add(result.to_dict())
            if output.folder and isinstance(result, Poses):
                poses.append(result)
            yield pixels, result

    if not output.folder:
        for _ in frames():
            pass
        return count
    drawn = (draw(pixels, result) for pixels, result in frames())
    write_video(output.place(video, ".mp4"), drawn, frame_rate(video))
    output.write_poses(poses, output.place(video, ".csv"))
    return count


def write_pose_table(poses: Sequence[Any], output: Output) -> None:
    """Write the poses of images to ``poses.csv``, with paths relative to its folder."""
    places = [_relative_to(output.folder, one.path) for one in poses]
    output.write_poses(poses, Path(output.folder) / POSES, places)


def _relative_to(folder: str, path: str) -> str:
    """A path relative to a folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return Path(os.path.realpath(path)).as_posix()
