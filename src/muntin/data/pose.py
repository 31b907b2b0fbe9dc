# SPDX-License-Identifier: Apache-2.0
"""Which instances a data set has and where their keypoints are, found by looking at it.

An entry is one instance: for COCO its box, for a CSV without a row of individuals the whole image.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from muntin.data.box_units import require_pixels
from muntin.data.checking import CheckedImage, Parts, Report, Summary, check
from muntin.data.coco import COCO_KEYPOINTS
from muntin.data.data_config import DEFAULTS, DataConfig
from muntin.data.deeplabcut import DEEPLABCUT
from muntin.data.objects import AnnotationReport, ObjectRequest
from muntin.data.packed_sets import PACKED_KEYPOINTS
from muntin.data.readers import (
    Reader,
    count_parts,
    find_reader,
    join_parts,
    name_parts,
    read_layout,
)
from muntin.data.shape_keypoints import SHAPE_KEYPOINTS
from muntin.data.skeletons import build_skeleton
from muntin.data.yolo import YOLO_POSE
from muntin.errors import DataError, plural, shorten
from muntin.samples import Classes, DataSets, Entry, Listing, Problem, warning

READERS: tuple[Reader[ObjectRequest, dict[str, Listing]], ...] = (
    PACKED_KEYPOINTS,
    COCO_KEYPOINTS,
    DEEPLABCUT,
    YOLO_POSE,
    *SHAPE_KEYPOINTS,
)
"""Layouts of keypoints, in the order in which they are tried; entries are whole images."""


def list_pose(
    path: str | os.PathLike[str], *, classes: Classes | None = None, whole: bool = False
) -> DataSets:
    """List the instances of a data set and their keypoints, in pixels.

    Invalid annotations are left out and reported in `problems`: what `list_detect` leaves out,
    instances with a wrong number of keypoints or none that is visible, frames that are labelled
    twice, rows with cells that are no numbers. Points outside their image are not used.

    `path` is a folder, a .zip or .tar, a COCO .json with keypoints, or a CSV of DeepLabCut.
    Keypoints follow those of `classes` by name, and must be the same. With `whole` there is one
    entry per image, with all its instances, images without any included. A single set is in
    `train`, whatever its name.
    """
    reader, source, found = find_reader(path, READERS, what="keypoints")
    request = ObjectRequest(keypoints=True)
    listings, findings = read_layout(reader, source, found, request), request.findings
    raw = next(iter(listings.values())).skeleton
    assert raw is not None, "readers of keypoints give their names"
    objects = [entry.objects for one in listings.values() for entry in one.entries]
    points = [one.keypoints.ravel() for one in objects if one and one.keypoints is not None]
    require_pixels(np.concatenate([np.zeros(0), *points]).reshape(-1, 3), repr(str(path)))
    # A packed data set has the one that was built when it was packed.
    skeleton = raw if raw.sigmas else build_skeleton(raw, source.tree, findings.notes)
    if classes is not None and classes.skeleton is not None:
        listings = {part: _follow(one, classes, source.path) for part, one in listings.items()}
    else:
        listings = {part: replace(one, skeleton=skeleton) for part, one in listings.items()}
    if not whole:
        listings = {part: _expand(one) for part, one in listings.items()}
    return _join(reader.name, listings, findings, whole)


def is_whole(listing: Listing) -> bool:
    """Whether every instance is a whole image."""
    return all(
        entry.size is not None and entry.box == (0, 0, entry.size[1], entry.size[0])
        for entry in listing.entries
    )


def _follow(listing: Listing, classes: Classes, place: Path) -> Listing:
    """Order the keypoints as a trained run does."""
    wanted, have = classes.skeleton, listing.skeleton
    assert wanted is not None, "asked before"
    assert have is not None, "readers of keypoints give their names"
    if sorted(wanted.names) != sorted(have.names):
        missing = [name for name in wanted.names if name not in have.names]
        extra = [name for name in have.names if name not in wanted.names]
        message = (
            f"Keypoints must be the {len(wanted.names)} that the run was trained on, got others in "
            f"{str(place)!r}: missing {shorten(missing) or 'none'}, unknown "
            f"{shorten(extra) or 'none'}."
        )
        raise DataError(message)
    order = [have.names.index(name) for name in wanted.names]
    entries = []
    for entry in listing.entries:
        assert entry.objects is not None, "readers of keypoints give objects"
        assert entry.objects.keypoints is not None, "with keypoints"
        objects = replace(entry.objects, keypoints=entry.objects.keypoints[:, order])
        entries.append(replace(entry, objects=objects))
    return replace(listing, entries=tuple(entries), skeleton=wanted)


def _expand(listing: Listing) -> Listing:
    """One entry per instance that has a visible keypoint; those of an image stay together."""
    folders = {entry.path.rpartition("/")[0] for entry in listing.entries}
    videos = len(folders) > 1
    entries = []
    for entry in listing.entries:
        rows = list(_instances_of(entry))
        folder = entry.path.rpartition("/")[0]
        group = folder if videos else entry.path if len(rows) > 1 else ""
        entries += [
            replace(entry, class_ids=(class_id,), group=entry.group or group, instance=row)
            for row, class_id in rows
        ]
    return replace(listing, entries=tuple(entries))


def _instances_of(entry: Entry) -> Iterator[tuple[int, int]]:
    """Row and class of each instance that can be learnt from."""
    objects = entry.objects
    if objects is None or objects.keypoints is None:
        return
    visible = (objects.keypoints[:, :, 2] > 0).any(axis=1)
    for row in np.flatnonzero(visible & ~objects.crowd):
        yield int(row), int(objects.class_ids[row])


def _join(
    kind: str, listings: dict[str, Listing], findings: AnnotationReport, whole: bool
) -> DataSets:
    sets = name_parts(listings)
    first = next(iter(sets.values()))
    assert first.skeleton is not None, "set before"
    sizes = count_parts({p: len({e.path for e in one.entries}) for p, one in listings.items()})
    note = f"{kind}, {sizes}"
    if not whole:
        counts = [len(listing) for listing in listings.values()]
        note += f", {' + '.join(map(str, counts))} instance{'s' * (counts != [1])}"
        note += f" of {len(first.skeleton.names)} keypoints"
    if findings.num_apart:
        boxes = plural(findings.num_apart, "box holds", "boxes hold")
        findings.notes.append(f"{boxes} none of the instance's keypoints")
    problems = findings.problems()
    if "train" in sets and not any(True for entry in first.entries for _ in _instances_of(entry)):
        what = "no instance with a visible keypoint to train on or to evaluate"
        problems.insert(0, Problem(file="train", what=what, severity="error"))
    notes = [note, findings.summary(), *findings.notes]
    return join_parts(sets, notes, problems=problems, left_out=findings.summary())


def check_pose(path: str | os.PathLike[str], reading: DataConfig = DEFAULTS) -> Report:
    """Check a data set of keypoints, given as to `list_pose`."""
    return check("pose", path, lambda: list_pose(path), _look_at_poses, reading)


def _look_at_poses(parts: Parts, seen: Iterable[CheckedImage]) -> Summary:
    part, listing = next(iter(parts.items()))  # train, where there is one
    names = _names(listing)
    counts = _visible(listing).sum(axis=0)
    never = [name for name, count in zip(names, counts, strict=True) if not count]
    what = f"never visible in {part}: {shorten(never, limit=12)}; nothing to learn for them"
    return Summary(
        problems=[warning(part, what)] if never and len(listing) else [],
        lines=list(_describe(parts)),
        counts=[("subjects", sum(map(len, parts.values()))), ("keypoints", len(names))],
    )


def _names(listing: Listing) -> tuple[str, ...]:
    return () if listing.skeleton is None else listing.skeleton.names


def _visible(listing: Listing) -> np.ndarray:
    """(N, P) whether each keypoint of each instance is visible."""
    rows = [
        entry.objects.keypoints[entry.instance, :, 2] > 0
        for entry in listing.entries
        if entry.objects is not None and entry.objects.keypoints is not None
    ]
    return np.stack(rows) if rows else np.zeros((0, len(_names(listing))), bool)


def _describe(parts: Parts) -> Iterator[str]:
    for part, listing in parts.items():
        visible = _visible(listing)
        names = _names(listing)
        images = plural(len({entry.path for entry in listing.entries}), "image")
        yield f"{part}: {images}, {plural(len(listing), 'instance')} of {len(names)} keypoints"
        if not len(listing):
            continue
        rarest = np.argsort(visible.mean(axis=0), kind="stable")[:5]
        shares = ", ".join(f"{names[k]} {visible[:, k].mean():.0%}" for k in rarest)
        yield f"{part}: {visible.mean():.0%} of the keypoints are visible; least often {shares}"
