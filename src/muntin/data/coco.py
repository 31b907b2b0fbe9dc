# SPDX-License-Identifier: Apache-2.0
"""COCO: one JSON with the images, annotations and categories of a set.

Boxes are x, y, width, height in pixels, with (0, 0) the outer corner of the image. Numbers of
categories may have gaps.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.data.box_units import require_widths
from muntin.data.coco_images import (
    Files,
    Id,
    ImageRecord,
    Row,
    explain,
    find_images,
    name_lacking,
    plain_id,
    recognise,
)
from muntin.data.coco_keypoints import Points, common_points, points_of
from muntin.data.objects import (
    NO_BOX,
    UNKNOWN_CLASS,
    Annotation,
    AnnotationReport,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import (
    Reader,
    Source,
    clean_class_name,
    count_others,
    explain_some,
    number_classes,
)
from muntin.data.trees import Tree, read_json
from muntin.errors import DataError, shorten
from muntin.run_lengths import box_of, clean_segmentation
from muntin.samples import Entry, Listing, Skeleton
from muntin.shapes import Size

_CROWD = (1, True, "1")
_FEW = 3  # files that are explained one by one


@dataclass(kw_only=True, slots=True)
class _File:
    """One JSON, read; classes by the numbers of its categories."""

    part: str
    path: str
    images: list[Row]
    annotations: list[Any]
    categories: dict[Id, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)  # class -> supercategory
    points: dict[str, Points] = field(default_factory=dict)  # class -> its keypoints, if any
    found: dict[Id, ImageRecord] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """The annotations that are objects."""
        return (row for row in self.annotations if isinstance(row, dict))


def _read(source: Source, found: Files, request: ObjectRequest) -> dict[str, Listing]:
    tree, findings = source.tree, request.findings
    files, loose = found
    if loose:
        findings.notes.append(f"left out, of no set: {shorten(loose)}")
    read = [
        _read_file(tree, part, path, request.masks)
        for part, paths in files.items()
        for path in paths
    ]
    _read_brushed(read, findings)
    for file in read:
        _tell_twins(file, findings)
        file.found = find_images(file.images, tree, file.path, file.part, findings)
        require_widths(*_boxes_and_sizes(file), where=repr(file.path))
    findings.note_others(tree.images, findings.named, "an entry")
    for part, paths in files.items():
        if len(paths) > 1:
            _refuse_versions([file for file in read if file.part == part], tree.source)
            findings.notes.append(f"{part}: {len(paths)} files joined, {shorten(paths)}")
    skeleton = None
    if request.keypoints:
        points = common_points({file.path: file.points for file in read}, tree.source, findings)
        skeleton = Skeleton(names=points.names, edges=points.edges)
        _leave_out_pointless(read, findings)
    used = {name for file in read for name in _used_classes(file)}
    listed = [name for file in read for name in file.categories.values()]
    parents = {name: parent for file in read for name, parent in file.parents.items()}
    meant = [name for name in listed if name in used or not _is_leftover(name, parents)]
    names, ids = number_classes(meant, used, request.class_names, repr(tree.source))
    listings = {}
    for part in files:
        mine = [file for file in read if file.part == part]
        entries = _list_images(mine, ids, request, () if skeleton is None else skeleton.names)
        listings[part] = make_listing(tree.source, entries, names, skeleton)
    return listings


def _read_brushed(files: Sequence[_File], findings: AnnotationReport) -> None:
    """Read crowds as objects where there is nothing else: CVAT exports what was brushed so."""
    rows = [row for file in files for row in file.rows()]
    brushed = [
        row.get("iscrowd") in _CROWD and isinstance(row.get("segmentation"), dict) for row in rows
    ]
    if rows and all(brushed):
        for row in rows:
            row["iscrowd"] = 0
        findings.notes.append(
            f"all of {len(rows)} annotations are crowds with run lengths, as CVAT exports masks "
            f"that were drawn with a brush: read as objects"
        )


def _refuse_versions(files: Sequence[_File], source: str) -> None:
    """Refuse several files of the same images and classes: two versions, of which one is meant."""
    for place, one in enumerate(files):
        for other in files[place + 1 :]:
            shared = {image.path for image in one.found.values() if image.path} & {
                image.path for image in other.found.values()
            }
            if shared and _used_classes(one) & _used_classes(other):
                message = (
                    f"Several COCO JSONs of one set must describe different images, or different "
                    f"classes of them, got {one.path!r} and {other.path!r} in {source!r}, which "
                    f"both have {shorten(sorted(shared), limit=2)}. Give the one that is meant, or "
                    f"move the other away."
                )
                raise DataError(message)


def _read_file(tree: Tree, part: str, path: str, masks: bool) -> _File:
    def forget(row: Row) -> Row:
        if "bbox" in row and "area" in row:
            mask = row.pop("segmentation", None)
            if isinstance(mask, dict):  # remembered that it was run lengths
                row["segmentation"] = {}
        return row

    data = read_json(tree.source, path, hook=None if masks else forget)
    got = "a list" if isinstance(data, list) else f"a {type(data).__name__}"
    if isinstance(data, dict):
        got = f"{lacks} in it" if (lacks := name_lacking(data)) else ""
    if got:
        message = (
            f"A COCO JSON must be an object with the lists images, annotations and categories, "
            f"got {got} ({path!r} in {tree.source!r}). Export the annotations as COCO."
        )
        raise DataError(message)
    file = _File(part=part, path=path, images=data["images"], annotations=data["annotations"])
    _read_categories(data["categories"], file)
    return file


def _read_categories(rows: list[Any], file: _File) -> None:
    categories: dict[Id, str] = {}
    for number, row in enumerate(rows):
        key = plain_id(row.get("id")) if isinstance(row, dict) else None
        name = clean_class_name(row.get("name", "")) if isinstance(row, dict) else ""
        if key is None or not name or categories.get(key, name) != name:
            message = (
                f"Every category must have a name and an id of its own, got {row} as "
                f"categories[{number}] of {file.path!r}. Correct the file."
            )
            raise DataError(message)
        categories[key] = name
        file.parents[name] = clean_class_name(row.get("supercategory", ""))
        if isinstance(row.get("keypoints"), list) and row["keypoints"]:
            file.points[name] = points_of(row)
    ordered = sorted(categories.items(), key=lambda pair: (isinstance(pair[0], str), pair[0]))
    file.categories = dict(ordered)


def _leave_out_pointless(files: Sequence[_File], findings: AnnotationReport) -> None:
    """Forget the classes that have no keypoints, and their objects."""
    for file in files:
        known = {key: name for key, name in file.categories.items() if name in file.points}
        others = file.categories.keys() - known.keys()
        before = len(file.annotations)
        file.annotations = [
            row
            for row in file.annotations
            if not (isinstance(row, dict) and _id_of(row, "category_id") in others)
        ]
        if gone := before - len(file.annotations):
            findings.warn(file.path, f"{gone} objects are of classes without keypoints, not used")
        file.categories = known


def _tell_twins(file: _File, findings: AnnotationReport) -> None:
    """Name what a file has twice: taken all the same, but hardly meant."""
    names = Counter(file.categories.values())
    for name in (name for name, count in names.items() if count > 1):
        ids = shorten(key for key, other in file.categories.items() if other == name)
        findings.warn(file.path, f"categories {ids} are all named {name!r}: taken as one class")
    keys = Counter(key for row in file.rows() if (key := plain_id(row.get("id"))) is not None)
    if twice := [key for key, count in keys.items() if count > 1]:
        what = f"several annotations have the id {shorten(twice)}: all of them are kept"
        findings.warn(file.path, what)


def _used_classes(file: _File) -> set[str]:
    keys = {_id_of(row, "category_id") for row in file.rows()}
    return {file.categories[key] for key in keys if key in file.categories}


def _boxes_and_sizes(file: _File) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What can be read as boxes, and the size of the image of each."""
    boxes, sizes = [], []
    for row in file.rows():
        bbox = row.get("bbox")
        image = file.found.get(_id_of(row, "image_id")) if bbox else None
        if image is None or not image.path or not isinstance(bbox, list) or len(bbox) != 4:
            continue
        if all(type(number) in (int, float) for number in bbox):
            boxes.append(bbox)
            sizes.append(image.size)
    return np.array(boxes, float).reshape(-1, 4), np.array(sizes, float).reshape(-1, 2)


def _is_leftover(name: str, parents: Mapping[str, str]) -> bool:
    """Whether a class without objects is a placeholder for all others, which Roboflow adds."""
    others = [parent for other, parent in parents.items() if other != name]
    return bool(others) and all(parent == name for parent in others)


def _list_images(
    files: Sequence[_File],
    ids: Mapping[str, int],
    request: ObjectRequest,
    keypoint_names: Sequence[str],
) -> Iterator[Entry | None]:
    """The images of one part, each with what any of its files says."""
    images: dict[str, ImageRecord] = {}
    found: dict[str, list[Annotation]] = defaultdict(list)
    for file in files:
        rows = _by_image(file, request.findings)
        for image in file.found.values():
            images.setdefault(image.path, image)
        for image, mine in rows.items():
            for where, row in mine:
                name = file.categories.get(_id_of(row, "category_id"))
                one = _read_annotation(row, where, image.size)
                one.class_id = -1 if name is None else ids[name]
                if name is None and one.fault is None:
                    one.fault = UNKNOWN_CLASS, f"category_id {row.get('category_id')!r}"
                found[image.path].append(one)
    for path, image in images.items():
        if path:
            yield make_entry(path, image.size, found[path], request, keypoint_names=keypoint_names)


def _by_image(file: _File, findings: AnnotationReport) -> dict[ImageRecord, list[tuple[str, Row]]]:
    found: dict[ImageRecord, list[tuple[str, Row]]] = defaultdict(list)
    for number, row in enumerate(file.annotations):
        if not isinstance(row, dict):
            what = f"a {type(row).__name__}"
            findings.leave_out(file.path, f"annotations[{number}]", "not an object", what)
            continue
        where = f"annotation {row['id']}" if "id" in row else f"annotations[{number}]"
        image = file.found.get(_id_of(row, "image_id"))
        if image is None:
            detail = f"image_id {row.get('image_id')!r} is not in images"
            findings.leave_out(file.path, where, "of an unknown image", detail)
        else:
            found[image].append((where, row))
    return found


def _id_of(row: Row, key: str) -> Id:
    value = row.get(key)
    if type(value) is int:
        return value
    plain = plain_id(value)
    return "" if plain is None else plain


def _read_annotation(row: Row, where: str, size: Size) -> Annotation:
    segmentation = row.get("segmentation")
    bbox = row.get("bbox")
    try:
        if not bbox and segmentation:
            mask, fault = clean_segmentation(segmentation, size)
            if mask is None:
                detail = f"and its mask is of no use: {fault}"
                return Annotation(where=where, fault=(NO_BOX, detail))
            box = box_of(mask, size)
        else:
            x, y, width, height = map(float, bbox or ())
            box = (x, y, x + width, y + height)
    except (TypeError, ValueError):
        return Annotation(where=where, fault=(NO_BOX, f"bbox {bbox!r}"))
    area = row.get("area")
    return Annotation(
        where=where,
        box=box,
        crowd=row.get("iscrowd") in _CROWD,
        area=float(area) if isinstance(area, int | float) else None,
        segmentation=segmentation,
        keypoints=row.get("keypoints"),
    )


def _reject(source: Source) -> Sequence[str]:
    few = len(source.tree.with_suffix(".json")) <= _FEW
    reason = explain_some(".json", explain) if few else count_others(".json", "none of them COCO")
    return reason(source)


COCO: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="COCO",
    recognise=recognise,
    read=_read,
    looks_for="COCO (a JSON with images, annotations and categories, such as "
    "annotations/instances_train.json)",
    file="a COCO .json",
    reject=_reject,
)

COCO_KEYPOINTS: Reader[ObjectRequest, dict[str, Listing]] = replace(
    COCO,
    recognise=partial(recognise, keypoints=True),
    looks_for="COCO (a JSON such as annotations/person_keypoints_train.json)",
    reject=explain_some(".json", explain),
)
