# SPDX-License-Identifier: Apache-2.0
"""VIA (VGG Image Annotator), versions 1 and 2: one JSON or CSV of all images, or a project.

A region has a shape in pixels and attributes, of which one is the class: the only one there is, or
the one named class, label, name, type, category or object. Files without attributes have one class.

Source:
    The annotator's own documentation, https://www.robots.ox.ac.uk/~vgg/software/via/
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from muntin.data.archives import read_bytes
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, clean_class_name
from muntin.data.shape_records import (
    ImageShapes,
    Point,
    Shape,
    ellipse,
    polygon,
    read_number,
    read_points,
    read_shapes,
)
from muntin.data.trees import fold, part_in, read_json, read_text
from muntin.errors import DataError, shorten
from muntin.samples import Listing
from muntin.untrusted import parse_json

_CLASS_KEYS = ("class", "label", "name", "type", "category", "object")
_ONLY_CLASS = "object"
_MAX_TO_OPEN = 24


def _recognise(source: Source) -> list[str] | None:
    names = [n for end in (".json", ".csv") for n in source.with_suffix(end)[:_MAX_TO_OPEN]]
    found = []
    for name in names:
        data = read_bytes(source.tree.source, name)
        known = b'"_via_img_metadata"' in data or b"region_shape_attributes" in data[:300]
        if known or (b'"regions"' in data and b'"filename"' in data):
            found.append(name)
    return found or None


def read_records(source: Source, found: Sequence[str], request: ObjectRequest) -> list[ImageShapes]:
    """Read the regions of each image."""
    images = [(path, row) for path in found for row in _read_images(source, path)]
    every = [region for _, row in images for region in _regions_of(row)]
    key = _find_key(every, source)
    if not key:
        request.findings.notes.append(f"regions have no attributes: one class, {_ONLY_CLASS!r}")
    records = []
    for path, row in images:
        shapes = [
            _read_shape(region, f"region {number}", key)
            for number, region in enumerate(_regions_of(row))
        ]
        name = str(row.get("filename") or "")
        part = part_in(path.rpartition("/")[2].rpartition(".")[0]) if len(found) > 1 else ""
        records.append(ImageShapes(file=path, names=[name], part=part, shapes=shapes))
    return records


def _read_images(source: Source, path: str) -> list[dict[str, Any]]:
    if fold(path).endswith(".csv"):
        return _read_rows(source, path)
    values = read_json(source.tree.source, path)
    if isinstance(values, dict):
        values = values.get("_via_img_metadata", values)
    rows = [*values.values()] if isinstance(values, dict) else []
    if not rows or not all(isinstance(row, dict) and "filename" in row for row in rows):
        message = (
            f"A JSON of VIA must hold images with their filename and regions, got none in "
            f"{path!r} of {source.tree.source!r}. Export the annotations as JSON, or give the "
            f"project."
        )
        raise DataError(message)
    return rows


def _read_rows(source: Source, path: str) -> list[dict[str, Any]]:
    """Read a CSV, which has a row for each region, or one of an image without any."""
    images: dict[str, dict[str, Any]] = {}
    rows = csv.DictReader(io.StringIO(read_text(source.tree.source, path)))
    for number, row in enumerate(rows, 2):
        name = row.get("filename") or row.get("#filename") or ""
        regions = images.setdefault(name, {"filename": name, "regions": []})["regions"]
        try:
            shape, attributes = (
                parse_json(row.get(f"region_{key}attributes") or "{}") for key in ("shape_", "")
            )
        except ValueError as error:
            message = (
                f"The attributes of regions in {path!r} of {source.tree.source!r} must be JSON, "
                f"got in row {number}: {error}. Export the annotations again."
            )
            raise DataError(message) from error
        regions += [{"shape_attributes": shape, "region_attributes": attributes}] if shape else []
    return [*images.values()]


def _regions_of(row: Mapping[str, Any]) -> list[Any]:
    regions = row.get("regions") or []
    return [*regions.values()] if isinstance(regions, dict) else [*regions]


def _attributes_of(region: object) -> Mapping[str, Any]:
    found = region.get("region_attributes") if isinstance(region, dict) else None
    return found if isinstance(found, dict) else {}


def _find_key(regions: Sequence[object], source: Source) -> str:
    """The attribute that is the class; "" where there are none."""
    keys = Counter(key for region in regions for key in _attributes_of(region))
    named = [key for wanted in _CLASS_KEYS for key in keys if key.strip().lower() == wanted]
    if not named and len(keys) > 1:
        message = (
            f"One attribute of regions must be the class, got {shorten(keys)} in "
            f"{str(source.path)!r}. Rename it to class."
        )
        raise DataError(message)
    return next(iter(named or keys), "")


def _read_shape(region: object, where: str, key: str) -> Shape:
    values = region.get("shape_attributes") if isinstance(region, dict) else None
    label: object = _attributes_of(region).get(key) or "" if key else _ONLY_CLASS
    if isinstance(label, dict):  # of boxes to tick
        ticked = [name for name, value in label.items() if value]
        label = ticked[0] if len(ticked) == 1 else ""
    shape = Shape(where=where, label=clean_class_name(label))
    if not isinstance(values, dict):
        return shape
    kind = values.get("name")
    x, y, width, height, cx, cy = (
        read_number(values, name) for name in ("x", "y", "width", "height", "cx", "cy")
    )
    if kind == "rect":
        shape.corners = [(x, y), (x + width, y + height)]
    elif kind in ("point", "polyline"):
        shape.kind = "points" if kind == "point" else "line"
        shape.corners = [(cx, cy)] if kind == "point" else _points_of(values)
    else:
        shape.kind = "area"
        if kind == "circle":
            shape.outline = ellipse((cx, cy), (read_number(values, "r"),) * 2)
        elif kind == "ellipse":
            radii = read_number(values, "rx"), read_number(values, "ry")
            shape.outline = ellipse((cx, cy), radii, math.degrees(read_number(values, "theta", 0)))
        else:
            shape.outline = polygon(_points_of(values))
    return shape


def _points_of(values: Mapping[str, Any]) -> list[Point]:
    xs, ys = values.get("all_points_x"), values.get("all_points_y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        return []
    return read_points(zip(xs, ys, strict=True))


VIA: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="VIA",
    recognise=_recognise,
    read=partial(read_shapes, read_records),
    looks_for="VIA (a JSON or CSV of images with regions, or a project)",
    file="a JSON or CSV of VIA",
)
