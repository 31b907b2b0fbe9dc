# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""How alike two sets of keypoints are (OKS), and which of several are one subject found twice.

Source:
    COCO's keypoint evaluation: exp(-d^2 / (2 area (2 sigma)^2)), the mean over keypoints; compared
    with pycocotools in tests/metrics/test_pose.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import Size

__all__ = ["DEFAULT_SIGMA", "clip_points", "estimate_area", "similarity", "suppress_poses"]

DEFAULT_SIGMA = 0.05
"""Of keypoints for which a data set says nothing."""

_SHARE = 0.53  # of its box that a person covers in COCO, as OpenMMLab has it
_MIN_SIDE = 0.05  # of the image's diagonal


def similarity(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    area: float,
    sigmas: NDArray[np.float64],
) -> float:
    """OKS of two subjects.

    Args:
        first: (P, 2) points.
        second: The same.
        area: In pixels.
        sigmas: (P,); NaN points are left out.
    """
    distance = ((first - second) ** 2).sum(axis=1)
    told = np.isfinite(distance)
    if not told.any():
        return 0.0
    variance = (2 * sigmas[told]) ** 2
    return float(np.exp(-distance[told] / variance / (area + 1e-9) / 2).mean())


def estimate_area(
    points: NDArray[np.float64], box: NDArray[np.float64] | None, diagonal: float
) -> float:
    """Area of a subject for which nobody says it: 0.53 of its box.

    Args:
        points: (N, 2), the known ones.
        box: Left, top, right and bottom edge; None takes the tight box of the points, with sides of
            at least 0.05 of the diagonal.
        diagonal: Of the image in pixels.
    """
    if box is not None:
        return _SHARE * float((box[2:] - box[:2]).prod())
    sides = np.ptp(points, axis=0) if len(points) else np.zeros(2)
    return _SHARE * float(np.maximum(sides, _MIN_SIDE * diagonal).prod())


def clip_points(points: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Move points (..., 2) that lie outside an image of (height, width) to its nearest pixel."""
    return np.clip(points, 0.0, [size[1] - 1.0, size[0] - 1.0])


def suppress_poses(
    points: NDArray[np.float64],
    scores: NDArray[np.float64],
    areas: NDArray[np.float64],
    sigmas: NDArray[np.float64],
    *,
    max_similarity: float = 0.6,
) -> NDArray[np.int64]:
    """Keep, best first, the subjects that are not like a better one.

    Args:
        points: (N, P, 2).
        scores: Of each.
        areas: Of each in pixels.
        sigmas: (P,).
        max_similarity: OKS above which two are one. Published systems take 0.9, which the poses of two
            boxes around one small subject, a few pixels apart, do not reach.

    Returns:
        Places of those that are kept.
    """
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        area = areas[place]
        if all(
            similarity(points[place], points[other], (area + areas[other]) / 2, sigmas)
            <= max_similarity
            for other in kept
        ):
            kept.append(int(place))
    return np.array(kept, np.int64)
