# SPDX-License-Identifier: Apache-2.0
"""Object keypoint similarity (OKS), and suppression of duplicate poses.

OKS is exp(-d^2 / (2 area (2 sigma)^2)), averaged over keypoints, as in COCO's evaluation. Compared
with pycocotools in tests/metrics/test_pose.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import Size

DEFAULT_SIGMA = 0.05
"""Sigma of keypoints for which the data set defines none."""

_SHARE = 0.53  # area of a person / area of its box in COCO, as in OpenMMLab
_MIN_SIDE = 0.05  # of the image's diagonal
# Published systems use 0.9, which two slightly different boxes of one small instance do not reach.
_MAX_SIMILARITY = 0.6


def similarity(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    area: float,
    sigmas: NDArray[np.float64],
) -> float:
    """OKS of two poses (P, 2); `area` in square pixels. NaN keypoints of either do not count."""
    distance = ((first - second) ** 2).sum(axis=1)
    valid = np.isfinite(distance)
    if not valid.any():
        return 0.0
    variance = (2 * sigmas[valid]) ** 2
    return float(np.exp(-distance[valid] / variance / (area + 1e-9) / 2).mean())


def estimate_area(
    points: NDArray[np.float64], box: NDArray[np.float64] | None, diagonal: float
) -> float:
    """Estimate the area of an instance without annotated area: 0.53 of its box (x1, y1, x2, y2).

    Without a box it is that of the points, with sides of at least 0.05 of the image's diagonal.
    """
    if box is not None:
        return _SHARE * float((box[2:] - box[:2]).prod())
    sides = np.ptp(points, axis=0) if len(points) else np.zeros(2)
    return _SHARE * float(np.maximum(sides, _MIN_SIDE * diagonal).prod())


def clip_points(points: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Clip points (..., 2) to the pixels of an image of (height, width)."""
    return np.clip(points, 0.0, [size[1] - 1.0, size[0] - 1.0])


def suppress_poses(
    points: NDArray[np.float64],
    scores: NDArray[np.float64],
    areas: NDArray[np.float64],
    sigmas: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Remove poses (N, P, 2) that duplicate a better one (OKS-NMS); gives indices, best first."""
    # Greedy, as NMS: a pose survives if it is unlike every better one.
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        area = areas[place]
        if all(
            similarity(points[place], points[other], (area + areas[other]) / 2, sigmas)
            <= _MAX_SIMILARITY
            for other in kept
        ):
            kept.append(int(place))
    return np.array(kept, np.int64)
