# SPDX-License-Identifier: Apache-2.0
"""LabelMe: one JSON an image, with the shapes that were drawn on it.

Of rectangles two opposite corners are given, of circles the centre and a point on the edge. Shapes
of one label and one `group_id` are one object. `__ignore__` marks what is neither learnt nor
scored, `_background_` what is no object. A mask is a PNG of its bounding box.

Source:
    The LabelMe tool's own reader of shapes (wkentaro/labelme, label_file.py and shape.py).
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from muntin.data.archives import read_bytes
from muntin.data.coco_images import plain_id
from muntin.data.mask_values import read_values
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, clean_class_name
from muntin.data.shape_records import (
    ImageShapes,
    Point,
    Shape,
    ellipse,
    polygon,
    read_points,
    read_shapes,
)
from muntin.data.trees import Tree, read_json
from muntin.errors import DataError
from muntin.run_lengths import Segmentation, encode_mask
from muntin.samples import Listing
from muntin.shapes import Size

_HEAD = 4_000_000  # bytes: a JSON may hold the image, before or behind the shapes
_POINTS, _LINES = ("point", "points"), ("line", "linestrip")
_BACKGROUND, _IGNORED = "_background_", "__ignore__"


def _recognise(source: Source) -> list[str] | None:
    """Name the JSONs, of which others may be among them; None if LabelMe wrote none."""
    names = source.with_suffix(".json")
    return names if any(_is_labelme(source.tree, name) for name in names) else None


def _read_file(tree: Tree, path: str) -> ImageShapes:
    """Read the shapes of one JSON; shapes of points keep their points.

    Raises:
        DataError: It is no JSON of LabelMe.
    """
    values = read_json(tree.source, path)
    if not isinstance(values, dict) or not isinstance(values.get("shapes"), list):
        message = f"A JSON of LabelMe must have a list of shapes, got none in {path!r}. Remove it."
        raise DataError(message)
    stem = path.rpartition("/")[2].rpartition(".")[0]
    sides = plain_id(values.get("imageHeight")), plain_id(values.get("imageWidth"))
    known = all(isinstance(side, int) and side > 0 for side in sides)
    size = (int(sides[0] or 0), int(sides[1] or 0)) if known else None
    written = values.get("imagePath")
    names = [written, stem] if isinstance(written, str) and written else [stem]
    shapes = [
        _read_shape(row, f"shape {number}", size)
        for number, row in enumerate(values["shapes"], 1)
        if not isinstance(row, dict) or row.get("label") != _BACKGROUND
    ]
    return ImageShapes(file=path, names=names, size=size, shapes=shapes)


def _is_labelme(tree: Tree, path: str) -> bool:
    data = read_bytes(tree.source, path)
    head, tail = data[:_HEAD], data[-_HEAD:]
    return any(b'"shapes"' in part for part in (head, tail)) and b'"annotations"' not in head


def _read_shape(row: Any, where: str, size: Size | None) -> Shape:  # noqa: ANN401
    if not isinstance(row, dict):
        return Shape(where=where, fault=("not an object", f"a {type(row).__name__}"))
    label = clean_class_name(row.get("label") or "")
    kind = row.get("shape_type") or "polygon"
    group = "" if row.get("group_id") is None else str(row["group_id"])
    points = read_points(row.get("points"))
    shape = Shape(where=f"{where} ({label or 'no label'})", label=label, group=group)
    if label == _IGNORED:
        shape.fault = "marked as ignored", ""
    if kind in (*_POINTS, *_LINES):
        shape.kind, shape.corners = "points" if kind in _POINTS else "line", points
        return shape
    if kind == "rectangle":
        shape.corners = points if len(points) == 2 else ()
    else:
        shape.kind = "area"
        shape.outline = _outline_of(kind, points, row, size)
    return shape


def _outline_of(
    kind: str, points: Sequence[Point], row: dict[str, Any], size: Size | None
) -> Segmentation | None:
    if not points or not all(math.isfinite(number) for point in points for number in point):
        return None
    if kind == "circle":
        radius = math.dist(points[0], points[-1])
        return ellipse(points[0], (radius, radius)) if len(points) == 2 else None
    if kind == "mask":
        return _read_mask(row.get("mask"), points[0], size)
    return polygon(points)


def _read_mask(text: object, corner: Point, size: Size | None) -> Segmentation | None:
    """The mask of an image from its PNG, which begins at a corner; None if it cannot be read."""
    if not isinstance(text, str) or size is None:
        return None
    try:
        values = read_values(base64.b64decode(text), where="mask", kind="index")
    except (binascii.Error, ValueError, DataError):
        return None
    left, top = max(round(corner[0]), 0), max(round(corner[1]), 0)
    bitmap = values[: max(size[0] - top, 0), : max(size[1] - left, 0)] > 0
    return encode_mask(bitmap, size=size, top=top, left=left)


def read_records(source: Source, found: Sequence[str], request: ObjectRequest) -> list[ImageShapes]:
    """Read the shapes of each JSON; what is none of LabelMe is named and left out."""
    records = []
    for path in found:
        try:
            records.append(_read_file(source.tree, path))
        except DataError as error:
            request.findings.warn(path, f"left out with its image: {error}")
    return records


LABELME: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="LabelMe",
    recognise=_recognise,
    read=partial(read_shapes, read_records),
    looks_for="LabelMe (a JSON an image, with shapes)",
    file="a JSON of LabelMe",
)
