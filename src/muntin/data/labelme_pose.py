# SPDX-License-Identifier: Apache-2.0
"""LabelMe with points: each is a keypoint, named by its label.

Points of one `group_id` are an instance; a rectangle or an outline of the same group is its box and
class. Points of no group belong to the smallest shape that holds them, else all to one instance.
Without a shape, the box of an instance is that of its points, or the image where no file has
groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from muntin.data.archives import read_bytes
from muntin.data.deeplabcut import SUBJECT, box_around
from muntin.data.labelme import find_labelme, read_labelme
from muntin.data.objects import Annotation, ObjectRequest, make_entry, make_listing
from muntin.data.readers import Reader, Source, number_classes
from muntin.data.shape_records import ImageShapes, Shape, box_of_shape, locate_records, sort_records
from muntin.errors import DataError
from muntin.samples import Entry, Listing, Skeleton
from muntin.shapes import Size

_Instance = tuple[Shape | None, list[Shape]]
"""The shape around an instance, if any, and its points."""


def _recognise(source: Source) -> list[str] | None:
    names = find_labelme(source) or []
    place = source.tree.source
    return names if any(b'"point"' in read_bytes(place, name) for name in names) else None


def _read(source: Source, found: Sequence[str], request: ObjectRequest) -> dict[str, Listing]:
    tree, findings = source.tree, request.findings
    records = []
    for path in found:
        try:
            records.append(read_labelme(tree, path))
        except DataError as error:
            findings.warn(path, f"left out with its image: {error}")
    placed = locate_records(records, tree, findings)
    shapes = [shape for record in records for shape in record.shapes]
    labels = {shape.label for shape in shapes if _is_point(shape)}
    keypoints = tuple(sorted(labels, key=lambda name: (int(name) if name.isdigit() else -1, name)))
    grouped = any(shape.group or shape.kind != "points" for shape in shapes)
    classes = sorted({shape.label for shape in shapes if shape.kind != "points" and shape.label})
    names, ids = number_classes(
        classes or [SUBJECT], classes or [SUBJECT], request.class_names, repr(tree.source)
    )
    if classes and SUBJECT not in ids and request.class_names is None:
        names, ids = (*names, SUBJECT), {**ids, SUBJECT: len(names)}

    def entries(paths: Sequence[str]) -> Iterator[Entry | None]:
        for path in paths:
            record = placed[path][0]
            size = record.size or findings.size_of(tree.source, path)
            if size is None:
                continue
            annotations = [
                _annotate(one, keypoints, ids, size, grouped)
                for one in _instances_of(placed[path], size)
            ]
            yield make_entry(
                path, size, annotations, request, file=record.file, keypoint_names=keypoints
            )

    skeleton = Skeleton(names=keypoints)
    parts = sort_records(placed, findings)
    return {
        part: make_listing(tree.source, entries(paths), names, skeleton)
        for part, paths in parts.items()
    }


def _is_point(shape: Shape) -> bool:
    return shape.kind == "points" and len(shape.corners) == 1 and bool(shape.label)


def _instances_of(records: Sequence[ImageShapes], size: Size) -> list[_Instance]:
    shapes = [shape for record in records for shape in record.shapes]
    around = {number: one for number, one in enumerate(shapes) if one.kind != "points"}
    boxes = {number: box_of_shape(shape, size) for number, shape in around.items()}
    of_group = {shape.group: number for number, shape in around.items() if shape.group}
    found: dict[object, list[Shape]] = {number: [] for number in around}
    for shape in filter(_is_point, shapes):
        x, y = shape.corners[0]
        holding = [
            ((right - left) * (bottom - top), number)
            for number, (left, top, right, bottom) in boxes.items()
            if left <= x <= right and top <= y <= bottom
        ]
        key: object = f"group {shape.group}"
        if shape.group in of_group:
            key = of_group[shape.group]
        elif not shape.group and holding:
            key = min(holding)[1]
        found.setdefault(key, []).append(shape)
    return [
        (around[key] if isinstance(key, int) else None, points) for key, points in found.items()
    ]


def _annotate(
    instance: _Instance,
    keypoints: Sequence[str],
    ids: Mapping[str, int],
    size: Size,
    grouped: bool,
) -> Annotation:
    shape, points = instance
    counts: dict[str, int] = defaultdict(int)
    values = np.zeros((len(keypoints), 3))
    for one in points:
        counts[one.label] += 1
        values[keypoints.index(one.label)] = (*one.corners[0], 2)
    twice = [name for name, count in counts.items() if count > 1]
    fault = None if shape is None else shape.fault
    if twice and fault is None:
        fault = "with a keypoint given twice", twice[0]
    box = (0.0, 0.0, float(size[1]), float(size[0]))
    if shape is not None:
        box = box_of_shape(shape, size)
    elif grouped:
        box = box_around(values, size)
    return Annotation(
        where=(shape or points[0]).where,
        class_id=ids.get(SUBJECT if shape is None else shape.label, -1),
        box=box,
        keypoints=values.ravel().tolist(),
        fault=fault,
    )


LABELME_POSE: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="LabelMe points",
    recognise=_recognise,
    read=_read,
    looks_for="LabelMe (a JSON an image, with points)",
    file="a JSON of LabelMe",
    example="""
        1.jpg
        1.json  {"imagePath": "1.jpg", "imageHeight": 24, "imageWidth": 32, "imageData": null,
          | "shapes": [{"label": "mouse", "shape_type": "rectangle", "group_id": 1,
          |   "points": [[4, 5], [14, 13]]},
          | {"label": "left_ear", "shape_type": "point", "group_id": 1, "points": [[6, 7]]},
          | {"label": "right_ear", "shape_type": "point", "group_id": 1, "points": [[9, 7]]}]}
    """,
)
