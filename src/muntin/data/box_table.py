# SPDX-License-Identifier: Apache-2.0
"""Boxes in a CSV, a row each: columns are known by their names, or by what the first row holds.

Boxes are two corners, or a corner and sides (x, y, width, height; or one cell `bbox` of four
numbers in this order), in pixels, or as fractions of the image where no number is above 1. A row of
empty cells is an image without objects. Without a header, the order is that of keras-retinanet and
SKU110K (path, x1, y1, x2, y2, class), or of AutoML (set, path, class, x, y, , , x, y, , ).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from muntin.data.box_units import require_corners
from muntin.data.image_formats import is_image
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, clean_class_name
from muntin.data.shape_records import ImageShapes, Shape, list_shapes
from muntin.data.trees import Tree, part_in, part_named, read_text
from muntin.errors import DataError
from muntin.samples import Listing

_ONLY_CLASS = "object"
_COLUMNS = {
    "image": "filename file image imageid imagename imagepath imagefile path filepath img",
    "class": "class label classname labelname category categoryname name object type",
    "left": "xmin x1 x0 left xtl bboxxmin",
    "top": "ymin y1 y0 top ytl bboxymin",
    "right": "xmax x2 right xbr bboxxmax",
    "bottom": "ymax y2 bottom ybr bboxymax",
    "x": "x bboxx xtopleft",
    "y": "y bboxy ytopleft",
    "wide": "w width bboxw bboxwidth boxwidth",
    "high": "h height bboxh bboxheight boxheight",
    "bbox": "bbox box",
    "set": "split set subset",
}
_CORNERS, _SIDES = ("left", "top", "right", "bottom"), ("x", "y", "wide", "high")
_PLAIN = dict(zip(("image", *_CORNERS, "class"), range(6), strict=True))
_AUTOML = {"set": 0, "image": 1, "class": 2, "left": 3, "top": 4, "right": 7, "bottom": 8}

_Table = tuple[str, list[list[str]], Mapping[str, int], int]
"""The file, its rows, the column of each thing, and the first row."""


def _recognise(source: Source) -> list[_Table] | None:
    names = source.with_suffix(".csv")
    return [table for name in names if (table := _open_table(source.tree, name))] or None


def _open_table(tree: Tree, name: str) -> _Table | None:
    """Read a CSV that holds boxes; None if it does not."""
    try:
        text = read_text(tree.source, name)
    except DataError:
        return None
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(row)]
    except csv.Error:
        return None
    if len(rows) < 2:
        return None
    words = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in rows[0]]
    columns = {
        thing: words.index(next(word for word in known.split() if word in words))
        for thing, known in _COLUMNS.items()
        if any(word in words for word in known.split())
    }
    boxes = any(set(columns).issuperset(names) for names in (_CORNERS, _SIDES, ("bbox",)))
    if "image" in columns and boxes:
        return name, rows, columns, 1
    for order in (_PLAIN, _AUTOML):
        cells = [*rows[0], *[""] * 9]
        image = is_image(cells[order["image"]])
        numbers = [cells[order[side]] for side in _CORNERS]
        if image and (all(map(_is_number, numbers)) or not any(numbers)):
            return name, rows, order, 0
    return None


def _read(source: Source, tables: Sequence[_Table], request: ObjectRequest) -> dict[str, Listing]:
    records: dict[tuple[str, str], ImageShapes] = {}
    for name, rows, columns, first in tables:
        words = _describe(columns, rows[0] if first else ())
        request.findings.notes.append(f"{name}: {words}")
        part = part_in(name.rpartition("/")[2].rpartition(".")[0]) if len(tables) > 1 else ""
        for number, row in enumerate(rows[first:], first + 1):
            cells = {k: row[n].strip() if n < len(row) else "" for k, n in columns.items()}
            said = part_named(cells.get("set", "")) or part
            record = records.setdefault(
                (name, cells["image"]), ImageShapes(file=name, names=[cells["image"]], part=said)
            )
            if shape := _read_row(cells, f"row {number}"):
                record.shapes.append(shape)
    corners = [shape.corners for record in records.values() for shape in record.shapes]
    boxes = np.array(corners, np.float64).reshape(-1, 4)
    require_corners(boxes, where=str(source.path))
    known = boxes[np.isfinite(boxes).all(axis=1)]
    if len(known) and known.max() <= 1 and (known != np.rint(known)).any():
        request.findings.notes.append("no number above 1: boxes are fractions of the image")
        for record in records.values():
            record.fractions = True
    return list_shapes(source.tree, [*records.values()], request)


def _describe(columns: Mapping[str, int], header: Sequence[str]) -> str:
    """Say which column is taken for what."""
    names = {k: header[n].strip() if header else f"column {n + 1}" for k, n in columns.items()}
    kinds = ((_CORNERS, "corners"), (_SIDES, "a corner and sides"), (("bbox",), "x, y and sides"))
    used, kind = next((keys, kind) for keys, kind in kinds if set(keys) <= names.keys())
    label = names.get("class", f"none, all are {_ONLY_CLASS!r}")
    return f"image {names['image']}, class {label}, {kind} {', '.join(names[key] for key in used)}"


def _read_row(cells: Mapping[str, str], where: str) -> Shape | None:
    """One box; None where the row is an image without objects."""
    if "left" in cells:
        written = [cells[side] for side in _CORNERS]
    elif "bbox" in cells:
        written = re.findall(r"[^\s,;\[\]()]+", cells["bbox"])
    else:
        written = [cells[side] for side in _SIDES]
    if not any(written):
        return None
    numbers = [float(text) if _is_number(text) else math.nan for text in written]
    numbers = numbers if len(numbers) == 4 else [math.nan] * 4
    if "left" not in cells:
        numbers[2:] = numbers[0] + numbers[2], numbers[1] + numbers[3]
    left, top, right, bottom = numbers
    label = clean_class_name(cells.get("class", _ONLY_CLASS))
    return Shape(where=where, label=label, corners=[(left, top), (right, bottom)])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


BOX_TABLE: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="CSV of boxes",
    recognise=_recognise,
    read=_read,
    looks_for="a CSV with a box a row",
    file="a .csv of boxes",
)
