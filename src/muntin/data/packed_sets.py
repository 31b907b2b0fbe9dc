# SPDX-License-Identifier: Apache-2.0
"""Packed data sets as a layout of each kind of task; their annotations are in the index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from muntin.data.archives import LOCAL, is_archive, open_packed
from muntin.data.mask_folders import follow_classes
from muntin.data.mask_layouts import MaskRequest
from muntin.data.objects import ObjectRequest
from muntin.data.readers import Reader, Source, count_parts, join_parts, number_classes
from muntin.data.shards import Shards
from muntin.errors import DataError
from muntin.samples import DataSets, Listing

NAME = "packed"


def _packed(
    read: Callable[[Source, Shards, Any], Any], *wanted: str, passed: Collection[str] = ()
) -> Reader[Any, Any]:
    """Make the reader of what holds such annotations; another takes what is `passed`."""

    def recognise(source: Source) -> Shards | None:
        shards = source.shards
        if shards is None and "classes" in wanted:
            shards = _open_tar(source)
        holds = None if shards is None else shards.index.head.holds
        if shards is None or holds in passed:
            return None
        if holds not in wanted:
            message = (
                f"This task needs {' or '.join(wanted)}, got {shards.source!r}, which holds "
                f"{holds}. Pack the data set for this task, or choose another task."
            )
            raise DataError(message)
        return shards

    return Reader(
        name=NAME, recognise=recognise, read=read, looks_for="", file="an address of shards"
    )


def _open_tar(source: Source) -> Shards | None:
    """A single tar of samples in webdataset's layout, which is no tar of class folders."""
    if source.path.is_dir() or not is_archive(source.path) or source.path.suffix == ".zip":
        return None
    is_one = source.tree.images and source.tree.with_suffix(".cls")
    return open_packed(f"{LOCAL}{source.path.absolute()}") if is_one else None


def _read_classes(source: Source, shards: Shards, wanted: Sequence[str] | None) -> DataSets:
    listings = shards.index.listings(shards.source)
    return _join(shards, {part: _follow(one, wanted) for part, one in listings.items()})


def _join(shards: Shards, listings: Mapping[str, Listing], *notes: str) -> DataSets:
    head = shards.index.head
    counts = count_parts({part: len(one) for part, one in listings.items()})
    note = f"{NAME} in {len(head.shards)} shards, {counts}"
    return join_parts(listings, [note, *notes, head.note], left_out=head.left_out)


def _follow(listing: Listing, wanted: Sequence[str] | None) -> Listing:
    """Number the classes as a trained run does, if there is one."""
    if wanted is None or tuple(wanted) == listing.class_names:
        return listing
    ids = {number for entry in listing.entries for number in entry.class_ids}
    ids |= {number for one in listing.entries if one.objects for number in one.objects.class_ids}
    used = {listing.class_names[class_id] for class_id in ids - {-1}}
    where = repr(listing.source)
    names, numbers = number_classes(listing.class_names, used, wanted, where)
    table = np.array([*(numbers.get(name, -1) for name in listing.class_names), -1])
    entries = []
    for entry in listing.entries:
        class_ids = tuple(sorted(table[list(entry.class_ids)].tolist())) if entry.class_ids else ()
        objects = entry.objects
        if objects is not None:
            objects = replace(objects, class_ids=table[objects.class_ids])
        entries.append(replace(entry, class_ids=class_ids, objects=objects))
    return replace(listing, entries=tuple(entries), class_names=names)


def _read_objects(source: Source, shards: Shards, request: ObjectRequest) -> dict[str, Listing]:
    if request.masks and shards.index.head.holds == "boxes":
        message = (
            f"Objects must have masks for this task, got {shards.source!r}, which was packed "
            f"without them. Pack the data set for instance."
        )
        raise DataError(message)
    head = shards.index.head
    request.findings.notes += [text for text in (head.note, head.left_out) if text]
    listings = shards.index.listings(shards.source)
    if not request.masks:
        listings = {part: _without_masks(one) for part, one in listings.items()}
    return {part: _follow(one, request.class_names) for part, one in listings.items()}


def _without_masks(listing: Listing) -> Listing:
    entries = (
        replace(one, objects=one.objects and replace(one.objects, masks=()))
        for one in listing.entries
    )
    return replace(listing, entries=tuple(entries))


def _read_masks(source: Source, shards: Shards, request: MaskRequest) -> DataSets:
    if request.colors or request.ignored:
        message = (
            f"data.colors and data.ignored of {shards.source!r} were settled when it was packed. "
            f"Leave them out, or pack it again with them (--set)."
        )
        raise DataError(message)
    listings = shards.index.listings(shards.source)
    if request.classes is not None:
        for part, one in listings.items():
            assert one.encoding is not None, "masks have an encoding"
            names, encoding = follow_classes(
                one.class_names, one.encoding, request.classes.names, one.source
            )
            listings[part] = replace(one, class_names=names, encoding=encoding)
    return _join(shards, listings)


PACKED_CLASSES: Reader[Sequence[str] | None, DataSets] = _packed(_read_classes, "classes")
PACKED_OBJECTS: Reader[ObjectRequest, dict[str, Listing]] = _packed(
    _read_objects, "boxes", "outlines"
)
PACKED_KEYPOINTS: Reader[ObjectRequest, dict[str, Listing]] = _packed(_read_objects, "keypoints")
# Masks are drawn from outlines by the reader of objects.
PACKED_MASKS: Reader[MaskRequest, DataSets] = _packed(
    _read_masks, "masks", "outlines", passed=("outlines",)
)
