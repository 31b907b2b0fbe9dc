# SPDX-License-Identifier: Apache-2.0
"""Label Studio's JSON (and JSON-MIN): a list of tasks, regions in percent of the image.

Or masks as PNG, one file a region, named after task, annotation, annotator, control and label. They
do not name the images: these are called after the task, or are as many, in the same order.

Rectangles are turned clockwise about their first corner. What a brush drew is packed runs of the
values of an RGBA image, whose alpha channel is the mask. Of several annotations of a task the first
that was not cancelled counts, a ground truth before others; tasks without one are left out.

Source:
    https://labelstud.io/guide/export and the format of the runs, @thi.ng/rle-pack.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.coco_images import plain_id
from muntin.data.mask_values import read_values
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, clean_class_name
from muntin.data.shape_records import (
    ImageShapes,
    Shape,
    ellipse,
    list_shapes,
    polygon,
    read_number,
    read_points,
    rotated_box,
)
from muntin.data.trees import Tree, by_numbers, read_json
from muntin.errors import DataError, plural, shorten
from muntin.run_lengths import Segmentation, encode_mask
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.untrusted import check_budget

_MAX_TO_OPEN = 24
_UPLOADED = re.compile(r"(.*/)?[0-9a-f]{8}-(?P<name>[^/]+)")  # names are made unique by a prefix
_MASK = re.compile(
    r"^(?:.*/)?task-(?P<task>\d+)-annotation-(?P<annotation>\d+)-by-[^-/]*-[^-/]*"
    r"-(?P<label>[^/]+)-\d+\.png$"
)
_TASK = re.compile(r"(?:^|/)task[-_ ]?(\d+)\.[^./]+$", re.IGNORECASE)

Row = Mapping[str, Any]


def _recognise(source: Source) -> list[str] | None:
    names = source.with_suffix(".json")[:_MAX_TO_OPEN]
    data = ((name, read_bytes(source.tree.source, name)) for name in names)
    found = [
        name for name, text in data if b'"original_width"' in text and text.lstrip()[:1] == b"["
    ]
    masks = [] if source.is_file else [n for n in source.tree.images if _MASK.search(n)]
    return found or masks or None


def _read(source: Source, found: Sequence[str], request: ObjectRequest) -> dict[str, Listing]:
    if _MASK.search(found[0]):
        return _read_masks(source.tree, found, request)
    return list_shapes(source.tree, read_records(source, found, request), request)


def read_records(source: Source, found: Sequence[str], request: ObjectRequest) -> list[ImageShapes]:
    """Read the regions of each task that has some annotation."""
    records = []
    without = several = 0
    for path in found:
        for number, task in enumerate(read_json(source.tree.source, path)):
            if not isinstance(task, dict):
                message = f"Every task of {path!r} must be an object, got {task!r} as {number}."
                raise DataError(message)
            annotations = _annotations_of(task)
            several += len(annotations) > 1
            without += not annotations
            if annotations:
                rows = [row for row in annotations[0] if isinstance(row, dict)]
                records.append(_read_task(path, task, rows))
    _note_several(several, request)
    if without:
        request.findings.notes.append(f"{plural(without, 'task')} without an annotation left out")
    return records


def _note_several(count: int, request: ObjectRequest) -> None:
    if count:
        what = "with several annotations: the first of each is read"
        request.findings.notes.append(f"{plural(count, 'task')} {what}")


def _read_masks(tree: Tree, masks: Sequence[str], request: ObjectRequest) -> dict[str, Listing]:
    found: dict[int, dict[int, list[re.Match[str]]]] = defaultdict(lambda: defaultdict(list))
    for named in filter(None, map(_MASK.search, masks)):
        found[int(named["task"])][int(named["annotation"])].append(named)
    _note_several(sum(len(one) > 1 for one in found.values()), request)
    images = tuple(path for path in tree.images if path not in masks)
    image_of = _find_images(tree.source, sorted(found), images, request)
    records = []
    for task, drawn in found.items():
        record = ImageShapes(file=f"task {task}", names=[image_of[task]])
        for named in drawn[min(drawn)]:
            shape = Shape(where=named.string, label=clean_class_name(named["label"]), kind="area")
            try:
                data = read_bytes(tree.source, named.string)
                bitmap = read_values(data, where=named.string, kind="index") > 0
                record.size = bitmap.shape[0], bitmap.shape[1]
                shape.outline = encode_mask(bitmap, size=record.size)
            except DataError as error:
                shape.fault = "of a mask that cannot be read", str(error)
            record.shapes.append(shape)
        records.append(record)
    return list_shapes(replace(tree, images=images), records, request)


def _find_images(
    source: str, tasks: Sequence[int], images: Sequence[str], request: ObjectRequest
) -> dict[int, str]:
    """The image of each task by its name, else by its place where all orders agree."""
    called = {int(one[1]): path for path in images if (one := _TASK.search(path))}
    if called.keys() >= set(tasks):
        return called
    plain = sorted(images, key=lambda path: by_numbers(_UPLOADED.sub(r"\1\g<name>", path)))
    if len(images) != len(tasks) or plain != sorted(images, key=by_numbers):
        message = (
            f"Masks of Label Studio must have images that are named after their tasks "
            f"(task-{tasks[0]}.jpg), as the masks alone do not say whose they are, got "
            f"{plural(len(tasks), 'task')} and {plural(len(images), 'image')} "
            f"({shorten(images, limit=3)}) in {source!r}. Name the images so, or export the JSON."
        )
        raise DataError(message)
    what = (
        f"masks do not name their images: tasks are taken for images in the order of names, "
        f"{tasks[0]} for {plain[0]!r} to {tasks[-1]} for {plain[-1]!r}. Export the JSON to be sure"
    )
    request.findings.warn(source, what)
    return dict(zip(tasks, plain, strict=True))


def _annotations_of(task: Row) -> list[Sequence[Any]]:
    """The regions of each annotation of a task, the one that counts first."""
    given = task.get("annotations", task.get("completions"))
    if not isinstance(given, list):  # JSON-MIN: the regions under the name of their control
        rows = [v for v in task.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        regions = [{**row, "value": row} for value in rows for row in value]
        return [regions] if regions else []
    good = [row for row in given if isinstance(row, dict) and not row.get("was_cancelled")]
    good.sort(key=lambda row: not row.get("ground_truth"))
    return [row["result"] for row in good if isinstance(row.get("result"), list)]


def _read_task(path: str, task: Row, rows: Sequence[Row]) -> ImageShapes:
    sides = next(
        ((row.get("original_height"), row.get("original_width")) for row in rows), (None, None)
    )
    height, width = (plain_id(side) for side in sides)
    known = isinstance(height, int) and isinstance(width, int) and min(height, width) > 0
    size = (int(height or 0), int(width or 0)) if known else None
    names = [*_names_of(task)]
    record = ImageShapes(file=path, names=names or ["a task without an image"], size=size)
    found: dict[object, Shape] = {}
    for number, row in enumerate(rows, 1):
        value = row.get("value")
        if not isinstance(value, dict) or row.get("type") in ("choices", "textarea", "rating"):
            continue
        # A shape and its label may be two rows of one id.
        shape = found.setdefault(
            row.get("id", f"row {number}"),
            Shape(where=f"region {number} of task {task.get('id')}"),
        )
        labels = [v for k, v in value.items() if k.endswith("labels") and isinstance(v, list) and v]
        shape.label = clean_class_name(labels[0][0]) if labels else shape.label
        if size:
            _read_value(value, shape, size)
    parents = {row["id"]: row["parentID"] for row in rows if row.get("parentID") and "id" in row}
    for key, shape in found.items():
        shape.group = str(parents.get(key, key if key in parents.values() else ""))
    record.shapes = list(found.values())
    return record


def _names_of(task: Row) -> Iterator[str]:
    """The names that the image may have: as it is given, and before it was uploaded."""
    data = task.get("data", task)
    values = [*data.values()] if isinstance(data, dict) else []
    texts = [unquote(v) for v in values if isinstance(v, str) and re.search(r"\.\w{2,5}($|\?)", v)]
    for text in [*texts, task.get("file_upload")]:
        if isinstance(text, str) and text:
            name = text.rpartition("?d=")[2] if "?d=" in text else text.partition("?")[0]
            yield name
            if found := _UPLOADED.fullmatch(name):
                yield found["name"]


def _read_value(value: Row, shape: Shape, size: Size) -> None:
    """Read the geometry of a region; numbers are percent of the sides of the image."""
    height, width = size

    def number(name: str, side: int, default: float = math.nan) -> float:
        return read_number(value, name, default) * side / 100

    x, y = number("x", width), number("y", height)
    turn = number("rotation", 100, 0)
    if "rle" in value:
        shape.kind, shape.outline = "area", _read_brush(value["rle"], size)
    elif "points" in value:
        points = [(x * width / 100, y * height / 100) for x, y in read_points(value["points"])]
        shape.kind, shape.outline = "area", polygon(points)
    elif "radiusX" in value:
        radii = number("radiusX", width), number("radiusY", height)
        shape.kind, shape.outline = "area", ellipse((x, y), radii, turn)
    elif "height" in value and turn:
        sides = number("width", width), number("height", height)
        shape.kind, shape.outline = "area", rotated_box(x, y, sides, turn, (x, y))
    elif "height" in value:
        shape.corners = [(x, y), (x + number("width", width), y + number("height", height))]
    elif "x" in value:
        shape.kind, shape.corners = "points", [(x, y)]


def _read_brush(packed: object, size: Size) -> Segmentation | None:
    """The mask of an image from packed runs; None where they are broken or of another size.

    32 bits say how many values there are, 5 how long a value is, four times 4 how long each kind of
    count is. A run is one bit (1: one value for all; 0: a value each), two bits for the kind of its
    count, the count, and its values; lengths and counts are stored less one.
    """
    # Four values a pixel, and three copies of the one that counts.
    check_budget(7 * size[0] * size[1], f"a mask of {size[0]} x {size[1]} pixels")
    try:
        bits = np.unpackbits(np.array(packed, np.uint8))
    except (TypeError, ValueError, OverflowError):
        return None
    place = 0

    def read(length: int) -> int:
        nonlocal place
        if place + length > len(bits):
            raise EOFError
        place += length
        return int("".join(map(str, bits[place - length : place])), 2)

    try:
        total, length = read(32), read(5) + 1
        counts = [read(4) + 1 for _ in range(4)]
        if total != 4 * size[0] * size[1]:
            return None
        values = np.zeros(total, bool)
        done = 0
        while done < total:
            repeated = read(1)
            end = done + read(counts[read(2)]) + 1
            if repeated:
                values[done:end] = read(length) > 0
            else:
                values[done:end] = [read(length) > 0 for _ in range(end - done)]
            done = end
    except (EOFError, ValueError):
        return None
    return encode_mask(values.reshape(*size, 4)[:, :, 3], size=size)


LABEL_STUDIO: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="Label Studio",
    recognise=_recognise,
    read=_read,
    looks_for="Label Studio (its JSON, a list of tasks)",
    file="a JSON of Label Studio",
)
