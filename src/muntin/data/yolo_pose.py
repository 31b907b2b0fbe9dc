# SPDX-License-Identifier: Apache-2.0
"""YOLO with keypoints: a row is the class number, the box, and then each keypoint.

`kpt_shape` in the `data.yaml` says how many keypoints there are and whether each is x, y or x, y
and visibility, in fractions of the image. Of two numbers, (0, 0) and what is negative is a point
that is not there. `flip_idx` gives the number of each keypoint in a mirrored image, `kpt_names`
their names.

Source:
    The reader of labels of Ultralytics (data/utils.py, verify_image_label).
    Differs: (0, 0) without visibility, which it takes for the corner of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from muntin.data.box_units import require_fractions
from muntin.data.objects import (
    UNKNOWN_CLASS,
    WRONG_KEYPOINTS,
    Annotation,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import Reader, Source, number_classes
from muntin.data.skeletons import COCO_PERSON
from muntin.data.trees import Tree, open_tree, read_text
from muntin.data.yolo_layout import find_yolo, label_of, read_layout, read_settings
from muntin.errors import DataError
from muntin.samples import Entry, Listing, Skeleton

_PERSON_FLIPS = tuple(COCO_PERSON.partners)

_Row = tuple[str, list[float]]
"""Where it is, and its numbers; none where it holds something else."""


def _recognise(source: Source) -> str | None:
    tree = open_tree(source.path.parent) if source.is_file else source.tree
    if source.is_file:
        named = source.path.name if source.suffix in (".yaml", ".yml") else ""
    else:
        named = find_yolo(tree) or ""
    return named if named and "kpt_shape" in read_settings(tree, named) else None


def _reject(source: Source) -> Sequence[str]:
    named = find_yolo(source.tree)
    return [f"{named!r} has no kpt_shape"] if named else []


def _read(source: Source, found: str, request: ObjectRequest) -> dict[str, Listing]:
    tree = open_tree(source.path.parent) if source.is_file else source.tree
    layout, values = read_layout(tree, found), read_settings(tree, found)
    count, width = _shape_of(values, found)
    request.findings.notes += layout.notes
    skeleton = _skeleton_of(values, count, request.findings.notes)
    rows = {
        (part, image): _read_rows(place.tree, image)
        for part, place in layout.parts.items()
        for image in place.images
    }
    every = [numbers for found in rows.values() for _, numbers in found if len(numbers) > 4]
    boxes = np.array([numbers[1:5] for numbers in every if len(numbers) > 4], np.float64)
    require_fractions(boxes.reshape(-1, 4), where=repr(tree.source))
    listed = layout.class_names
    used = {listed[int(numbers[0])] for numbers in every if numbers[0] in listed}
    names, ids = number_classes(listed.values(), used, request.class_names, repr(tree.source))
    ids = {str(number): ids[name] for number, name in listed.items() if name in ids}

    def entries(part: str) -> Iterator[Entry | None]:
        place = layout.parts[part].tree
        for image in layout.parts[part].images:
            if (size := request.findings.size_of(place.source, image)) is None:
                continue
            found = [_annotate(row, (count, width), ids, size) for row in rows[part, image]]
            file = label_of(image, place) or image
            yield make_entry(image, size, found, request, file=file, keypoint_names=skeleton.names)

    labelled = [part for part in layout.parts if any(rows[key] for key in rows if key[0] == part)]
    if not labelled:
        message = (
            f"YOLO images must have texts in labels (images/1.jpg, labels/1.txt) or beside them, "
            f"got none with a row for any set of {tree.source!r}. Check where the texts are."
        )
        raise DataError(message)
    return {
        part: make_listing(layout.parts[part].tree.source, entries(part), names, skeleton)
        for part in labelled
    }


def _shape_of(values: Mapping[str, Any], settings: str) -> tuple[int, int]:
    """Keypoints and numbers of each."""
    shape = values["kpt_shape"]
    sides = [int(one) for one in shape if str(one).isdecimal()] if isinstance(shape, list) else []
    if len(sides) != 2 or sides[0] < 1 or sides[1] not in (2, 3):
        message = (
            f"kpt_shape in {settings!r} must be a number of keypoints and 2 or 3 numbers of each, "
            f"such as [17, 3], got {shape!r}. Correct the file."
        )
        raise DataError(message)
    return sides[0], sides[1]


def _skeleton_of(values: Mapping[str, Any], count: int, notes: list[str]) -> Skeleton:
    named = values.get("kpt_names")
    if isinstance(named, dict):  # by class, which share them, or by number
        first = next(iter(named.values()), None)
        named = first if isinstance(first, list) else list(named.values())
    flips = values.get("flip_idx")
    flips = [int(one) for one in flips if str(one).isdecimal()] if isinstance(flips, list) else []
    names = tuple(map(str, named)) if isinstance(named, list) else ()
    if len(set(names)) != count:
        person = tuple(flips) == _PERSON_FLIPS and count == len(_PERSON_FLIPS)
        names = COCO_PERSON.names if person else tuple(f"point {n}" for n in range(count))
    valid = len(flips) == count and all(
        other < count and flips[other] == one for one, other in enumerate(flips)
    )
    if flips and not valid:
        notes.append(f"flip_idx left out: not {count} keypoints that are exchanged in pairs")
    pairs = tuple((one, other) for one, other in enumerate(flips) if one < other) if valid else ()
    return Skeleton(names=names, flip_pairs=pairs, mirrored=valid)


def _read_rows(tree: Tree, image: str) -> list[_Row]:
    labels = label_of(image, tree)
    rows: list[_Row] = []
    lines = read_text(tree.source, labels).splitlines() if labels else []
    for number, line in enumerate(lines, 1):
        try:
            numbers = [float(cell) for cell in line.split()]
        except ValueError:
            rows.append((f"line {number}", []))
            continue
        if numbers:
            rows.append((f"line {number}", numbers))
    return rows


def _annotate(
    row: _Row, shape: tuple[int, int], ids: Mapping[str, int], size: tuple[int, int]
) -> Annotation:
    where, numbers = row
    count, width = shape
    if not numbers:
        return Annotation(where=where, fault=("not numbers", ""))
    if len(numbers) < 5:
        return Annotation(where=where, fault=(WRONG_KEYPOINTS, f"{len(numbers)} numbers"))
    x, y, wide, high = numbers[1:5]
    box = x - wide / 2, y - high / 2, x + wide / 2, y + high / 2
    edges = box[0] * size[1], box[1] * size[0], box[2] * size[1], box[3] * size[0]
    class_id, fault = ids.get(f"{numbers[0]:g}", -1), None
    if class_id < 0:
        fault = UNKNOWN_CLASS, f"{numbers[0]:g}"
    elif len(numbers) != 5 + count * width:
        fault = WRONG_KEYPOINTS, f"{len(numbers)} numbers, {5 + count * width} needed"
    points = np.zeros((count, 3))
    if fault is None:
        found = np.array(numbers[5:], np.float64).reshape(count, width)
        there = (found[:, :2] >= 0).all(axis=1) & (found[:, :2] != 0).any(axis=1)
        # As written by converters from COCO, whose points are divided by the sides as they are.
        points[:, :2] = found[:, :2] * [size[1], size[0]]
        points[:, 2] = found[:, 2] if width == 3 else 2 * there
    return Annotation(
        where=where, class_id=class_id, box=edges, keypoints=points.ravel().tolist(), fault=fault
    )


YOLO_POSE: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="YOLO pose",
    recognise=_recognise,
    read=_read,
    looks_for="YOLO (a data.yaml with kpt_shape, labels/*.txt)",
    file="a data.yaml",
    reject=_reject,
)
