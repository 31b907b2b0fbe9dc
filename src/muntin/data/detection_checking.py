# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set of annotated objects before training does, and name what is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import numpy as np

from muntin.data.checking import (
    CheckedImage,
    count_images,
    describe_images,
    find_tiny,
    find_twins,
    find_unreadable,
    find_unsplit,
    read_all,
)
from muntin.data.detection import list_detect
from muntin.data.report import Report
from muntin.data.segmentations import box_of
from muntin.errors import DataError, shorten
from muntin.run_lengths import mask_area, to_run_lengths
from muntin.samples import Entry, Listing, Problem

__all__ = ["check_detect"]

_SMALL, _MEDIUM = 32**2, 96**2  # areas in pixels between COCO's small, medium and large
_THIN = 2  # pixels
_MIN_OVERLAP = 0.25  # of a box and that of the mask


def check_detect(
    path: str | os.PathLike[str], *, masks: bool = False, num_threads: int = 2
) -> Report:
    """Read every image of a data set of objects.

    Args:
        path: What `list_detect` takes.
        masks: Whether every object must have a mask.
        num_threads: Images decoded at the same time.

    Returns:
        The report. Faulty data never raises: a layout that cannot be read gives one error.
    """
    task = "instance" if masks else "detect"
    try:
        data = list_detect(path, masks=masks)
    except DataError as error:
        problem = Problem(file=str(path), what=str(error), severity="error")
        return Report(task=task, source=str(path), problems=(problem,))
    parts = data.parts
    seen = list(read_all(parts, num_threads))
    good = [one for one in seen if not one.fault]
    problems = [*data.problems, *find_unreadable(seen)]
    problems += _find_other_sizes(good)
    problems += find_twins(good)
    problems += find_tiny(good)
    for one in good:
        problems += _judge_objects(one.entry)
    problems += find_unsplit(parts)
    problems += _judge_classes(parts)
    problems.sort(key=lambda problem: problem.severity != "error")
    return Report(
        task=task,
        source=str(path),
        lines=(data.note, *_describe(parts), *describe_images(good)),
        counts=_count(parts, seen),
        problems=tuple(problems),
    )


def _find_other_sizes(seen: list[CheckedImage]) -> Iterator[Problem]:
    for one in seen:
        annotated = one.entry.size
        if annotated in (None, one.size):
            continue
        what = (
            f"{one.size[0]} x {one.size[1]} pixels (height x width), annotated as "
            f"{annotated[0]} x {annotated[1]}, so its boxes are wrong"
        )
        if annotated == one.size[::-1]:
            what += "; maybe because of the EXIF orientation: annotate the rotated image"
        yield Problem(file=one.entry.path, what=what, severity="error")


def _judge_objects(entry: Entry) -> Iterator[Problem]:
    objects = entry.objects
    if objects is None or entry.size is None:
        return
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    if thin := int((sides.min(axis=1) < _THIN).sum()) if len(objects) else 0:
        what = f"{thin} of {len(objects)} objects are less than {_THIN} pixels wide or high"
        yield Problem(file=entry.path, what=what, severity="warning")
    empty = apart = 0
    for box, mask in zip(objects.boxes, objects.masks, strict=False):
        if mask is None:
            continue
        if not mask_area(to_run_lengths(mask, entry.size)):
            empty += 1
        else:
            apart += _overlap(box, np.array(box_of(mask, entry.size))) < _MIN_OVERLAP
    if empty:
        what = f"{empty} of {len(objects)} masks cover no pixel"
        yield Problem(file=entry.path, what=what, severity="warning")
    if apart:
        what = f"{apart} of {len(objects)} masks lie elsewhere than their boxes"
        yield Problem(file=entry.path, what=what, severity="warning")


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    shared = float(sides.clip(0).prod())
    both = sum(float((box[2:] - box[:2]).prod()) for box in (first, second))
    return shared / max(both - shared, 1e-9)


def _judge_classes(parts: dict[str, Listing]) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    counts = _objects_of_classes(listing)
    without = [name for name in listing.class_names if not counts[name]]
    if without:
        what = f"no objects in {part} of {shorten(without, limit=12)}: nothing to learn for them"
        yield Problem(file=part, what=what, severity="warning")


def _objects_of_classes(listing: Listing) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in listing.entries:
        if entry.objects is not None:
            learnt = entry.objects.class_ids[~entry.objects.crowd]
            counts.update(listing.class_names[class_id] for class_id in learnt.tolist())
    return counts


def _describe(parts: dict[str, Listing]) -> Iterator[str]:
    for part, listing in parts.items():
        every = [entry.objects for entry in listing.entries if entry.objects is not None]
        counts = _objects_of_classes(listing)
        classes = shorten((f"{name} {counts[name]}" for name in listing.class_names), limit=12)
        total = sum(len(objects) for objects in every)
        yield f"{part}: {len(listing)} images, {total} objects; {classes}"
        if not total:
            continue
        max_objects = max(len(objects) for objects in every)
        bare = sum(not len(objects) for objects in every)
        yield f"{part}: {bare} images without objects, at most {max_objects} objects in an image"
        areas = np.concatenate([objects.areas for objects in every])
        small, large = (areas < _SMALL).mean(), (areas >= _MEDIUM).mean()
        yield (
            f"{part}: objects small {small:.0%}, medium {1 - small - large:.0%}, large {large:.0%} "
            f"(areas below 32 x 32 and below 96 x 96 pixels, as COCO has it)"
        )
        if crowd := sum(int(objects.crowd.sum()) for objects in every):
            yield f"{part}: {crowd} of them are crowds or difficult, neither learnt nor scored"


def _count(parts: dict[str, Listing], seen: list[CheckedImage]) -> tuple[tuple[str, int], ...]:
    entries = [entry for listing in parts.values() for entry in listing.entries]
    sizes = [len(entry.objects) for entry in entries if entry.objects is not None]
    return (
        ("pictures", len(seen)),
        *((part, len(listing)) for part, listing in parts.items()),
        ("classes", next(iter(parts.values())).num_classes),
        ("objects", sum(sizes)),
        ("without_objects", sum(not size for size in sizes)),
        *count_images(seen),
    )
