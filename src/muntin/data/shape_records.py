# SPDX-License-Identifier: Apache-2.0
"""What annotation tools draw on images, in one form, and what it becomes as objects.

A reader of a tool's files makes an `ImageShapes` for each image; everything after that is the same
for all of them. Images without a record have not been looked at by anybody, and are left out. A
rectangle is the mask of its object where all objects of its class are rectangles and other classes
have outlines; else it is a box without a mask.
"""

from __future__ import annotations

import itertools
import math
import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from muntin.data.coco_images import match_names
from muntin.data.objects import (
    NOWHERE,
    Annotation,
    AnnotationReport,
    Fault,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import Source, number_classes
from muntin.data.trees import PARTS, Tree, by_stem, clean_name, fold, part_of
from muntin.errors import DataError, plural, shorten
from muntin.run_lengths import Edges, Segmentation, box_of, merge_masks
from muntin.samples import Entry, Listing
from muntin.shapes import Size

UNNAMED: Fault = ("without a class name", "")
_CORNERS = 72  # of the polygon that stands for an ellipse: less than 0.1 % of its radius off

Point = tuple[float, float]


@dataclass(kw_only=True, slots=True)
class Shape:
    """One shape, in pixels; (0, 0) is the outer corner of the image.

    Attributes:
        where: What finds it in its file: "shape 3".
        kind: "box"; "area" with an outline; "points" and "line" have no area.
        corners: Of a box two opposite ones; of points and lines all of them.
        outline: Polygons or run lengths of an area.
        group: Shapes of one class and one group are one object; "" = an object of its own.
        fault: Why it cannot be learnt from, although its object is there.
        occluded: Whether a point is annotated but hidden.
        keypoints: Of a skeleton, x, y and visibility (0 not there, 1 hidden, 2 visible) by name.
    """

    where: str
    label: str = ""
    kind: Literal["box", "area", "points", "line"] = "box"
    corners: Sequence[Point] = ()
    outline: Segmentation | None = None
    group: str = ""
    fault: Fault | None = None
    occluded: bool = False
    keypoints: dict[str, tuple[float, float, int]] = field(default_factory=dict)

    @property
    def has_area(self) -> bool:
        """Whether it is a box or an outline."""
        return self.kind in ("box", "area")


@dataclass(kw_only=True, slots=True)
class ImageShapes:
    """What a file says of one image.

    `names` are names that the image may have, the likeliest first, paths perhaps of another
    machine, with or without a suffix. `size` and `part`, the set, are known where the file has
    them. With `fractions`, corners are fractions of the sides of the image.
    """

    file: str
    names: Sequence[str]
    size: Size | None = None
    part: str = ""
    shapes: list[Shape] = field(default_factory=list)
    fractions: bool = False


ReadRecords = Callable[[Source, Sequence[str], ObjectRequest], list[ImageShapes]]


def list_shapes(
    tree: Tree, records: Sequence[ImageShapes], request: ObjectRequest
) -> dict[str, Listing]:
    """List the images of records, and their shapes as objects; classes in the order of names."""
    findings = request.findings
    placed = locate_records(records, tree, findings)
    shapes = [one for found in placed.values() for record in found for one in record.shapes]
    areas = [shape for shape in shapes if shape.has_area]
    if without := len(shapes) - len(areas):
        findings.notes.append(f"{plural(without, 'shape')} without area left out (points, lines)")
    used = sorted({shape.label for shape in areas if shape.label and not shape.fault})
    names, ids = number_classes(used, used, request.class_names, repr(tree.source))
    filled = _filled_classes(areas, findings) if request.masks else set()

    def list_image(path: str) -> Entry | None:
        records = placed[path]
        size = next((record.size for record in records if record.size), None)
        size = size or findings.size_of(tree.source, path)
        if size is None:
            return None
        for shape in (one for record in records if record.fractions for one in record.shapes):
            shape.corners = [(x * size[1], y * size[0]) for x, y in shape.corners]
        annotations = [
            one for record in records for one in _join_groups(record.shapes, ids, filled, size)
        ]
        return make_entry(path, size, annotations, request, file=records[0].file)

    return {
        part: make_listing(tree.source, map(list_image, paths), names)
        for part, paths in sort_records(placed, findings).items()
    }


def read_shapes(
    read_records: ReadRecords, source: Source, found: Sequence[str], request: ObjectRequest
) -> dict[str, Listing]:
    """List what a reader of a tool's files says of images."""
    return list_shapes(source.tree, read_records(source, found, request), request)


def locate_records(
    records: Sequence[ImageShapes], tree: Tree, findings: AnnotationReport
) -> dict[str, list[ImageShapes]]:
    """Find the image of each record, and name those that are not there."""
    stems = by_stem(tree.images)
    found: dict[str, list[ImageShapes]] = defaultdict(list)
    paths = [_find_beside(record, tree) for record in records]
    tries = range(max((len(record.names) for record in records), default=0))
    for turn, part in itertools.product(tries, {record.part for record in records}):
        rest = [
            number
            for number, record in enumerate(records)
            if not paths[number] and record.part == part and turn < len(record.names)
        ]
        names = [clean_name(records[number].names[turn]) for number in rest]
        matched = match_names(names, tree, "", part)
        for number, name, match in zip(rest, names, matched, strict=True):
            home = posixpath.dirname(records[number].file)
            alike = stems.get(fold(name).rpartition("/")[2], [])
            alike = [one for one in alike if posixpath.dirname(one) == home] or alike
            paths[number] = match or (alike[0] if len(alike) == 1 else None)
    for record, place in zip(records, paths, strict=True):
        if place:
            found[place].append(record)
        else:
            findings.warn(record.file, f"its image {record.names[0]!r} is not there, left out")
    if not found:
        message = (
            f"The images that annotations name must lie in {tree.source!r}, got none of "
            f"{len(records)} there, the first is {records[0].names[0]!r} of {records[0].file!r}. "
            f"Give the folder that holds both."
        )
        raise DataError(message)
    if others := len(tree.images) - len(found):
        images = plural(others, "image")
        findings.notes.append(f"{images} without annotations left out: nobody has looked at them")
    return found


def _find_beside(record: ImageShapes, tree: Tree) -> str | None:
    """The image of exactly that name, seen from the folder of the file."""
    home = posixpath.dirname(record.file)
    written = record.names[0].replace("\\", "/")
    path = tree.find(posixpath.normpath(posixpath.join(home, written)))
    return path if path in tree.by_name.get(fold(posixpath.basename(written)), ()) else None


def sort_records(
    placed: Mapping[str, Sequence[ImageShapes]], findings: AnnotationReport
) -> dict[str, list[str]]:
    """The images of each set, by what a file says, else by the names of their folders."""
    parts: dict[str, list[str]] = defaultdict(list)
    for path, records in placed.items():
        said = next((record.part for record in records if record.part), "")
        parts[said or part_of(path.split("/")[:-1])].append(path)
    if set(parts) <= {"", "train"}:
        return {"train": [*placed]}
    if loose := parts[""]:
        images = plural(len(loose), "image")
        findings.notes.append(f"{images} in no train, val or test folder left out")
    return {part: parts[part] for part in PARTS if part in parts}


def _filled_classes(areas: Iterable[Shape], findings: AnnotationReport) -> set[str]:
    """The classes whose rectangles are masks."""
    boxes: dict[str, int] = defaultdict(int)
    outlined = set()
    for shape in areas:
        if shape.kind == "box":
            boxes[shape.label] += 1
        else:
            outlined.add(shape.label)
    filled = boxes.keys() - outlined if outlined else set()
    if filled:
        what = "all of them are rectangles, taken as the masks of their objects"
        findings.notes.append(f"{shorten(sorted(filled))}: {what}")
    return filled


def _join_groups(
    shapes: Sequence[Shape], ids: Mapping[str, int], filled: set[str], size: Size
) -> Iterator[Annotation]:
    groups: dict[object, list[Shape]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        if shape.has_area:
            groups[(shape.label, shape.group) if shape.group else number].append(shape)
    for members in groups.values():
        first = members[0]
        boxes = [box_of_shape(shape, size) for shape in members]
        fault = next((shape.fault for shape in members if shape.fault), None)
        fault = fault or (None if first.label else UNNAMED)
        left, top = (min(box[side] for box in boxes) for side in (0, 1))
        right, bottom = (max(box[side] for box in boxes) for side in (2, 3))
        known = not any(box is NOWHERE for box in boxes)
        if not known:
            fault = fault or ("without an outline that can be read", "")
        outlines = [
            _rectangle(shape) if shape.kind == "box" and shape.label in filled else shape.outline
            for shape in members
        ]
        yield Annotation(
            where=first.where,
            class_id=ids.get(first.label, -1),
            box=(left, top, right, bottom) if known else NOWHERE,
            segmentation=merge_masks([one for one in outlines if one], size),
            fault=fault,
        )


def box_of_shape(shape: Shape, size: Size) -> Edges:
    """Give the box around a shape; `NOWHERE` if it cannot be read."""
    if isinstance(shape.outline, dict):
        return box_of(shape.outline, size)
    points = shape.corners
    if shape.outline:
        xs = [x for polygon in shape.outline for x in polygon[::2]]
        ys = [y for polygon in shape.outline for y in polygon[1::2]]
        points = [*zip(xs, ys, strict=True)]
    if len(points) < 2 or not all(math.isfinite(number) for point in points for number in point):
        return NOWHERE
    across, down = zip(*points, strict=True)
    return min(across), min(down), max(across), max(down)


def _rectangle(shape: Shape) -> Segmentation | None:
    if len(shape.corners) != 2:
        return None
    (x0, y0), (x1, y1) = shape.corners
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def read_points(pairs: Any) -> list[Point]:  # noqa: ANN401
    """Read pairs of numbers; none where one is no pair, or these are no pairs at all."""
    try:
        return [(float(x), float(y)) for x, y in pairs]
    except (TypeError, ValueError):
        return []


def polygon(points: Sequence[Point]) -> Segmentation | None:
    """Give the outline through points; None for fewer than three."""
    return [[number for point in points for number in point]] if len(points) > 2 else None


def read_number(values: Mapping[str, Any], name: str, default: float = math.nan) -> float:
    """Read an attribute of a shape; nan where it is no number."""
    try:
        return float(values.get(name, default))
    except (TypeError, ValueError):
        return math.nan


def rotated_box(x: float, y: float, sides: Point, degrees: float, pivot: Point) -> Segmentation:
    """Give the outline of a rectangle from (x, y) on that is turned clockwise about a point."""
    width, height = sides
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    turn = math.radians(degrees)
    turned = []
    for across, down in ((corner[0] - pivot[0], corner[1] - pivot[1]) for corner in corners):
        turned.append(pivot[0] + across * math.cos(turn) - down * math.sin(turn))
        turned.append(pivot[1] + across * math.sin(turn) + down * math.cos(turn))
    return [turned]


def ellipse(centre: Point, radii: Point, degrees: float = 0.0) -> Segmentation:
    """Give the outline of an ellipse, turned clockwise, as a polygon."""
    turn = math.radians(degrees)
    polygon = []
    for number in range(_CORNERS):
        angle = 2 * math.pi * number / _CORNERS
        across, down = radii[0] * math.cos(angle), radii[1] * math.sin(angle)
        polygon.append(centre[0] + across * math.cos(turn) - down * math.sin(turn))
        polygon.append(centre[1] + across * math.sin(turn) + down * math.cos(turn))
    return [polygon]
