# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Write poses in the CSV format of DeepLabCut predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from muntin.results import Poses
from muntin.runs import write_text

__all__ = ["write_poses"]


def write_poses(
    path: str | Path, poses: Sequence[Poses], *, scorer: str, frames: Sequence[str] = ()
) -> Path:
    """Write poses, one row a frame: x, y and likelihood of each keypoint, in pixels.

    If a frame has several instances, a row "individuals" numbers them, independently in each frame.
    Cells of missing instances are empty. Rows are named by `frames`, or numbered from 0.
    """
    path = Path(path)
    names = poses[0].keypoint_names if poses else ()
    max_instances = max([1, *(len(one) for one in poses)])
    columns = [
        (f"individual{number + 1}", name, axis)
        for number in range(max_instances)
        for name in names
        for axis in ("x", "y", "likelihood")
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["scorer", *(scorer for _ in columns)])
    if max_instances > 1:
        writer.writerow(["individuals", *(person for person, _, _ in columns)])
    writer.writerow(["bodyparts", *(name for _, name, _ in columns)])
    writer.writerow(["coords", *(axis for _, _, axis in columns)])
    for number, one in enumerate(poses):
        cells = [f"{value:.3f}" for value in np.ravel(one.keypoints)]
        rest = [""] * (len(columns) - len(cells))
        writer.writerow([frames[number] if frames else number, *cells, *rest])
    write_text(path, text.getvalue())
    return path
