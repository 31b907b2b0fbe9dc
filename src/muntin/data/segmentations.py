# SPDX-License-Identifier: Apache-2.0
"""Masks as annotations hold them: is one usable, and where is it?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from muntin.run_lengths import Segmentation, decode_mask, to_run_lengths
from muntin.shapes import Size

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""


def clean_segmentation(segmentation: Any, size: Size) -> tuple[Segmentation | None, str]:  # noqa: ANN401
    """Look at a mask before anything is done with it: the library takes whatever it is given.

    Files hold polygons (x, y, x, y ...), one polygon that is not in a list, or run lengths;
    compressed or not. Gives the mask, None where there is none or it is broken, and what is wrong
    with it, "" if nothing is. Polygons of fewer than three points are dropped beside others that
    have more.

    Example:
        >>> clean_segmentation([[0, 0, 2, 0, 2]], (4, 4))
        (None, 'an odd number of coordinates (5)')
    """
    if segmentation in (None, [], {}, [[]]):
        return None, ""
    if isinstance(segmentation, dict):
        fault = _fault_of_run_lengths(segmentation, size)
        return (None, fault) if fault else (segmentation, "")
    if not isinstance(segmentation, list):
        return None, f"a {type(segmentation).__name__} is no mask"
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        if fault := _fault_of_polygon(polygon):
            return None, fault
    usable = [polygon for polygon in polygons if len(polygon) >= 6]
    return (usable, "") if usable else (None, "fewer than 3 points")


def box_of(segmentation: Segmentation, size: Size) -> Edges:
    """Find the edges of a mask that `clean_segmentation` gave; of zero area when it is empty."""
    if isinstance(segmentation, list):
        xs = [x for polygon in segmentation for x in polygon[::2]]
        ys = [y for polygon in segmentation for y in polygon[1::2]]
        return float(min(xs)), float(min(ys)), float(max(xs)), float(max(ys))
    bitmap = decode_mask(to_run_lengths(segmentation, size))
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if not len(rows):
        return 0.0, 0.0, 0.0, 0.0
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _fault_of_polygon(polygon: Any) -> str:  # noqa: ANN401
    if not isinstance(polygon, list):
        return "numbers and polygons are mixed"
    if len(polygon) % 2:
        return f"an odd number of coordinates ({len(polygon)})"
    try:
        finite = all(map(math.isfinite, polygon))
    except TypeError:
        return "a coordinate is not a number"
    return "" if finite else "a coordinate is not finite"


def _fault_of_run_lengths(mask: dict[str, Any], size: Size) -> str:
    counts, declared = mask.get("counts"), mask.get("size")
    if declared != [*size]:
        return f"run lengths of size {declared}, the image has {[*size]} (height, width)"
    covered = -1
    if isinstance(counts, list):
        if all(isinstance(count, int) and count >= 0 for count in counts):
            covered = sum(counts)
    elif isinstance(counts, str) and counts:
        covered = _count_pixels(counts)
    whole = covered == size[0] * size[1]
    return "" if whole else "the run lengths do not add up to the image"


def _count_pixels(counts: str) -> int:
    """Add up compressed run lengths; -1 when they are broken.

    Source:
        rleFrString in pycocotools' maskApi.c: 5 bits per character, the lowest first, a sixth marks
        that more follow; from the fourth run on, the difference to the run two before is kept.
    """
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return -1
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.r_[0, ends[:-1] + 1]
    digits = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if digits.max() > 6:
        return -1
    values = np.add.reduceat((codes & 31) << (5 * digits), starts)
    negative = (codes[ends] & 16) > 0
    values -= np.where(negative, np.int64(1) << (5 * (digits[ends] + 1)), 0)
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    return int(runs.sum()) if runs.min() >= 0 else -1
