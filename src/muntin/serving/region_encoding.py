# SPDX-License-Identifier: Apache-2.0
"""Masks as Label Studio stores them: polygons along their edges, and packed runs of brushes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muntin.prediction.formats.contours import Ring, cut_out, trace_rings
from muntin.run_lengths import RunLengths
from muntin.shapes import Bool

MOST_PARTS = 100
"""Polygons of one mask; further parts, which are smaller, are left out."""

_SMALLEST_PART = 0.02
_MOST_SIDES = 200_000
_TOLERANCE = 1.0
_RELATIVE_TOLERANCE = 0.001
_RUN_BITS = np.array([3, 4, 8, 16])
_LONGEST_RUN = 2**16
_WORD_BITS = 8
_BLOCK = 2**16


def trace_mask(mask: RunLengths) -> list[Ring]:
    """Trace the outer edges of the parts of a mask, the largest part first.

    Parts that touch at a corner alone are two; holes are filled. Parts smaller than 2 % of the
    largest are left out. Each polygon stays within a pixel of the edge, or a thousandth of its own
    side, of a mask that is thinned out if more than 200,000 sides of pixels are along its edges.

    Returns:
        x and y of the corners of each polygon, in pixels; (0, 0) is the corner of the first pixel.
    """
    piece, left, top = cut_out(mask)
    step = 1
    while _count_sides(piece[::step, ::step]) > _MOST_SIDES:
        step *= 2
    outer = [(_area(rings[0]), rings[0]) for rings in trace_rings(piece[::step, ::step])]
    outer.sort(key=lambda each: -each[0])
    kept = [ring for area, ring in outer if area >= _SMALLEST_PART * outer[0][0]]
    return [step * _simplify(ring) + (left, top) for ring in kept[:MOST_PARTS]]


def _count_sides(piece: NDArray[np.generic]) -> int:
    """Count the sides of pixels between inside and outside."""
    padded = np.pad(piece, 1)
    return int(sum(np.count_nonzero(np.diff(padded, axis=axis)) for axis in (0, 1)))


def _area(corners: Ring) -> float:
    """Area within a closed line."""
    x, y = corners.T
    return abs(float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2))


def _simplify(corners: Ring) -> Ring:
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

    Examples:
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
