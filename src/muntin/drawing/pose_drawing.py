# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Poses drawn on their image: keypoints as dots, edges as lines, a legend below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.colours import colour_of
from muntin.drawing.fonts import clean_label
from muntin.drawing.layout import add_legend, join_panels
from muntin.results import DEFAULT_SCORE_THRESHOLD, Poses
from muntin.samples import Objects, Skeleton

__all__ = ["annotated_poses", "draw_errors", "draw_pose_pair", "draw_poses"]

_LARGEST, _SMALLEST = 1280, 480  # pixels, of the longer side
_HALO = (20, 20, 20)
_MOST_NAMED = 30


def draw_poses(
    pixels: NDArray[np.uint8],
    found: Poses,
    *,
    min_score: float = DEFAULT_SCORE_THRESHOLD,
    largest: int = _LARGEST,
) -> Image.Image:
    """Draw keypoints with enough score, and edges between them.

    Args:
        pixels: (H, W, 3) uint8, or grey: the image of `found`.
        found: Drawn with the best instance on top.
        min_score: Score of a keypoint from which it is drawn.
        largest: Maximum longer side of the returned image in pixels.

    Returns:
        A new image with a strip below that names the keypoints.
    """
    grey = pixels.ndim == 2 or pixels.shape[2] == 1
    image = Image.fromarray(pixels.reshape(pixels.shape[:2]) if grey else pixels).convert("RGB")
    longer = max(image.size)
    scale = min(max(longer, _SMALLEST), largest) / longer
    if scale != 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    radius = max(3.0, max(image.size) / 100)
    for row in range(len(found) - 1, -1, -1):
        _draw_instance(pen, found, row, scale, radius, min_score)
    names = found.keypoint_names[:_MOST_NAMED]
    rows = [(colour_of(k), clean_label(name, k)) for k, name in enumerate(names)]
    return add_legend(image, rows, what="keypoints")


def draw_pose_pair(pixels: NDArray[np.uint8], truth: Poses, found: Poses) -> Image.Image:
    """Draw annotated beside predicted poses.

    Args:
        pixels: (H, W, 3) uint8, or grey: the image of both.
        truth: The annotation, left; from `annotated_poses`.
        found: The prediction, right.
    """
    return join_panels([draw_poses(pixels, poses, largest=960) for poses in (truth, found)])


def annotated_poses(objects: Objects, rows: Sequence[int], skeleton: Skeleton) -> Poses:
    """Convert annotated instances to poses: visible keypoints score 1, others 0."""
    assert objects.keypoints is not None, "pose data has keypoints"
    chosen = list(rows)
    points = objects.keypoints[chosen].copy()
    points[:, :, 2] = points[:, :, 2] > 0
    return Poses(
        path="",
        size=(0, 0),
        keypoints=points,
        scores=np.ones(len(chosen)),
        keypoint_names=skeleton.names,
        edges=skeleton.edges,
    )


def draw_errors(distances: NDArray[np.float64], names: Sequence[str], title: str) -> Figure:
    """Draw keypoint errors: a histogram of all, and the median of each keypoint.

    Args:
        distances: (N, P) pixels; NaN where a keypoint is not visible, infinite where it was not
            predicted.
        names: Of the keypoints.
        title: Title of the figure.
    """
    finite = distances[np.isfinite(distances)]
    figure = Figure(figsize=(10, max(3.4, 0.22 * len(names) + 1.2)), layout="constrained")
    left, right = figure.subplots(1, 2)
    upper = float(np.percentile(finite, 99)) if len(finite) else 1.0
    beyond = int((finite > upper).sum())
    left.hist(finite[finite <= upper], bins=40, color="#0072B2")
    if len(finite):
        for share, style in ((50, "-"), (90, "--")):
            value = float(np.percentile(finite, share))
            left.axvline(value, color="#D55E00", ls=style, label=f"{share} %: {value:.1f} px")
        left.legend(frameon=False, fontsize=8)
    note = f" ({beyond} beyond the right edge)" if beyond else ""
    left.set_xlabel(f"error in pixels of the original{note}")
    left.set_ylabel("keypoints")
    spread = []
    for column in distances.T:
        fine = column[np.isfinite(column)]
        spread.append(np.percentile(fine, (25, 50, 75)) if len(fine) else (np.nan,) * 3)
    quartiles = np.array(spread).reshape(-1, 3)
    order = np.argsort(-np.nan_to_num(quartiles[:, 1], nan=-1), kind="stable")
    places = np.arange(len(order))
    chosen = quartiles[order]
    errors = np.nan_to_num(np.abs(chosen[:, [0, 2]] - chosen[:, [1]]).T)
    right.barh(places, np.nan_to_num(chosen[:, 1]), xerr=errors, color="#56B4E9", ecolor="#666666")
    right.set_yticks(places, [clean_label(names[k], int(k)) for k in order], fontsize=8)
    right.invert_yaxis()
    right.set_xlabel("median error in pixels (lines: interquartile range)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_instance(
    pen: ImageDraw.ImageDraw, found: Poses, row: int, scale: float, radius: float, min_score: float
) -> None:
    points = (found.keypoints[row, :, :2] + 0.5) * scale
    shown = (found.keypoints[row, :, 2] >= min_score) & np.isfinite(points).all(axis=1)
    if found.boxes is not None:
        left, top, right, bottom = (found.boxes[row] * scale).tolist()
        pen.rectangle((left, top, right, bottom), outline=(230, 230, 230), width=1)
    for first, second in found.edges:
        if shown[first] and shown[second]:
            line = [*points[first].tolist(), *points[second].tolist()]
            width = max(2, round(radius * 0.6))
            pen.line(line, fill=_HALO, width=width + 2)
            pen.line(line, fill=colour_of(second), width=width)
    for k in np.flatnonzero(shown):
        x, y = points[k].tolist()
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=colour_of(int(k)), outline=_HALO, width=1)
