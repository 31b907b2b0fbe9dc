# SPDX-License-Identifier: Apache-2.0
"""Which images a data set has and what objects are annotated in them, found by looking at it.

No image is decoded; where the annotations lack its size, it is read from the head of the file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from muntin.data.box_table import BOX_TABLE
from muntin.data.checking import CheckedImage, Parts, Report, Summary, check
from muntin.data.coco import COCO
from muntin.data.cvat import CVAT
from muntin.data.data_config import DEFAULTS, DataConfig
from muntin.data.instance_masks import INSTANCE_MASKS
from muntin.data.label_studio import LABEL_STUDIO
from muntin.data.labelme import LABELME
from muntin.data.objects import AnnotationReport, ObjectRequest
from muntin.data.packed_sets import PACKED_OBJECTS
from muntin.data.readers import (
    Reader,
    count_parts,
    find_reader,
    join_parts,
    name_parts,
    read_layout,
)
from muntin.data.via import VIA
from muntin.data.voc import VOC
from muntin.data.yolo import YOLO
from muntin.errors import plural, shorten
from muntin.ops.boxes import box_iou
from muntin.run_lengths import box_of, mask_area, to_run_lengths
from muntin.samples import DataSets, Entry, Listing, Problem, warning

OUTLINED: tuple[Reader[ObjectRequest, dict[str, Listing]], ...] = (
    PACKED_OBJECTS,
    COCO,
    LABELME,
    CVAT,
    VIA,
    LABEL_STUDIO,
    YOLO,
    INSTANCE_MASKS,
)
"""Layouts whose objects may have masks."""

READERS: tuple[Reader[ObjectRequest, dict[str, Listing]], ...] = (
    *OUTLINED[:-2],
    VOC,
    YOLO,
    BOX_TABLE,
    INSTANCE_MASKS,
)
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
    image, numbers that are not finite, unknown classes and images, duplicate annotations, broken
    masks, missing images. Boxes are clipped to the image. Images without objects stay. Where a
    faulty annotation has a box, that region is neither learnt nor scored: a crowd of class -1;
    where it has none, its image is left out. With `masks`, an object without one stays as a box.

    `path` is a folder, a .zip or .tar, a COCO .json, or the data.yaml of a YOLO data set. Class
    numbers follow `class_names`, those of a trained run; else the numbers of COCO's categories, the
    sorted names of VOC, or the numbers of YOLO. A single set is in `train`, whatever its name. A
    DataError tells that the layout is unknown, or a whole file in another unit or order than its
    format requires.
    """
    if masks:  # VOC has boxes, and masks in files beside them
        readers = sorted(readers, key=lambda reader: reader not in OUTLINED)
    reader, source, found = find_reader(path, readers, what="annotated objects")
    request = ObjectRequest(class_names=class_names, masks=masks)
    listings = read_layout(reader, source, found, request)
    data = _join(reader.name, listings, request.findings, str(source.path))
    return data if class_names is not None else _require_objects(data)


def _require_objects(data: DataSets) -> DataSets:
    """Report a training set without objects; a trained run is also scored on such images."""
    if data.fault or data.train is None or _objects_of_classes(data.train):
        return data
    crowds = sum(_count(entry) for entry in data.train.entries)
    what = "no annotated object: nothing to train on"
    if crowds:
        what = f"each of {plural(crowds, 'object')} is a crowd or difficult: nothing to train on"
    problem = Problem(file="train", what=what, severity="error")
    return replace(data, problems=(problem, *data.problems))


def _join(
    kind: str, listings: Mapping[str, Listing], findings: AnnotationReport, source: str
) -> DataSets:
    sizes = count_parts({part: len(listing) for part, listing in listings.items()})
    counts = [sum(map(_count, listing.entries)) for listing in listings.values()]
    objects = f"{' + '.join(map(str, counts))} object{'s' * (counts != [1])}"
    sets = name_parts(listings)
    classes = plural(next(iter(sets.values())).num_classes, "class", "classes")
    problems, bare = findings.problems(), findings.num_bare
    objects_of = [one.objects for one in next(iter(sets.values())).entries if one.objects]
    if bare and all(mask is None for one in objects_of for mask in one.masks):
        what = f"none of {bare} objects has a mask: use the task detect, which needs boxes only"
        problems.insert(0, Problem(file=source, what=what, severity="error"))
    left_out = findings.summary()
    boxes = f"{plural(bare, 'object')} without a mask" if bare else ""
    notes = [f"{kind}, {sizes}, {objects} of {classes}", left_out, boxes, *findings.notes]
    return join_parts(sets, notes, problems=problems, left_out=left_out)


_SMALL, _MEDIUM = 32**2, 96**2  # areas in pixels between COCO's small, medium and large
_THIN = 2  # pixels
_MIN_OVERLAP = 0.25  # of a box and that of the mask


def check_detect(
    path: str | os.PathLike[str], reading: DataConfig = DEFAULTS, *, masks: bool = False
) -> Report:
    """Check a data set of objects, given as to `list_detect`."""
    task = "instance" if masks else "detect"
    return check(task, path, lambda: list_detect(path, masks=masks), _look_at_objects, reading)


def _look_at_objects(parts: Parts, seen: Iterable[CheckedImage]) -> Summary:
    entries = [entry for listing in parts.values() for entry in listing.entries]
    sizes = [_count(entry) for entry in entries]
    return Summary(
        problems=[
            *(problem for one in seen for problem in _judge_objects(one.entry)),
            *_judge_classes(parts),
        ],
        lines=list(_describe(parts)),
        counts=(
            ("classes", next(iter(parts.values())).num_classes),
            ("objects", sum(sizes)),
            ("without_objects", sum(not size for size in sizes)),
        ),
    )


def _judge_objects(entry: Entry) -> Iterator[Problem]:
    objects = entry.objects
    if objects is None or entry.size is None:
        return
    of_all = f"of {plural(len(objects), 'object')}"
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    if thin := int((sides.min(axis=1) < _THIN).sum()) if len(objects) else 0:
        yield warning(entry.path, f"{thin} {of_all} less than {_THIN} pixels wide or high")
    empty = apart = 0
    for box, mask in zip(objects.boxes, objects.masks, strict=False):
        if mask is None:
            continue
        if not mask_area(to_run_lengths(mask, entry.size)):
            empty += 1
        else:
            around = torch.tensor([box_of(mask, entry.size)], dtype=torch.float64)
            apart += bool(box_iou(torch.from_numpy(box[None]), around) < _MIN_OVERLAP)
    if empty:
        yield warning(entry.path, f"masks that cover no pixel: {empty} {of_all}")
    if apart:
        yield warning(entry.path, f"masks that lie elsewhere than their boxes: {apart} {of_all}")


def _judge_classes(parts: Parts) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    counts = _objects_of_classes(listing)
    without = [name for name in listing.class_names if not counts[name]]
    if without:
        what = f"no objects in {part} of {shorten(without, limit=12)}: nothing to learn for them"
        yield warning(part, what)


def _count(entry: Entry) -> int:
    """Count annotated objects, crowds too; not the regions of faulty annotations."""
    return 0 if entry.objects is None else int((entry.objects.class_ids >= 0).sum())


def _objects_of_classes(listing: Listing) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in listing.entries:
        if entry.objects is not None:
            learnt = entry.objects.class_ids[~entry.objects.crowd]
            counts.update(listing.class_names[class_id] for class_id in learnt.tolist())
    return counts


def _describe(parts: Parts) -> Iterator[str]:
    for part, listing in parts.items():
        every = [entry.objects for entry in listing.entries if entry.objects is not None]
        counts = _objects_of_classes(listing)
        classes = shorten((f"{name} {counts[name]}" for name in listing.class_names), limit=12)
        total = sum(map(_count, listing.entries))
        images = plural(len(listing), "image")
        yield f"{part}: {images}, {plural(total, 'object')}; {classes}"
        if not total:
            continue
        most = plural(max(map(_count, listing.entries)), "object")
        bare = plural(sum(not _count(entry) for entry in listing.entries), "image")
        yield f"{part}: {bare} without objects, at most {most} in an image"
        areas = np.concatenate([objects.areas for objects in every])
        small, large = (areas < _SMALL).mean(), (areas >= _MEDIUM).mean()
        yield (
            f"{part}: objects small {small:.0%}, medium {1 - small - large:.0%}, large {large:.0%} "
            f"(areas below 32 x 32 and below 96 x 96 pixels, as COCO has it)"
        )
        if crowd := sum(int(objects.crowd[objects.class_ids >= 0].sum()) for objects in every):
            yield f"{part}: crowds or difficult, neither learnt nor scored: {crowd}"
        if faulty := sum(int((objects.class_ids < 0).sum()) for objects in every):
            yield f"{part}: regions of faulty annotations, neither learnt nor scored: {faulty}"
