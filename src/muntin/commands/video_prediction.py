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

__all__ = ["predict_videos", "split_videos", "write_pose_table"]


def split_videos(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate videos from other inputs by their suffix."""
    from muntin.prediction.video import VIDEO_SUFFIXES

    videos = [place for place in places if place.lower().endswith(VIDEO_SUFFIXES)]
    return videos, [place for place in places if place not in videos]


def predict_videos(
    predict: Callable[[list[Any]], list[Any]],
    videos: Sequence[str],
    out: str,
    min_score: float,
    *,
    scorer: str,
    strict: bool,
    document: JsonList | None,
) -> dict[str, int]:
    """Predict every frame of videos.

    Args:
        predict: The predictor.
        videos: The videos.
        out: Folder for annotated videos and, for poses, CSV tables; "" writes nothing.
        min_score: Minimum score of results.
        scorer: Name of the run.
        strict: Whether an unreadable video is an error; else it is skipped with a warning.
        document: Receives one result per frame, with path ``VIDEO#0``, ``VIDEO#1`` ...; may be
            None.

    Returns:
        Number of frames of each video.
    """
    from muntin.errors import DataError, MuntinWarning

    found = {}
    for video in videos:
        mark = None if document is None else document.mark()
        try:
            found[video] = _predict_video(predict, video, out, min_score, scorer, document)
        except DataError as error:
            if document is not None and mark is not None:
                document.cut(mark)
            if strict:
                raise
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
    return found


def _predict_video(
    predict: Callable[[list[Any]], list[Any]],
    video: str,
    out: str,
    min_score: float,
    scorer: str,
    document: JsonList | None,
) -> int:
    from muntin.prediction.predictor import draw
    from muntin.prediction.video import frame_rate, predict_video, write_video
    from muntin.results import Poses

    count = 0
    poses: list[Poses] = []

    def frames() -> Iterator[tuple[Any, Any]]:
        nonlocal count
        for pixels, found in predict_video(predict, video):
            result = dataclasses.replace(found.above(min_score), path=f"{video}#{count}")
            count += 1
            if document is not None:
                document.add(result.to_dict())
            if out and isinstance(result, Poses):
                poses.append(result)
            yield pixels, result

    if not out:
        for _ in frames():
            pass
        return count
    stem = Path(video).stem
    drawn = (draw(pixels, result) for pixels, result in frames())
    write_video(Path(out) / f"{stem}.mp4", drawn, frame_rate(video))
    _write(poses, Path(out) / f"{stem}.csv", scorer, [])
    return count


def write_pose_table(poses: Sequence[Any], out: str, *, scorer: str) -> None:
    """Write the poses of images to ``poses.csv``, with paths relative to its folder."""
    _write(poses, Path(out) / "poses.csv", scorer, [_relative_to(out, one.path) for one in poses])


def _relative_to(folder: str, path: str) -> str:
    """A path relative to a folder, with forward slashes."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # on another drive
        return Path(path).resolve().as_posix()


def _write(poses: Sequence[Any], path: Path, scorer: str, frames: Sequence[str]) -> None:
    from muntin.prediction.pose_csv import write_poses

    if poses:
        write_poses(path, poses, scorer=scorer, frames=frames)
