# SPDX-License-Identifier: Apache-2.0
"""Masks as Label Studio stores them: polygons along their edges, and packed runs of brushes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import Bool, Float

MOST_PARTS = 100
"""Polygons of one mask; further parts, which are smaller, are left out."""

_SMALLEST_PART = 0.02
_MOST_STEPS = 200_000
_TOLERANCE = 1.0
_RELATIVE_TOLERANCE = 0.001
_RUN_BITS = np.array([3, 4, 8, 16])
_LONGEST_RUN = 2**16
_WORD_BITS = 8
_BLOCK = 2**16


def trace_mask(mask: Bool[np.ndarray, "H W"]) -> list[NDArray[np.float64]]:
    """Trace the outer edges of the parts of a mask, the largest part first.

    Parts that touch at a corner alone are two; holes are filled. Parts smaller than 2 % of the
    largest are left out. Each polygon stays within a pixel of the edge, or a thousandth of its own
    side, of a mask that is thinned out if more than 200,000 sides of pixels are along its edges.

    Returns:
        x and y of the corners of each polygon, in pixels; (0, 0) is the corner of the first pixel.

    Example:
        >>> [part.tolist() for part in trace_mask(np.ones((2, 3), bool))]
        [[[0.0, 0.0], [3.0, 0.0], [3.0, 2.0], [0.0, 2.0]]]
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    step = 1
    while (edges := _list_edges(np.pad(part[::step, ::step], 1)))[0].size > _MOST_STEPS:
        step *= 2
    outer = [(area, corners) for corners in _follow(*edges) if (area := _area(corners)) > 0]
    outer.sort(key=lambda each: -each[0])
    kept = [corners for area, corners in outer if area >= _SMALLEST_PART * outer[0][0]]
    return [step * _simplify(each) + (left, top) for each in kept[:MOST_PARTS]]


def _list_edges(
    padded: Bool[np.ndarray, "h w"],
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]]:
    """List the sides of pixels between inside and outside: start, direction, and the grid's size.

    Each side goes around its pixel clockwise; direction 0 is right, 1 down, 2 left, 3 up. Starts
    are flat indices of corners.
    """
    height, width = padded.shape
    inside = padded[1:-1, 1:-1]
    neighbours = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    starts, directions = [], []
    for direction, neighbour in enumerate(neighbours):
        y, x = np.nonzero(inside & ~neighbour)
        corner_y, corner_x = y + (direction in (2, 3)), x + (direction in (1, 2))
        starts.append(corner_y * width + corner_x)
        directions.append(np.full(len(y), direction))
    return np.concatenate(starts), np.concatenate(directions), (height, width)


def _follow(
    starts: NDArray[np.int64], directions: NDArray[np.int64], size: tuple[int, int]
) -> list[NDArray[np.float64]]:
    """Join sides to closed lines, and keep their corners."""
    height, width = size
    at = np.full((4, height * width), -1)
    at[directions, starts] = np.arange(len(starts))
    ends = starts + np.array([1, width, -1, -width])[directions]
    # Where two parts touch, a turn to the right stays at the same pixel.
    turns = np.stack([at[(directions + turn) % 4, ends] for turn in (1, 0, 3)])
    following = np.where(turns[0] >= 0, turns[0], np.where(turns[1] >= 0, turns[1], turns[2]))
    steps = following.tolist()
    seen = bytearray(len(steps))
    lines = []
    for first in range(len(steps)):
        line = []
        place = first
        while not seen[place]:
            seen[place] = 1
            line.append(place)
            place = steps[place]
        if line:
            order = np.array(line)
            turned = directions[order] != np.roll(directions[order], 1)
            corners = starts[order[turned]]
            lines.append(np.stack([corners % width, corners // width], 1).astype(float))
    return lines


def _area(corners: Float[np.ndarray, "points 2"]) -> float:
    """Area within a closed line; negative around a hole."""
    x, y = corners.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _simplify(corners: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "fewer 2"]:
    """Leave out corners of a closed line that lie close to the line through the others.

    A corner is close within a pixel, or within a thousandth of the longer side of all.

    Source:
        Douglas and Peucker 1973, from the first corner and the one that lies farthest from it.
    """
    tolerance = max(_TOLERANCE, _RELATIVE_TOLERANCE * float(np.ptp(corners, axis=0).max()))
    far = int(np.hypot(*(corners - corners[0]).T).argmax())
    closed = np.concatenate([corners, corners[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, far, -1]] = True
    waiting = [(0, far), (far, len(corners))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        between = closed[first + 1 : last] - closed[first]
        along = closed[last] - closed[first]
        length = max(float(np.hypot(*along)), 1e-9)
        away = np.abs(between[:, 0] * along[1] - between[:, 1] * along[0]) / length
        worst = int(away.argmax())
        if away[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
    # Three corners at least, of what is a pixel wide too.
    return corners[keep[:-1]] if keep[:-1].sum() > 2 else corners


def pack_mask(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """Pack a mask as Label Studio's brush does: bytes of runs of its red, green, blue and alpha.

    Each pixel counts as four words of 255, or 0 outside, row by row. A stream of bits holds the
    number of words (32), their width less 1 (5), four widths of counts less 1 (4 each), and then
    for each run: 1, which of the widths (2), the count less 1, and the word (8).

    Source:
        The description of @thi.ng/rle-pack, with which Label Studio reads it.

    Example:
        >>> pack_mask(np.ones((1, 1), bool))
        [0, 0, 0, 4, 57, 27, 252, 127, 224]
    """
    flat = np.ascontiguousarray(mask).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.r_[0, changes, flat.size]
    lengths = 4 * np.diff(bounds)
    # What is longer than a count can say is several runs.
    pieces = -(-lengths // _LONGEST_RUN)
    words = np.repeat(flat[bounds[:-1]].astype(np.int64) * 255, pieces)
    counts = np.full(len(words), _LONGEST_RUN)
    counts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST_RUN
    bits = [_to_bits(4 * flat.size, 32), _to_bits(_WORD_BITS - 1, 5)]
    bits += [_to_bits(int(width) - 1, 4) for width in _RUN_BITS]
    for start in range(0, len(words), _BLOCK):
        bits.append(_pack_runs(counts[start : start + _BLOCK], words[start : start + _BLOCK]))
    packed: list[int] = np.packbits(np.concatenate(bits)).tolist()
    return packed


def _to_bits(number: int, width: int) -> NDArray[np.uint8]:
    return np.array([number >> place & 1 for place in reversed(range(width))], np.uint8)


def _pack_runs(counts: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.uint8]:
    kinds = np.searchsorted(2**_RUN_BITS, counts)
    count_bits = _RUN_BITS[kinds]
    code = ((4 + kinds) << count_bits | (counts - 1)) << _WORD_BITS | words
    places = np.arange(3 + _RUN_BITS[-1] + _WORD_BITS)[::-1]
    bits = (code[:, None] >> places & 1).astype(np.uint8)
    return bits[places < (3 + count_bits + _WORD_BITS)[:, None]]
