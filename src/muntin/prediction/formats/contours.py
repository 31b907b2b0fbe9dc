# SPDX-License-Identifier: Apache-2.0
"""Outlines of masks as polygons, for formats that know no other masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray

from muntin.run_lengths import RunLengths, box_of, decode_mask

Ring = NDArray[np.float64]
"""(N, 2) corners of a closed polygon, x and y in pixels; (0, 0) is the corner of the image."""

_SEARCHED = 500  # corners of a ring between which the shortest bridge is sought


def find_rings(mask: RunLengths) -> list[list[Ring]]:
    """Give the rings of each connected area of a mask, as `trace_rings` does."""
    piece, left, top = cut_out(mask)
    corner = np.array([left, top])
    return [[ring + corner for ring in rings] for rings in trace_rings(piece)]


def trace_rings(piece: NDArray[np.generic]) -> list[list[Ring]]:
    """Give the rings of each connected area of a mask: the outer one, then those of its holes.

    They run through the middle of the edges between pixels, so that the centre of a pixel is inside
    if and only if the mask has it.
    """
    padded = np.pad(piece, 1).astype(np.float64)
    filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    return [
        [_straighten(points[a:b] - 0.5) for a, b in pairwise(ends)]
        for points, ends in zip(*filled, strict=True)
    ]


def cut_out(mask: RunLengths) -> tuple[NDArray[np.generic], int, int]:
    """Give the part of a mask inside its box, and the left column and the top row of that."""
    height, width = mask["size"]
    left, top, right, bottom = map(int, box_of(mask, (height, width)))
    return decode_mask(mask)[top:bottom, left:right], left, top


def _straighten(ring: Ring) -> Ring:
    """Leave out the last corner, which is the first again, and those on straight lines."""
    ring = ring[:-1]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def join_rings(rings: Sequence[Ring]) -> Ring:
    """Join rings to one, by bridges without width there and back between near corners."""
    joined = rings[0]
    for ring in rings[1:]:
        steps = [ceil(len(one) / _SEARCHED) for one in (joined, ring)]
        gaps = joined[:: steps[0], None] - ring[None, :: steps[1]]
        near = np.unravel_index((gaps**2).sum(axis=2).argmin(), gaps.shape[:2])
        here, there = (int(place) * step for place, step in zip(near, steps, strict=True))
        turned = np.roll(ring, -there, axis=0)
        joined = np.concatenate([joined[: here + 1], turned, turned[:1], joined[here:]])
    return joined
