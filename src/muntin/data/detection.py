# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which pictures a data set has and what objects are annotated in them, found by looking at it.

COCO, Pascal VOC and YOLO are told apart by their files. No picture is opened, except that the size
of one is read from the head of its file where the annotations do not say it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from muntin.data.archives import ARCHIVE_SUFFIXES, is_archive
from muntin.data.coco import find_coco, read_coco
from muntin.data.objects import NO_MASK, Findings
from muntin.data.trees import Tree, open_tree, part_in, part_of
from muntin.data.voc import find_voc, read_voc
from muntin.data.yolo import read_yolo
from muntin.data.yolo_layout import find_yolo, read_layout
from muntin.errors import DataError, shorten
from muntin.samples import DataSets, Listing, Problem

__all__ = ["list_detect"]

_Read = tuple[str, dict[str, Listing]]


def list_detect(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    masks: bool = False,
) -> DataSets:
    """List the pictures of a data set and the objects in them.

    What cannot be right is left out and named in `problems`: boxes without area or outside their
    picture, numbers that are not finite, unknown classes and pictures, annotations that are there
    twice, broken masks, pictures that are not there. Boxes that reach over the edge are cut.
    Pictures without objects stay.

    Args:
        path: A folder, a .zip or .tar, a COCO .json, or the data.yaml of a YOLO data set.
        class_names: Classes of a trained run; class numbers then follow them by name. When left
            out, they follow the numbers of COCO's categories, the sorted names of VOC, or the
            numbers of YOLO.
        masks: Whether every object must have a mask: one that has none is left out. Without,
            masks are not kept.

    Returns:
        The sets; one that stands alone is in `train`, whatever its name. Boxes are left, top,
        right and bottom edge in pixels.

    Raises:
        DataError: The path or the layout is wrong, or a whole file is in another unit or order
            than its format says; one line says what and where.
    """
    place = Path(path)
    if not str(path).strip() or not place.exists():
        message = (
            f"DATA must be a folder, an archive, a COCO .json or a data.yaml, found nothing at "
            f"{str(path)!r}. Check the path."
        )
        raise DataError(message)
    findings = Findings()
    if place.is_file() and not is_archive(place):
        kind, listings = _read_file(place, findings, class_names, masks)
    else:
        kind, listings = _read_tree(open_tree(place), findings, class_names, masks)
    return _join(kind, listings, findings, str(place), masks)


def _read_file(
    place: Path, findings: Findings, class_names: Sequence[str] | None, masks: bool
) -> _Read:
    suffix = place.suffix.lower()
    if suffix == ".json":
        tree, name = _tree_of_json(place)
        part = part_in(place.stem) or part_of(name.split("/")[:-1]) or "train"
        return "COCO", read_coco(tree, {part: name}, findings, class_names=class_names, masks=masks)
    if suffix in (".yaml", ".yml"):
        layout = read_layout(open_tree(place.parent), place.name)
        return "YOLO", read_yolo(layout, findings, class_names=class_names, masks=masks)
    message = (
        f"DATA must be a folder, a COCO .json, a data.yaml or an archive "
        f"({shorten(ARCHIVE_SUFFIXES, most=9)}), got the file {str(place)!r}. "
        f"Give the folder that holds the annotations and the pictures."
    )
    raise DataError(message)


def _tree_of_json(place: Path) -> tuple[Tree, str]:
    """The folder of a JSON or the one above, where its pictures are, and the JSON in it."""
    tree = open_tree(place.parent)
    if tree.pictures:
        return tree, place.name
    folder = Path(os.path.abspath(place)).parent
    return open_tree(folder.parent), f"{folder.name}/{place.name}"


def _read_tree(
    tree: Tree, findings: Findings, class_names: Sequence[str] | None, masks: bool
) -> _Read:
    jsons, loose = find_coco(tree)
    if jsons:
        if loose:
            findings.notes.append(f"left out, of no set: {shorten(loose)}")
        return "COCO", read_coco(tree, jsons, findings, class_names=class_names, masks=masks)
    if xmls := find_voc(tree):
        return "VOC", read_voc(tree, xmls, findings, class_names=class_names, masks=masks)
    settings = find_yolo(tree)
    if settings is not None:
        layout = read_layout(tree, settings)
        return "YOLO", read_yolo(layout, findings, class_names=class_names, masks=masks)
    seen = [
        f"{len(tree.pictures)} pictures",
        *(
            f"{len(names)} {suffix}, none of them {kind}"
            for suffix, kind in (
                (".json", "COCO"),
                (".xml", "VOC"),
                (".txt", "of a picture's name"),
            )
            if (names := tree.with_suffix(suffix))
        ),
    ]
    message = (
        f"No annotated objects in {tree.source!r} ({'; '.join(seen)}). Looked for COCO (a JSON "
        f"with images, annotations and categories, such as annotations/instances_train.json), "
        f"Pascal VOC (Annotations/*.xml) and YOLO (data.yaml, labels/*.txt). "
        f"Give the folder that holds the annotations and the pictures."
    )
    raise DataError(message)


def _join(
    kind: str, listings: Mapping[str, Listing], findings: Findings, source: str, masks: bool
) -> DataSets:
    counts = ", ".join(f"{part} {len(listing)}" for part, listing in listings.items())
    objects = {part: _count_objects(listing) for part, listing in listings.items()}
    sets = dict(listings)
    if len(sets) == 1:
        sets = {"train": next(iter(sets.values()))}
    num_classes = next(iter(sets.values())).num_classes
    note = f"{kind}, {counts} pictures, {' + '.join(map(str, objects.values()))} objects"
    without = findings.count(NO_MASK)
    bare = masks and without > 0 and not findings.num_masks
    problems = list(findings.problems(without=NO_MASK if bare else ""))
    if bare:
        what = f"none of {without} objects has a mask: train detect instead, which needs boxes only"
        problems.insert(0, Problem(file=source, what=what, severity="error"))
    elif "train" in sets and not objects[next(iter(objects))]:
        what = "no object to learn from or to score on: annotate some"
        problems.insert(0, Problem(file="train", what=what, severity="error"))
    notes = (f"{note} of {num_classes} classes", findings.summary(), *findings.notes)
    return DataSets(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        note="; ".join(note for note in notes if note),
        problems=tuple(problems),
        left_out=findings.summary(),
    )


def _count_objects(listing: Listing) -> int:
    return sum(len(entry.objects) for entry in listing.entries if entry.objects is not None)
