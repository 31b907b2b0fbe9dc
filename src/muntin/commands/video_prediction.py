# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin predict``: videos, and CSV tables of poses."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from muntin.commands.json_output import JsonList

__all__ = ["Output", "predict_videos", "split_videos", "write_pose_table"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """Where results go: an empty folder writes nothing, without document each prints a line.

    The scorer is the name of the run, for the CSV tables of poses.
    """

    folder: str
    min_score: float
    scorer: str
    document: JsonList | None

    def write_poses(self, poses: Sequence[Any], name: str, frames: Sequence[str] = ()) -> None:
        """Write a CSV table, if there are poses."""
        from muntin.prediction.pose_csv import write_poses

        if poses:
            write_poses(Path(self.folder) / name, poses, scorer=self.scorer, frames=frames)


Stream = Callable[[Iterator[Any]], Iterator[Any]]


def split_videos(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate videos from other inputs by their suffix."""
    from muntin.prediction.video import VIDEO_SUFFIXES

    videos = [place for place in places if place.lower().endswith(VIDEO_SUFFIXES)]
    return videos, [place for place in places if place not in videos]


def predict_videos(
    stream: Stream,
    videos: Sequence[str],
    output: Output,
    *,
    strict: bool,
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
    stem = Path(video).stem
    drawn = (draw(pixels, result) for pixels, result in frames())
    write_video(Path(output.folder) / f"{stem}.mp4", drawn, frame_rate(video))
    output.write_poses(poses, f"{stem}.csv")
    return count


def write_pose_table(poses: Sequence[Any], output: Output) -> None:
    """Write the poses of images to ``poses.csv``, with paths relative to its folder."""
    places = [_relative_to(output.folder, one.path) for one in poses]
    output.write_poses(poses, "poses.csv", places)


def _relative_to(folder: str, path: str) -> str:
    """A path relative to a folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return Path(path).resolve().as_posix()
