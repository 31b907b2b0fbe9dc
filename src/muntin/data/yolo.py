# SPDX-License-Identifier: Apache-2.0
"""YOLO: one text per image, one row an object.

A row is the class number and centre x, centre y, width and height as fractions of the image,
perhaps with a confidence behind, or the class number and the points of a polygon (x, y, x, y ...).
The text of `images/a/1.jpg` is `labels/a/1.txt`, or lies beside the image; an image without one has
no objects.

With keypoints, these stand behind the box. `kpt_shape` in the `data.yaml` says how many keypoints
there are and whether each is x, y or x, y and visibility, in fractions of the image. Of two
numbers, (0, 0) and what is negative is a point that is not there. `flip_idx` gives the number of
each keypoint in a mirrored image, `kpt_names` their names.

Source:
    The reader of labels of Ultralytics (data/utils.py, verify_image_label).
    Differs: (0, 0) without visibility, which it takes for the corner of the image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from muntin.data.box_units import require_fractions
from muntin.data.objects import (
    BEYOND,
    NO_BOX,
    UNKNOWN_CLASS,
    WRONG_KEYPOINTS,
    Annotation,
    AnnotationReport,
    Fault,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import Reader, Source, count_others, number_classes
from muntin.data.skeletons import COCO_PERSON
from muntin.data.trees import Tree, open_tree, read_text
from muntin.data.yolo_layout import (
    Layout,
    PartLayout,
    find_yolo,
    label_of,
    read_layout,
    read_settings,
)
from muntin.errors import DataError, plural, shorten
from muntin.run_lengths import Edges
from muntin.samples import Entry, Listing, Skeleton
from muntin.shapes import Size

_WITH_CONFIDENCE = 5  # numbers behind the class
_MOST = 2  # no fraction of an image is larger


class _Row(NamedTuple):
    """One line of a text: the class number, then the others as they are written."""

    where: str
    class_number: int
    numbers: list[float]
    fault: Fault | None = None
    behind: Sequence[float] = ()  # the box, where rows have keypoints


class RowKeypoints(NamedTuple):
    """The keypoints behind the box of each row, and how many numbers one has: 2 or 3."""

    skeleton: Skeleton
    width: int


class _File(NamedTuple):
    image: str
    labels: str
    rows: list[_Row]


def recognise_yolo(source: Source) -> str | None:
    """The data.yaml; "" without one: folders of images and texts are recognised too."""
    if source.is_file:
        return source.path.name if source.suffix in (".yaml", ".yml") else None
    return find_yolo(source.tree)


def tree_of(source: Source) -> Tree:
    """Give the files: paths in a data.yaml are relative to it, wherever the images are."""
    return open_tree(source.path.parent) if source.is_file else source.tree


def read_yolo(
    source: Source, found: str, request: ObjectRequest, keypoints: RowKeypoints | None = None
) -> dict[str, Listing]:
    """Read the images and rows of a data set; `found` is its data.yaml, or ""."""
    tree = tree_of(source)
    layout = read_layout(tree, found)
    findings = request.findings
    findings.notes += layout.notes
    read = {name: _read_part(name, part, layout, findings) for name, part in layout.parts.items()}
    read = {name: files for name, files in read.items() if files}
    _tell_alone(layout, findings)
    if not read:
        message = (
            f"YOLO images must have texts in labels (images/1.jpg, labels/1.txt) or beside them, "
            f"got none for any set of {tree.source!r}. Check where the texts are."
        )
        raise DataError(message)
    every = [row for files in read.values() for file in files for row in file.rows]
    # Of a polygon, its first two points.
    boxes = [row.numbers[:4] for row in every if len(row.numbers) >= 4]
    require_fractions(np.array(boxes, np.float64).reshape(-1, 4), where=repr(tree.source))
    listed = layout.class_names
    used = {listed[row.class_number] for row in every if row.class_number in listed}
    numbers = {row.class_number for row in every if row.fault is None}
    if 0 in listed and 0 not in numbers and max(listed) + 1 in numbers:
        what = (
            f"class numbers must start at 0, and no row has 0, but some have {max(listed) + 1}, "
            f"one more than the last: every object may have the class after its own. If they count "
            f"from 1, subtract 1 in the texts, or number names from 1 in data.yaml"
        )
        findings.warn(found or tree.source, what)
    names, ids = number_classes(listed.values(), used, request.class_names, repr(tree.source))
    listings = {}
    for name, files in read.items():
        place = layout.parts[name].tree
        class_ids = {number: ids.get(listed[number], -1) for number in listed}
        entries = _list_images(files, place, class_ids, request, keypoints)
        skeleton = None if keypoints is None else keypoints.skeleton
        listings[name] = make_listing(place.source, entries, names, skeleton)
    return listings


def _read_part(
    name: str, part: PartLayout, layout: Layout, findings: AnnotationReport
) -> list[_File]:
    """Read the texts of a part; none when it has no text at all."""
    files = []
    without = 0
    for image in part.images:
        labels = label_of(image, part.tree)
        without += labels is None
        try:
            rows = _read_rows(part.tree, labels, layout.has_keypoints) if labels else []
        except DataError as error:
            findings.warn(image, f"left out: {error}")
            continue
        files.append(_File(image=image, labels=labels or image, rows=rows))
    if without == len(part.images):
        findings.notes.append(f"{name} left out: none of its {without} images has a text")
        return []
    if without:
        images = plural(without, "image")
        findings.notes.append(f"{images} of {name} without a text, hence without objects")
    return files


def _tell_alone(layout: Layout, findings: AnnotationReport) -> None:
    """Name the texts with boxes beside those of images that have no image themselves."""
    for tree in {part.tree.source: part.tree for part in layout.parts.values()}.values():
        used = {label for image in tree.images if (label := label_of(image, tree))}
        folders = {path.rpartition("/")[0] for path in used}
        for path in tree.with_suffix(".txt"):
            if path in used or path.rpartition("/")[0] not in folders:
                continue
            with contextlib.suppress(DataError):  # no UTF-8: no labels
                rows = _read_rows(tree, path, layout.has_keypoints)
                if rows and rows[0].fault is None:
                    findings.warn(path, "left out: its image is not there")


def _read_rows(tree: Tree, labels: str, has_keypoints: bool) -> list[_Row]:
    lines = enumerate(read_text(tree.source, labels).splitlines(), 1)
    return [
        _read_row(f"line {number}", line, has_keypoints) for number, line in lines if line.strip()
    ]


def _read_row(where: str, line: str, has_keypoints: bool) -> _Row:
    cells = line.split()
    try:
        class_number, *numbers = map(float, cells)
    except ValueError:
        return _Row(where, -1, [], ("not numbers", repr(line.strip()[:60])))
    behind: list[float] = []
    if has_keypoints or (len(numbers) == _WITH_CONFIDENCE and 0 <= numbers[-1] <= 1):
        numbers, behind = numbers[:4], numbers[4:]
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        detail = f"{len(cells)} numbers, must be 5, or an odd number from 7 on for a polygon"
        return _Row(where, -1, [], (NO_BOX, detail))
    fault = None
    if not class_number.is_integer():
        class_number, fault = -1, (UNKNOWN_CLASS, cells[0])
    elif max(numbers) > _MOST:
        fault = ("in pixels, not in fractions of the image", f"{max(numbers):g}")
    return _Row(where, int(class_number), numbers, fault, behind)


def _list_images(
    files: Sequence[_File],
    tree: Tree,
    ids: Mapping[int, int],
    request: ObjectRequest,
    keypoints: RowKeypoints | None,
) -> Iterator[Entry | None]:
    findings, points = request.findings, () if keypoints is None else keypoints.skeleton.names
    for file in files:
        if (size := findings.size_of(tree.source, file.image)) is None:
            continue
        annotations = [_annotate(row, ids, size, keypoints) for row in file.rows]
        yield make_entry(
            file.image, size, annotations, request, file=file.labels, keypoint_names=points
        )


def _annotate(
    row: _Row, ids: Mapping[int, int], size: Size, keypoints: RowKeypoints | None
) -> Annotation:
    one = Annotation(where=row.where, fault=row.fault)
    if row.fault is None and row.class_number not in ids:
        numbers = f"0 to {max(ids)}" if max(ids) < len(ids) else shorten(map(str, ids))
        # A table with gaps leaves classes out on purpose.
        kind = UNKNOWN_CLASS if 0 <= row.class_number < max(ids) else BEYOND
        one.fault = kind, f"{row.class_number}, the classes are {numbers}"
    if one.fault is not None and one.fault[0] not in (UNKNOWN_CLASS, BEYOND):
        return one
    one.box, one.segmentation = _to_pixels(row, size)
    one.class_id = ids.get(row.class_number, -1)
    if keypoints is not None and one.fault is None:
        wanted = len(keypoints.skeleton.names) * keypoints.width
        if len(row.behind) != wanted:
            detail = f"{5 + len(row.behind)} numbers, {5 + wanted} needed"
            one.fault = WRONG_KEYPOINTS, detail
        else:
            one.keypoints = _read_points(row.behind, keypoints.width, size)
    return one


def _read_points(numbers: Sequence[float], width: int, size: Size) -> list[float]:
    """x, y and visibility in pixels, as converters from COCO write them: times the sides."""
    found = np.array(numbers, np.float64).reshape(-1, width)
    there = (found[:, :2] >= 0).all(axis=1) & (found[:, :2] != 0).any(axis=1)
    visibility = found[:, 2] if width == 3 else 2.0 * there
    points = np.c_[found[:, :2] * [size[1], size[0]], visibility]
    values: list[float] = points.ravel().tolist()
    return values


def _to_pixels(row: _Row, size: Size) -> tuple[Edges, list[list[float]] | None]:
    height, width = size
    polygon = None
    if len(row.numbers) == 4:
        x, y, wide, high = row.numbers
        xs = [(x - wide / 2) * width, (x + wide / 2) * width]
        ys = [(y - high / 2) * height, (y + high / 2) * height]
        box = xs[0], ys[0], xs[1], ys[1]
    else:
        xs = [x * width for x in row.numbers[::2]]
        ys = [y * height for y in row.numbers[1::2]]
        box = min(xs), min(ys), max(xs), max(ys)
        polygon = [[number for point in zip(xs, ys, strict=True) for number in point]]
    return box, polygon


YOLO: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="YOLO",
    recognise=recognise_yolo,
    read=read_yolo,
    looks_for="YOLO (data.yaml, labels/*.txt)",
    file="a data.yaml",
    reject=count_others(".txt", "none of them named like an image"),
)


_PERSON_FLIPS = tuple(COCO_PERSON.partners)


def _recognise_pose(source: Source) -> str | None:
    named = recognise_yolo(source)
    return named if named and "kpt_shape" in read_settings(tree_of(source), named) else None


def _reject_pose(source: Source) -> Sequence[str]:
    named = find_yolo(source.tree)
    return [f"{named!r} has no kpt_shape"] if named else []


def _read_pose(source: Source, found: str, request: ObjectRequest) -> dict[str, Listing]:
    values = read_settings(tree_of(source), found)
    count, width = _shape_of(values, found)
    skeleton = _skeleton_of(values, count, request.findings.notes)
    return read_yolo(source, found, request, RowKeypoints(skeleton, width))


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


YOLO_POSE: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="YOLO pose",
    recognise=_recognise_pose,
    read=_read_pose,
    looks_for="YOLO (a data.yaml with kpt_shape, labels/*.txt)",
    file="a data.yaml",
    reject=_reject_pose,
)
