# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Masks of objects as run lengths, the form in which COCO keeps them.

A run-length mask is ``{"size": [H, W], "counts": text}``; the text is pycocotools' compressed form
of the lengths, column by column. It is small however large the image is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from muntin.shapes import Bool, Size

__all__ = [
    "Segmentation",
    "decode_mask",
    "encode_mask",
    "mask_area",
    "mask_iou",
    "shift_mask",
    "to_run_lengths",
]

RunLengths = dict[str, Any]

Segmentation = list[list[float]] | dict[str, Any]
"""A mask as COCO writes it: polygons (x, y, x, y ...), or run lengths with `size` and `counts`."""


def encode_mask(
    bitmap: Bool[np.ndarray, "h w"], *, size: Size | None = None, top: int = 0, left: int = 0
) -> RunLengths:
    """Encode a mask, or a part of a larger mask that is empty elsewhere.

    Args:
        bitmap: The part that may be set.
        size: (height, width) of the whole mask; of `bitmap` when left out.
        top: Row of the whole mask at which `bitmap` begins.
        left: The same for columns.

    Returns:
        The run lengths of the whole mask. The cost grows with the part, not with the whole.

    Example:
        >>> whole = encode_mask(np.ones((1, 2), bool), size=(3, 4), top=1, left=1)
        >>> decode_mask(whole).astype(int).tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    high, wide = bitmap.shape
    height, width = size or (high, wide)
    # A row of zeros below ends every run inside its column.
    padded = np.zeros((high + 2, wide), np.int8)
    padded[1:-1] = bitmap
    steps = np.diff(padded.ravel(order="F"))
    # Place p of the padded columns is row p % (high + 2) - 1 of column p // (high + 2).
    starts, ends = (np.flatnonzero(steps == step) for step in (1, -1))
    runs = [
        (place // (high + 2) + left) * height + place % (high + 2) + top for place in (starts, ends)
    ]
    begin, end = runs[0].astype(np.int64), runs[1].astype(np.int64)
    # A run to the foot of a column and one from the head of the next are one run.
    joined = begin[1:] == end[:-1]
    begin, end = begin[np.r_[True, ~joined][: len(begin)]], end[np.r_[~joined, True][: len(end)]]
    edges = np.stack([begin, end], axis=1).ravel()
    counts = np.diff(np.r_[0, edges, height * width])
    if counts[-1] == 0:
        counts = counts[:-1]
    plain = {"size": [height, width], "counts": counts.tolist()}
    return _as_text(coco_mask.frPyObjects(plain, height, width))


def decode_mask(mask: RunLengths) -> Bool[np.ndarray, "H W"]:
    """Give the bitmap of run lengths."""
    bitmap: NDArray[np.uint8] = coco_mask.decode(mask)
    return bitmap.astype(bool)


def mask_area(mask: RunLengths) -> int:
    """Count the pixels of a mask."""
    return int(coco_mask.area(mask))


def mask_iou(first: list[RunLengths], second: list[RunLengths]) -> NDArray[np.float64]:
    """Intersection over union of every mask of one list with every one of another."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    shares: NDArray[np.float64] = coco_mask.iou(first, second, [False] * len(second))
    return shares


def shift_mask(mask: RunLengths, *, size: Size, top: int, left: int) -> RunLengths:
    """Place a mask in a larger image.

    Args:
        mask: Of a part of the image.
        size: (height, width) of the image.
        top: Row at which the part begins.
        left: The same for columns.

    Returns:
        The mask of the whole image.
    """
    return encode_mask(decode_mask(mask), size=size, top=top, left=left)


def to_run_lengths(segmentation: Segmentation, size: Size) -> RunLengths:
    """Bring a mask as COCO files write it to compressed run lengths.

    Args:
        segmentation: Polygons, or run lengths, compressed or not.
        size: (height, width) of the image.

    Returns:
        The run lengths; polygons of one object are joined.

    Example:
        >>> mask_area(to_run_lengths([[0, 0, 2, 0, 2, 2, 0, 2]], (4, 4)))
        4
    """
    height, width = size
    if isinstance(segmentation, list):
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return _as_text(coco_mask.frPyObjects(segmentation, height, width))
    return _as_text(segmentation)


def _as_text(mask: RunLengths) -> RunLengths:
    counts = mask["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in mask["size"]], "counts": text}
