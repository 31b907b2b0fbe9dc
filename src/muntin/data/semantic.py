# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a data set for semantic segmentation, and their masks.

Masks are files, or are drawn from annotated objects: COCO's polygons and run lengths, YOLO's
polygons. Pixels of no object are "background" then, the first class unless it is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from muntin.data.coco import COCO
from muntin.data.detection import list_detect
from muntin.data.mask_folders import MASK_FOLDERS, name_value, propose_table
from muntin.data.mask_layouts import MaskRequest
from muntin.data.readers import Reader, Source, find_reader, join_parts
from muntin.data.yolo import YOLO
from muntin.errors import DataError, shorten
from muntin.samples import Classes, DataSets, Listing, MaskEncoding

__all__ = ["READERS", "list_semantic", "name_value", "propose_table"]

BACKGROUND = "background"


def list_object_masks(
    path: str | os.PathLike[str], *, classes: Classes | None = None, ignored: Sequence[str] = ()
) -> DataSets:
    """List images whose objects have masks, as images with a class for every pixel.

    Args:
        path: What `list_detect` takes.
        classes: Those of a trained run, which the numbers follow.
        ignored: May hold "background", which is then not learnt.

    Raises:
        DataError: As `list_detect`; or no object has a mask.
    """
    wrong = [value for value in ignored if value != BACKGROUND]
    if wrong:
        message = (
            f"data.ignored of annotated objects can be {BACKGROUND!r} only, got {shorten(wrong)}. "
            f"Remove the category from the annotations instead."
        )
        raise DataError(message)
    wanted = None if classes is None else classes.names
    if wanted is not None and BACKGROUND not in wanted and not ignored:
        message = (
            f"Classes must be among the {len(wanted)} that the run was trained on "
            f"({shorten(wanted, limit=12)}), but in {str(path)!r} what no object covers is "
            f"{BACKGROUND!r}. Leave it out: --set data.ignored={BACKGROUND}"
        )
        raise DataError(message)
    data = list_detect(path, class_names=wanted, masks=True)
    parts = {
        part: _as_maps(listing, classes, bool(ignored)) for part, listing in data.parts.items()
    }
    notes = [data.note, "classes of pixels are drawn from the masks of the objects"]
    return join_parts(parts, notes, problems=data.problems, left_out=data.left_out)


def _as_maps(listing: Listing, classes: Classes | None, without_background: bool) -> Listing:
    names = listing.class_names
    if classes is None and not without_background and BACKGROUND not in names:
        names = (BACKGROUND, *names)
    # Objects are numbered as `list_detect` did; a value is the number that an object has.
    value_of = {name: number for number, name in enumerate(listing.class_names)}
    values = tuple(value_of.get(name, -1) for name in names)
    if BACKGROUND in names and not without_background:
        place = names.index(BACKGROUND)
        values = (*values[:place], -1, *values[place + 1 :])
    return replace(listing, class_names=names, encoding=MaskEncoding(kind="objects", values=values))


def _recognise(source: Source) -> str | None:
    """The name of the layout of objects."""
    named = (reader.name for reader in (COCO, YOLO) if reader.recognise(source) is not None)
    return next(named, None)


def _read(source: Source, found: str, request: MaskRequest) -> DataSets:
    return list_object_masks(source.path, classes=request.classes, ignored=request.ignored)


OBJECT_MASKS: Reader[MaskRequest, DataSets] = Reader(
    name="masks of objects",
    recognise=_recognise,
    read=_read,
    looks_for="COCO or YOLO annotations with masks",
    file="a COCO .json or a data.yaml",
)

READERS: tuple[Reader[MaskRequest, DataSets], ...] = (MASK_FOLDERS, OBJECT_MASKS)
"""Layouts of masks, in the order in which they are tried."""


def list_semantic(
    path: str | os.PathLike[str],
    *,
    classes: Classes | None = None,
    colors: Sequence[str] = (),
    ignored: Sequence[str] = (),
    readers: Sequence[Reader[MaskRequest, DataSets]] = READERS,
) -> DataSets:
    """List the images of a data set and their masks.

    Args:
        path: A folder, a .zip or .tar with images and masks; or what `list_detect` takes, where
            objects have masks.
        classes: Those of a trained run, by whose names (and, where the data has no table, values)
            the masks are read.
        colors: What classes are stored as, ``road:#6EC1E4`` or ``road:3`` each; else a table in
            the data or the masks themselves define them.
        ignored: Values that are not learnt, ``#000000`` or ``255``; 255 by default for indices.
        readers: Layouts to try, in this order.

    Returns:
        The sets; a single set is in `train`, whatever its name. What is wrong with the
        sampled masks is in `problems`.

    Raises:
        DataError: The path, the layout or the table is wrong, or values have no meaning.
    """
    match = find_reader(path, readers, what="masks")
    return match.read(MaskRequest(classes=classes, colors=colors, ignored=ignored))
