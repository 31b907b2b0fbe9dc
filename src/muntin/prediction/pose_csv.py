# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Poses as a CSV of predictions of DeepLabCut, so that tools of that field can read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muntin.errors import RunError
from muntin.results import Poses
from muntin.system_errors import cannot_write

__all__ = ["write_poses"]


def write_poses(
    path: str | Path, poses: Sequence[Poses], *, scorer: str, frames: Sequence[str] = ()
) -> Path:
    """Write poses, one row a frame: x, y and likelihood of each keypoint, in pixels.

    Where a frame has several subjects, a row "individuals" tells them apart; they are numbered anew
    in each frame. Cells of subjects that are not there are empty.

    Args:
        path: The new file.
        poses: Of each frame.
        scorer: Who says so: the name of the run.
        frames: What the rows are named; numbers from 0 when left out.

    Returns:
        The file.

    Raises:
        RunError: It cannot be written.
    """
    path = Path(path)
    names = poses[0].keypoint_names if poses else ()
    most = max([1, *(len(one) for one in poses)])
    columns = [
        (f"individual{number + 1}", name, axis)
        for number in range(most)
        for name in names
        for axis in ("x", "y", "likelihood")
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scorer", *(scorer for _ in columns)])
    if most > 1:
        writer.writerow(["individuals", *(person for person, _, _ in columns)])
    writer.writerow(["bodyparts", *(name for _, name, _ in columns)])
    writer.writerow(["coords", *(axis for _, _, axis in columns)])
    for number, one in enumerate(poses):
        cells = [f"{value:.3f}" for value in np.ravel(one.keypoints)]
        rest = [""] * (len(columns) - len(cells))
        writer.writerow([frames[number] if frames else number, *cells, *rest])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.getvalue(), encoding="utf-8")
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error
    return path
