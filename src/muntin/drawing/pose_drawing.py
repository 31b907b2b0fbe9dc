# SPDX-License-Identifier: Apache-2.0
"""Poses drawn on their image: keypoints as dots, edges as lines, a legend below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from muntin.drawing.colours import colour_of
from muntin.drawing.fonts import clean_label
from muntin.drawing.layout import HALO, LARGEST, add_legend, fit_image, join_panels
from muntin.results import DEFAULT_SCORE_THRESHOLD, Poses
from muntin.samples import Objects, Skeleton

_SMALLEST = 480  # pixels, of the longer side
_MOST_NAMED = 30


def draw_poses(
    pixels: NDArray[np.uint8],
    found: Poses,
    *,
    min_score: float = DEFAULT_SCORE_THRESHOLD,
    largest: int = LARGEST,
) -> Image.Image:
    """Draw keypoints with enough score, edges between them, and a strip that names them.

    The best instance is on top; `largest` is the maximum longer side in pixels.
    """
    image = fit_image(pixels, _SMALLEST, largest)
    longer = max(pixels.shape[:2])
    scale = min(max(longer, _SMALLEST), largest) / longer
    pen = ImageDraw.Draw(image)
    radius = max(3.0, max(image.size) / 100)
    for row in range(len(found) - 1, -1, -1):
        _draw_instance(pen, found, row, scale, radius, min_score)
    names = found.keypoint_names[:_MOST_NAMED]
    rows = [(colour_of(k), clean_label(name, k), None) for k, name in enumerate(names)]
    return add_legend(image, rows, what="keypoints", head="" if rows else "nothing labelled")


def draw_pose_pair(pixels: NDArray[np.uint8], truth: Poses, found: Poses) -> Image.Image:
    """Draw annotated (from `annotated_poses`) beside predicted poses."""
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
            pen.line(line, fill=HALO, width=width + 2)
            pen.line(line, fill=colour_of(second), width=width)
    for k in np.flatnonzero(shown):
        x, y = points[k].tolist()
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=colour_of(int(k)), outline=HALO, width=1)
