# SPDX-License-Identifier: Apache-2.0
"""Object masks in COCO's run-length encoding (RLE).

An RLE mask is ``{"size": [H, W], "counts": string}``; the string is pycocotools' compressed form of
the run lengths in column-major order. Its size hardly depends on that of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from muntin.shapes import Bool, Size
from muntin.untrusted import MAX_PIXELS

RunLengths = dict[str, Any]

Segmentation = list[list[float]] | dict[str, Any]
"""A mask of a COCO file: polygons (x, y, x, y ...), or RLE with `size` and `counts`."""


def encode_mask(
    bitmap: Bool[np.ndarray, "h w"], *, size: Size | None = None, top: int = 0, left: int = 0
) -> RunLengths:
    """Encode a mask, or the part at row `top`, column `left` of one of `size`, empty elsewhere.

    The cost depends on the size of the part only.

    Examples:
        >>> whole = encode_mask(np.ones((1, 2), bool), size=(3, 4), top=1, left=1)
        >>> decode_mask(whole).astype(int).tolist()
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    part_height, part_width = bitmap.shape
    height, width = size or (part_height, part_width)
    # A row of zeros above and below keeps every run inside its column.
    padded = np.zeros((part_height + 2, part_width), np.int8)
    padded[1:-1] = bitmap
    steps = np.diff(padded.ravel(order="F"))
    # Flat index p of the padded columns is row p % stride - 1 of column p // stride. `diff` shifts
    # indices by one, which cancels the padding row above.
    stride = part_height + 2
    starts, ends = (np.flatnonzero(steps == step) for step in (1, -1))
    runs = [(index // stride + left) * height + index % stride + top for index in (starts, ends)]
    begin, end = runs[0].astype(np.int64), runs[1].astype(np.int64)
    # A run to the bottom of a column and one from the top of the next column are one run.
    joined = begin[1:] == end[:-1]
    begin, end = begin[np.r_[True, ~joined][: len(begin)]], end[np.r_[~joined, True][: len(end)]]
    edges = np.stack([begin, end], axis=1).ravel()
    counts = np.diff(np.r_[0, edges, height * width])
    if counts[-1] == 0:
        counts = counts[:-1]
    plain = {"size": [height, width], "counts": counts.tolist()}
    return _as_text(coco_mask.frPyObjects(plain, height, width))


def decode_mask(mask: RunLengths) -> Bool[np.ndarray, "H W"]:
    """Decode an RLE mask."""
    bitmap: NDArray[np.uint8] = coco_mask.decode(mask)
    return bitmap.astype(bool)


def mask_area(mask: RunLengths) -> int:
    """Count the pixels of a mask."""
    return int(coco_mask.area(mask))


def shift_mask(mask: RunLengths, *, size: Size, top: int, left: int) -> RunLengths:
    """Move the mask of a part, which starts at row `top` and column `left`, into the image."""
    return encode_mask(decode_mask(mask), size=size, top=top, left=left)


def to_run_lengths(segmentation: Segmentation, size: Size) -> RunLengths:
    """Convert a mask of a COCO file to compressed RLE; polygons of one object are merged.

    Examples:
        >>> mask_area(to_run_lengths([[0, 0, 2, 0, 2, 2, 0, 2]], (4, 4)))
        4
    """
    height, width = size
    if isinstance(segmentation, list):
        return _as_text(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return _as_text(coco_mask.frPyObjects(segmentation, height, width))
    return _as_text(segmentation)


def merge_masks(masks: Sequence[Segmentation], size: Size) -> Segmentation | None:
    """Join the masks of the parts of an object; None where there is no part."""
    if len(masks) < 2:
        return masks[0] if masks else None
    polygons = [polygon for mask in masks if isinstance(mask, list) for polygon in mask]
    if all(isinstance(mask, list) for mask in masks):
        return polygons
    return _as_text(coco_mask.merge([to_run_lengths(mask, size) for mask in masks]))


def _as_text(mask: RunLengths) -> RunLengths:
    counts = mask["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(side) for side in mask["size"]], "counts": text}


# The library holds some 50 bytes for each pixel of an outline, and overflows far outside an image.
_FAR = 1_000_000
_LONGEST = 10_000_000

Edges = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""


def clean_segmentation(segmentation: Any, size: Size) -> tuple[Segmentation | None, str]:  # noqa: ANN401
    """Look at a mask before anything is done with it: the library takes whatever it is given.

    Files hold polygons (x, y, x, y ...), one polygon that is not in a list, or run lengths;
    compressed or not. Gives the mask, None where there is none or it is broken, and what is wrong
    with it, "" if nothing is. Polygons of fewer than three points are dropped beside others that
    have more.

    Examples:
        >>> clean_segmentation([[0, 0, 2, 0, 2]], (4, 4))
        (None, 'an odd number of coordinates (5)')
    """
    if segmentation in (None, [], {}, [[]]):
        return None, ""
    if not 0 < math.prod(size) <= MAX_PIXELS:
        return None, f"it is of an image of {size[0]} x {size[1]} pixels"
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
    left, top, width, height = coco_mask.toBbox(to_run_lengths(segmentation, size)).tolist()
    return left, top, left + width, top + height


def _fault_of_polygon(polygon: Any) -> str:  # noqa: ANN401
    if not isinstance(polygon, list):
        return "numbers and polygons are mixed"
    if len(polygon) % 2:
        return f"an odd number of coordinates ({len(polygon)})"
    try:
        finite = all(map(math.isfinite, polygon))
        far = max(map(abs, polygon), default=0)
    except (TypeError, OverflowError):
        return "a coordinate is not a number"
    if not finite:
        return "a coordinate is not finite"
    if far > _FAR:
        return f"a coordinate is beyond {_FAR:,} pixels"
    # Only of long ones of many points, which are rare, the exact length.
    if far * len(polygon) > _LONGEST:
        steps = np.abs(np.diff(np.array(polygon, float).reshape(-1, 2), axis=0))
        if steps.sum() > _LONGEST:
            return f"an outline longer than {_LONGEST:,} pixels"
    return ""


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
