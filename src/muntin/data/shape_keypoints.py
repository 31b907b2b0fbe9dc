# SPDX-License-Identifier: Apache-2.0
"""Points that annotation tools draw, as keypoints: of LabelMe, CVAT, VIA and Label Studio.

A point is a keypoint, named by its label. Points of one group are an instance; a rectangle or an
outline of the same group is its box and class. Points of no group belong to the smallest shape that
holds them, else all to one instance. A skeleton, and several points that are one shape, are an
instance of their own, of the class of their label, unless a shape of this class holds it; such
points are numbered. Without a shape, the box of an instance is that of its points, or the image
where no file has groups.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muntin.data import cvat, label_studio, labelme, via
from muntin.data.archives import read_bytes
from muntin.data.deeplabcut import SUBJECT, box_around
from muntin.data.objects import (
    WRONG_KEYPOINTS,
    Annotation,
    Fault,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import Reader, Source, number_classes
from muntin.data.shape_records import (
    ImageShapes,
    ReadRecords,
    Shape,
    box_of_shape,
    locate_records,
    sort_records,
)
from muntin.data.trees import Tree, by_numbers
from muntin.samples import Entry, Listing, Skeleton
from muntin.shapes import Size


@dataclass(kw_only=True, slots=True)
class _Instance:
    """One instance: its class, the shape around it, and (x, y, visibility) of named points."""

    where: str
    label: str = SUBJECT
    around: Shape | None = None
    fault: Fault | None = None
    points: list[tuple[str, tuple[float, float, int]]] = field(default_factory=list)


def list_keypoints(
    tree: Tree, records: Sequence[ImageShapes], request: ObjectRequest
) -> dict[str, Listing]:
    """List the images of records, and their points as keypoints of instances."""
    findings = request.findings
    placed = locate_records(records, tree, findings)
    shapes = [shape for record in records for shape in record.shapes]
    _number_points(shapes)
    named = {name for shape in shapes for name, _ in _points_of(shape)}
    keypoints = tuple(
        sorted(named, key=lambda name: (int(name) if name.isdecimal() else -1, by_numbers(name)))
    )
    holders = [shape for shape in shapes if shape.has_area or shape.keypoints]
    grouped = bool(holders) or any(shape.group for shape in shapes)
    classes = sorted({shape.label for shape in holders if shape.label})
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


def _number_points(shapes: Sequence[Shape]) -> None:
    """Make keypoints of several points that are one shape: as many as most of its label have."""
    several: dict[str, list[Shape]] = defaultdict(list)
    for shape in shapes:
        if shape.kind == "points" and len(shape.corners) > 1:
            several[shape.label].append(shape)
    for label, found in several.items():
        count = Counter(len(shape.corners) for shape in found).most_common(1)[0][0]
        for shape in found:
            pairs = list(shape.corners)[:count]
            shape.keypoints = {f"{label} {n}".strip(): (*xy, 2) for n, xy in enumerate(pairs)}
            if len(shape.corners) != count:
                shape.fault = WRONG_KEYPOINTS, f"{len(shape.corners)} points, {count} needed"


def _points_of(shape: Shape) -> list[tuple[str, tuple[float, float, int]]]:
    if shape.kind == "points" and len(shape.corners) == 1 and shape.label:
        return [(shape.label, (*shape.corners[0], 1 if shape.occluded else 2))]
    return [*shape.keypoints.items()]


def _instances_of(records: Sequence[ImageShapes], size: Size) -> list[_Instance]:
    shapes = [shape for record in records for shape in record.shapes]
    around = {number: one for number, one in enumerate(shapes) if one.has_area}
    boxes = {number: box_of_shape(shape, size) for number, shape in around.items()}
    of_group = {shape.group: number for number, shape in around.items() if shape.group}
    found: dict[object, _Instance] = {
        number: _Instance(where=one.where, label=one.label, around=one, fault=one.fault)
        for number, one in around.items()
    }
    for number, shape in enumerate(shapes):
        points = _points_of(shape)
        there = [(x, y) for _, (x, y, visibility) in points if visibility]
        if not there:
            continue
        own = bool(shape.keypoints)
        holding = [
            ((right - left) * (bottom - top), place)
            for place, (left, top, right, bottom) in boxes.items()
            if not own or around[place].label == shape.label
            if all(left <= x <= right and top <= y <= bottom for x, y in there)
        ]
        key: object = f"own {number}" if own else f"group {shape.group}"
        if shape.group in of_group:
            key = of_group[shape.group]
        elif not shape.group and holding:
            key = min(holding)[1]
        one = found.setdefault(
            key, _Instance(where=shape.where, label=shape.label if own else SUBJECT)
        )
        one.points += points
        one.fault = one.fault or shape.fault
    return [*found.values()]


def _annotate(
    one: _Instance,
    keypoints: Sequence[str],
    ids: Mapping[str, int],
    size: Size,
    grouped: bool,
) -> Annotation:
    counts = Counter(name for name, _ in one.points)
    values = np.zeros((len(keypoints), 3))
    for name, point in one.points:
        values[keypoints.index(name)] = point
    twice = [name for name, count in counts.items() if count > 1]
    fault = one.fault or (("with a keypoint given twice", twice[0]) if twice else None)
    box = (0.0, 0.0, float(size[1]), float(size[0]))
    if one.around is not None:
        box = box_of_shape(one.around, size)
    elif grouped:
        box = box_around(values, size)
    return Annotation(
        where=one.where,
        class_id=ids.get(one.label, -1),
        box=box,
        keypoints=values.ravel().tolist(),
        fault=fault,
    )


def _keypoint_reader(
    reader: Reader[ObjectRequest, dict[str, Listing]], read_records: ReadRecords, *marks: bytes
) -> Reader[ObjectRequest, dict[str, Listing]]:
    """Make a reader of the points in files that a reader of objects recognises, by `marks`."""

    def recognise(source: Source) -> Any:  # noqa: ANN401
        names = reader.recognise(source) or []
        texts = (read_bytes(source.tree.source, name) for name in names)
        return names if any(mark in text for text in texts for mark in marks) else None

    def read(source: Source, found: Any, request: ObjectRequest) -> dict[str, Listing]:  # noqa: ANN401
        return list_keypoints(source.tree, read_records(source, found, request), request)

    return Reader(
        name=f"{reader.name} points",
        recognise=recognise,
        read=read,
        looks_for=f"points of {reader.looks_for}",
        file=reader.file,
    )


SHAPE_KEYPOINTS: tuple[Reader[ObjectRequest, dict[str, Listing]], ...] = (
    _keypoint_reader(labelme.LABELME, labelme.read_records, b'"point"'),
    _keypoint_reader(cvat.CVAT, cvat.read_records, b"<points", b"<skeleton"),
    _keypoint_reader(via.VIA, via.read_records, b'"point"'),
    _keypoint_reader(label_studio.LABEL_STUDIO, label_studio.read_records, b'"keypointlabels"'),
)
"""Readers of points, in the order in which they are tried."""
