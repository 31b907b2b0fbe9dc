# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which images a data set has and what objects are annotated in them, found by looking at it.

The first of `READERS` that recognises the files reads them. No image is decoded; where the
annotations lack its size, it is read from the head of the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from muntin.data.coco import COCO
from muntin.data.objects import NO_MASK, AnnotationReport, ObjectRequest
from muntin.data.readers import Reader, count_parts, find_reader, join_parts, name_parts
from muntin.data.voc import VOC
from muntin.data.yolo import YOLO
from muntin.errors import plural
from muntin.samples import DataSets, Listing, Problem

__all__ = ["READERS", "list_detect"]

READERS: tuple[Reader[ObjectRequest, dict[str, Listing]], ...] = (COCO, VOC, YOLO)
"""Layouts of annotated objects, in the order in which they are tried."""


def list_detect(
    path: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    masks: bool = False,
    readers: Sequence[Reader[ObjectRequest, dict[str, Listing]]] = READERS,
) -> DataSets:
    """List the images of a data set and the objects in them.

    Invalid annotations are left out and reported in `problems`: boxes without area or outside their
    image, numbers that are not finite, unknown classes and images, duplicate
    annotations, broken masks, missing images. Boxes are clipped to the image.
    Images without objects stay.

    Args:
        path: A folder, a .zip or .tar, a COCO .json, or the data.yaml of a YOLO data set.
        class_names: Classes of a trained run; class numbers then follow them by name. When left
            out, they follow the numbers of COCO's categories, the sorted names of VOC, or the
            numbers of YOLO.
        masks: Whether every object must have a mask: one that has none is left out. Without,
            masks are not kept.
        readers: Layouts to try, in this order.

    Returns:
        The sets; a single set is in `train`, whatever its name. Boxes are left, top,
        right and bottom edge in pixels.

    Raises:
        DataError: The path or the layout is wrong, or a whole file is in another unit or order
            than its format requires; the message names what and where.
    """
    match = find_reader(path, readers, what="annotated objects")
    findings = AnnotationReport()
    listings = match.read(ObjectRequest(findings=findings, class_names=class_names, masks=masks))
    return _join(match.reader.name, listings, findings, str(Path(path)), masks)


def _join(
    kind: str, listings: Mapping[str, Listing], findings: AnnotationReport, source: str, masks: bool
) -> DataSets:
    sizes = count_parts({part: len(listing) for part, listing in listings.items()})
    counts = [_count_objects(listing) for listing in listings.values()]
    objects = f"{' + '.join(map(str, counts))} object{'s' * (counts != [1])}"
    sets = name_parts(listings)
    classes = plural(next(iter(sets.values())).num_classes, "class", "classes")
    without = findings.count(NO_MASK)
    bare = masks and without > 0 and not findings.num_masks
    problems = findings.problems(without=NO_MASK if bare else "")
    if bare:
        what = f"none of {without} objects has a mask: use the task detect, which needs boxes only"
        problems.insert(0, Problem(file=source, what=what, severity="error"))
    elif "train" in sets and not counts[0]:
        what = "no annotated object: nothing to train on or to evaluate"
        problems.insert(0, Problem(file="train", what=what, severity="error"))
    left_out = findings.summary()
    notes = [f"{kind}, {sizes}, {objects} of {classes}", left_out, *findings.notes]
    return join_parts(sets, notes, problems=problems, left_out=left_out)


def _count_objects(listing: Listing) -> int:
    return sum(len(entry.objects) for entry in listing.entries if entry.objects is not None)
