# SPDX-License-Identifier: Apache-2.0
"""Boxes, and keypoints, that are in another unit or order than their format requires.

When most boxes of a file are wrong in the same way, the one who wrote it meant another unit or
order, and a model would learn nonsense without any complaint: the file is refused.
"""

from __future__ import annotations

import numpy as np

from muntin.errors import UnitError
from muntin.shapes import Float

_EXCESS = 1.05  # of a side: a box that reaches further was not meant so
_MANY, _NEARLY_ALL = 0.25, 0.95


def require_widths(
    boxes: Float[np.ndarray, "N 4"], sizes: Float[np.ndarray, "N 2"], where: str
) -> None:
    """Refuse a COCO file whose boxes are corners, or fractions of the image.

    Boxes that are x, y, width, height hardly ever make sense as two corners as well: nearly all of
    them would have to be wider than they are far from the edge. When they do, and a quarter of them
    sticks out of the image as written, they are corners. `sizes` are (height, width) of the image
    of each, in pixels.
    """
    finite = np.isfinite(boxes).all(axis=1)
    boxes, sizes = boxes[finite], sizes[finite]
    if not len(boxes):
        return
    x, y, width, height = boxes.T
    rows, columns = sizes.T
    whole = boxes == np.rint(boxes)
    if boxes.max() <= 1 and boxes.max() > 0 and not whole.all(axis=1).any() and sizes.min() > 2:
        message = (
            f"COCO boxes must be x, y, width, height in pixels, got numbers between 0 and "
            f"{boxes.max():.4g} only in {where}. Multiply x and width by the width of the image "
            f"and y and height by its height."
        )
        raise UnitError(message)
    beyond = (x + width > columns * _EXCESS) | (y + height > rows * _EXCESS)
    corners = (width > x) & (height > y) & (width <= columns + 1) & (height <= rows + 1)
    if beyond.mean() > _MANY and corners.mean() >= _NEARLY_ALL:
        message = (
            f"COCO boxes must be x, y, width, height, got what looks like x0, y0, x1, y1 in "
            f"{where}: as widths and heights, {beyond.sum()} of {len(boxes)} boxes reach out of "
            f"their images. Write x1 - x0 and y1 - y0 as the third and fourth number of bbox."
        )
        raise UnitError(message)


def require_fractions(boxes: Float[np.ndarray, "N 4"], where: str) -> None:
    """Refuse YOLO labels half of which no fractions (centre x, centre y, width, height) can be."""
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if len(boxes) and (boxes.max(axis=1) > 2).mean() >= 0.5:
        message = (
            f"YOLO boxes must be fractions of the image between 0 and 1, got numbers up to "
            f"{boxes.max():.6g} in {where}. Divide x and width by the width of the image and y "
            f"and height by its height."
        )
        raise UnitError(message)


def require_corners(boxes: Float[np.ndarray, "N 4"], where: str) -> None:
    """Refuse boxes if the second corner of most is not right of and below the first."""
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    left, top, right, bottom = boxes.T
    wrong = (right < left) | (bottom < top)
    if len(boxes) and wrong.mean() > 0.5:
        message = (
            f"Boxes must have xmax > xmin and ymax > ymin, got the opposite for {wrong.sum()} of "
            f"{len(boxes)} in {where}. If the last two numbers are width and height, write "
            f"xmin + width and ymin + height instead; if corners are swapped, swap them."
        )
        raise UnitError(message)


def require_pixels(points: Float[np.ndarray, "N 3"], where: str) -> None:
    """Refuse keypoints (x, y, visibility) that are fractions of the image."""
    known = points[points[:, 2] > 0, :2]
    if len(known) and known.max() <= 1 and (known != np.rint(known)).any():
        message = (
            f"Keypoints must be in pixels, got numbers up to {known.max():.4g} only in {where}. "
            f"Multiply x by the width of the image and y by its height."
        )
        raise UnitError(message)
