# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin predict``: videos, and tables of poses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["predict_clip", "split_clips", "write_table"]


def split_clips(places: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell videos from everything else by their names."""
    from muntin.prediction.video import VIDEO_SUFFIXES

    clips = [place for place in places if place.lower().endswith(VIDEO_SUFFIXES)]
    return clips, [place for place in places if place not in clips]


def predict_clip(
    see: Callable[[list[Any]], list[Any]], clip: str, out: str, least: float, *, scorer: str
) -> list[Any]:
    """Predict every frame of a video.

    Args:
        see: The predictor.
        clip: The video.
        out: Folder for the video with its results and, of poses, the table; "" = none.
        least: Score from which results are told.
        scorer: Name of the run.

    Returns:
        A result a frame; its path is that of the video, and #0, #1 ...
    """
    from muntin.prediction import draw
    from muntin.prediction.video import frame_rate, predict_video, write_video

    results: list[Any] = []

    def frames() -> Iterator[tuple[Any, Any]]:
        for number, (pixels, result) in enumerate(predict_video(see, clip)):
            results.append(dataclasses.replace(result.above(least), path=f"{clip}#{number}"))
            yield pixels, results[-1]

    if not out:
        for _ in frames():
            pass
        return results
    stem = Path(clip).stem
    drawn = (draw(pixels, result) for pixels, result in frames())
    write_video(Path(out) / f"{stem}.mp4", drawn, frame_rate(clip))
    _write(results, Path(out) / f"{stem}.csv", scorer, [])
    return results


def write_table(results: Sequence[Any], out: str, *, scorer: str) -> None:
    """Write the poses of pictures into ``poses.csv``; other results have none."""
    _write(results, Path(out) / "poses.csv", scorer, [result.path for result in results])


def _write(results: Sequence[Any], path: Path, scorer: str, frames: Sequence[str]) -> None:
    from muntin.prediction.tables import write_poses
    from muntin.results import Poses

    if results and all(isinstance(result, Poses) for result in results):
        write_poses(path, results, scorer=scorer, frames=frames)
