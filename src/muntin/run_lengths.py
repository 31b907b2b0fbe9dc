# SPDX-License-Identifier: Apache-2.0
"""Object masks in COCO's run-length encoding (RLE).

An RLE mask is ``{"size": [H, W], "counts": string}``; the string is pycocotools' compressed form of
the run lengths in column-major order. Its size hardly depends on that of the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray

from muntin.shapes import Bool, Size

RunLengths = dict[str, Any]

Segmentation = list[list[float]] | dict[str, Any]
"""A mask of a COCO file: polygons (x, y, x, y ...), or RLE with `size` and `counts`."""


def encode_mask(
    bitmap: Bool[np.ndarray, "h w"], *, size: Size | None = None, top: int = 0, left: int = 0
) -> RunLengths:
    """Encode a mask, or the part at row `top`, column `left` of one of `size`, empty elsewhere.

    The cost depends on the size of the part only.

    Example:
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
