# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Keypoints as files hold them, looked at: x, y and visibility of each, in one row of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import Size

__all__ = ["WRONG_KEYPOINTS", "clean_keypoints", "hide_outside"]

WRONG_KEYPOINTS = "with a wrong number of keypoints"
BAD_KEYPOINTS = "with keypoints that are no numbers"


def clean_keypoints(
    values: object, count: int
) -> tuple[NDArray[np.float64] | None, tuple[str, str] | None]:
    """Read keypoints.

    Args:
        values: Three numbers a keypoint; nothing when none is known.
        count: Keypoints of an instance.

    Returns:
        (count, 3) x, y and visibility, or what is wrong: the kind and what came.
    """
    if values is None or (isinstance(values, Sequence) and not len(values)):
        return np.zeros((count, 3)), None
    if not isinstance(values, Sequence) or isinstance(values, str):
        return None, (BAD_KEYPOINTS, f"{values!r}"[:60])
    if len(values) != 3 * count:
        return None, (WRONG_KEYPOINTS, f"{len(values)} numbers, 3 x {count} needed")
    odd = [v for v in values if isinstance(v, bool) or not isinstance(v, int | float)]
    if odd or not all(map(math.isfinite, values)):
        got = odd[0] if odd else next(v for v in values if not math.isfinite(v))
        return None, (BAD_KEYPOINTS, f"{got!r}")
    points = np.array(values, np.float64).reshape(count, 3)
    strange = points[~np.isin(points[:, 2], (0, 1, 2)), 2]
    if len(strange):
        return None, ("with a visibility that is not 0, 1 or 2", f"{strange[0]:g}")
    points[points[:, 2] == 0] = 0
    return points, None


def hide_outside(points: NDArray[np.float64], size: Size) -> NDArray[np.int64]:
    """Make unknown what lies more than a pixel outside the image, and give the numbers of it."""
    limits = np.array([size[1], size[0]])
    outside = ((points[:, :2] < -1) | (points[:, :2] > limits)).any(axis=1) & (points[:, 2] > 0)
    points[outside] = 0
    return np.flatnonzero(outside)
