# SPDX-License-Identifier: Apache-2.0
"""LabelMe: one JSON an image, with rectangles, outlines and points.

What belongs to one object has a `group_id`. A mask with holes, which polygons cannot say, is a
shape "mask". The score is the description of a shape.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.prediction.formats.contours import cut_out, find_rings
from muntin.prediction.formats.items import Answer, FormatContext, Item, size_of, sure_items
from muntin.run_lengths import RunLengths
from muntin.samples import skeleton_of
from muntin.staging import format_json, write_file

_VERSION = "5.5.0"  # the first with masks and descriptions is older


def write_shapes(answer: Answer, place: Path, context: FormatContext) -> None:
    """Write the shapes of an image to `place`."""
    height, width = size_of(answer)
    items = sure_items(answer, context)
    values: dict[str, Any] = {
        "version": _VERSION,
        "flags": {},
        "shapes": [shape for item in items for shape in _list_shapes(item, context)],
        "imagePath": context.seen_from_here(answer["path"]),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }
    write_file(format_json(values).encode(), place)


def _list_shapes(item: Item, context: FormatContext) -> list[dict[str, Any]]:
    left, top, right, bottom = item.box
    rectangle = _shape(item, item.name, "rectangle", [[left, top], [right, bottom]])
    if item.mask is not None:
        return _outline(item, item.mask)
    if not item.keypoints:
        return [rectangle]
    names = skeleton_of(context.classes).names
    shapes = [
        _shape(item, name, "point", [[*point]])
        for name, point in zip(names, item.sure_points, strict=True)
        if point is not None
    ]
    # Without a box, the whole image is one instance, which a reader takes points alone for.
    return shapes if item.edges is None else [rectangle, *shapes]


def _outline(item: Item, mask: RunLengths) -> list[dict[str, Any]]:
    areas = find_rings(mask)
    if all(len(rings) == 1 for rings in areas):
        return [_shape(item, item.name, "polygon", area[0].tolist()) for area in areas]
    piece, left, top = cut_out(mask)
    right, bottom = left + piece.shape[1], top + piece.shape[0]
    data = io.BytesIO()
    Image.fromarray(piece.astype(np.uint8)).save(data, format="png")
    shape = _shape(item, item.name, "mask", [[left, top], [right - 1, bottom - 1]])
    return [{**shape, "mask": base64.b64encode(data.getvalue()).decode()}]


def _shape(item: Item, label: str, kind: str, points: list[Any]) -> dict[str, Any]:
    return {
        "label": label,
        "points": points,
        "group_id": item.number,
        "description": f"score {item.score:.3f}",
        "shape_type": kind,
        "flags": {},
    }
