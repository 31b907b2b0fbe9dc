# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Masks and dashed boxes, in pixels of the image that is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from muntin.samples import Segmentation
from muntin.shapes import Size

__all__ = ["cut_mask", "dash_box", "paint_mask"]

Piece = tuple[NDArray[np.bool_], int, int]
"""The part of a mask that is set, its first row and its first column."""

_FILL, _HATCH = 0.35, 0.6  # shares of the colour


def cut_mask(mask: Segmentation, size: Size, drawn: Size) -> Piece | None:
    """Cut out the part of a mask that is set, scaled from `size` to the size it is drawn in.

    None when nothing is set; at least one pixel otherwise.
    """
    down, right = drawn[0] / size[0], drawn[1] / size[1]
    if isinstance(mask, list):
        # Corners are scaled, not pixels, so that outlines stay smooth.
        scaled = [
            [edge * (down if place % 2 else right) for place, edge in enumerate(polygon)]
            for polygon in mask
            if len(polygon) >= 6
        ]
        return _crop(coco_mask.frPyObjects(scaled, *drawn), 1.0, 1.0) if scaled else None
    if isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, *size)
    return _crop([mask], down, right)


def _crop(masks: list[Any], down: float, right: float) -> Piece | None:
    whole = coco_mask.merge(masks)
    left, top, width, height = (int(edge) for edge in coco_mask.toBbox(whole))
    if not width or not height:
        return None
    bitmap = coco_mask.decode(whole)[top : top + height, left : left + width]
    rows = round(top * down), round((top + height) * down)
    columns = round(left * right), round((left + width) * right)
    sides = (max(1, columns[1] - columns[0]), max(1, rows[1] - rows[0]))
    piece = Image.fromarray(bitmap * np.uint8(255)).resize(sides, Image.Resampling.BILINEAR)
    shrunk = np.asarray(piece) >= 128
    # A mask too thin for the drawn size is seen as what it covers.
    return shrunk if shrunk.any() else ~shrunk, rows[0], columns[0]


def paint_mask(
    pixels: NDArray[np.uint8],
    piece: NDArray[np.bool_],
    top: int,
    left: int,
    colour: tuple[int, int, int],
    *,
    line: int,
    hatched: bool = False,
) -> None:
    """Paint a mask into an image, in place: a translucent fill, or stripes, and a contour.

    `piece`, `top` and `left` come from `cut_mask`. The contour, `line` pixels wide, lies inside.
    """
    part = pixels[top : top + piece.shape[0], left : left + piece.shape[1]]
    piece = piece[: part.shape[0], : part.shape[1]]
    inner = Image.fromarray(np.pad(piece, 1).astype(np.uint8) * 255)
    for _ in range(line):
        inner = inner.filter(ImageFilter.MinFilter(3))
    contour = piece & (np.asarray(inner)[1:-1, 1:-1] == 0)
    share = np.where(piece, _FILL, 0.0)
    if hatched:
        rows, columns = np.indices(piece.shape)
        stripes = (rows + top + columns + left) % 12 < 3
        share = np.where(piece & stripes, _HATCH, 0.0)
    share[contour] = 1.0
    mixed = part + (np.array(colour) - part) * share[..., None]
    part[...] = mixed.round().astype(np.uint8)


def dash_box(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int, int, int],
    colour: tuple[int, int, int],
    *,
    line: int,
) -> None:
    """Draw a box with dashes, `line` pixels wide; `place` holds the first and the last pixels."""
    left, top, right, bottom = place
    dash = 5 + 2 * line
    for x in range(left, right + 1, 2 * dash):
        end = min(x + dash, right)
        pen.line((x, top, end, top), fill=colour, width=line)
        pen.line((x, bottom, end, bottom), fill=colour, width=line)
    for y in range(top, bottom + 1, 2 * dash):
        end = min(y + dash, bottom)
        pen.line((left, y, left, end), fill=colour, width=line)
        pen.line((right, y, right, end), fill=colour, width=line)
