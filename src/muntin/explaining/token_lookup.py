# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Map a point of the original image to the token that contains it."""

from __future__ import annotations

import numpy as np

from muntin.data.keypoint_transforms import crop_box
from muntin.explaining.context import Context
from muntin.explaining.layers import AttentionLayer

__all__ = ["cell_at", "find_point", "token_at"]


def find_point(context: Context) -> tuple[float, float]:
    """Map the query point of a context to the network's input.

    Args:
        context: Its `point` is relative to the original image; None for the centre.

    Returns:
        (x, y) in pixels of `context.shown`. Points that preprocessing cropped off are clamped to
        the nearest edge.
    """
    (height, width), (rows, columns) = context.size, context.shown_size
    x, y = context.point or (0.5, 0.5)
    if context.pre.fit == "instance_crop":  # the box is the whole image
        left, top, right, bottom = crop_box((-0.5, -0.5, width - 0.5, height - 0.5), context.pre)
        x = (x * width - 0.5 - left) / (right - left) * (columns - 1)
        y = (y * height - 0.5 - top) / (bottom - top) * (rows - 1)
    elif context.pre.fit == "center_crop":  # relative to the centre of the resized image
        scale = max(rows / height, columns / width) / context.pre.crop_fraction
        x = columns / 2 + (x - 0.5) * max(columns, round(width * scale))
        y = rows / 2 + (y - 0.5) * max(rows, round(height * scale))
    else:
        x, y = x * columns, y * rows
    return float(np.clip(x, 0, columns - 1)), float(np.clip(y, 0, rows - 1))


def token_at(layer: AttentionLayer, point: tuple[float, float]) -> int:
    """Row-major index of the token of a layer that contains a point.

    Args:
        layer: Its tokens cover the image from the top left corner.
        point: (x, y) in pixels of the network's input.
    """
    column = min(int(point[0] // layer.stride), layer.grid[1] - 1)
    row = min(int(point[1] // layer.stride), layer.grid[0] - 1)
    return row * layer.grid[1] + column


def cell_at(layer: AttentionLayer, point: tuple[float, float]) -> tuple[float, float, float, float]:
    """Edges (left, top, right, bottom) in pixels of the query that contains a point.

    Args:
        layer: Its tokens cover the image from the top left corner. Tokens whose queries are
            pooled share one cell.
        point: (x, y) in pixels of the network's input.
    """
    row, column = divmod(token_at(layer, point), layer.grid[1])
    row, column = row - row % layer.pooled, column - column % layer.pooled
    side = layer.stride * layer.pooled
    left, top = column * layer.stride, row * layer.stride
    return left, top, left + side, top + side
