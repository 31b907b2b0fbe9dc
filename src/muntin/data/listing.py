# SPDX-License-Identifier: Apache-2.0
"""The images of a classification data set and their classes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from muntin.data.checking import CheckedImage, Parts, Report, Summary, check
from muntin.data.class_csv import CLASS_TABLE, LABEL_COLUMNS
from muntin.data.class_layouts import CLASS_FOLDERS
from muntin.data.data_config import DEFAULTS, DataConfig
from muntin.data.packed_sets import PACKED_CLASSES
from muntin.data.readers import Reader, find_reader, read_layout
from muntin.errors import plural, shorten
from muntin.samples import DataSets, Problem, warning

_IMBALANCE = 20

READERS: tuple[Reader[Sequence[str] | None, DataSets], ...] = (
    PACKED_CLASSES,
    LABEL_COLUMNS,
    CLASS_TABLE,
    CLASS_FOLDERS,
)
"""Layouts of labelled images, in the order in which they are tried."""


def list_classify(
    path: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> DataSets:
    """List the images of a classification data set and their classes.

    Hidden files, `__MACOSX` and `Thumbs.db` are left out in silence, other files that are not
    images by their names with a count in the note. Folders inside a class folder belong to the
    class. One folder around everything is looked through.

    `path` is a folder, a .zip or .tar, or a .csv with the columns `path` and `class`, or the folder
    of the only such one. Class numbers follow `class_names`, those of a trained run, else the
    sorted names that are found. A single set is in `train`, whatever its name.
    """
    advice = "Give the folder that holds the class folders."
    reader, source, found = find_reader(path, READERS, what="labelled images", advice=advice)
    return read_layout(reader, source, found, class_names)


def check_classify(path: str | os.PathLike[str], reading: DataConfig = DEFAULTS) -> Report:
    """Check a data set of classes, given as to `list_classify`."""
    return check("classify", path, lambda: list_classify(path), _look_at_classes, reading)


def _look_at_classes(parts: Parts, seen: Iterable[CheckedImage]) -> Summary:
    return Summary(
        problems=list(_judge_classes(parts)),
        lines=list(_describe_classes(parts)),
        counts=[("classes", next(iter(parts.values())).num_classes)],
    )


def _judge_classes(parts: Parts) -> Iterator[Problem]:
    part, listing = next(iter(parts.items()))  # train, where there is one
    counts = dict(zip(listing.class_names, listing.class_counts, strict=True))
    for name, count in counts.items():
        if count < 2:
            what = (
                f"class {name!r} has {plural(count, 'image')} in {part}; at least 2 are needed to "
                f"learn from one and check with another"
            )
            yield warning(name, what)
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] > _IMBALANCE * counts[least]:
        what = (
            f"class {most!r} has {plural(counts[most], 'image')} and {least!r} has "
            f"{counts[least]}: accuracy hides rare classes, use macro-F1"
        )
        yield warning(part, what)
    without = sum(not entry.class_ids for entry in listing.entries)
    if without and max((len(entry.class_ids) for entry in listing.entries), default=0) < 2:
        what = (
            f"{plural(without, 'image')} without a class and none with several: read as "
            f"multi-label data; if each should have one class, fill the empty cells"
        )
        yield warning(part, what)


def _describe_classes(parts: Parts) -> Iterator[str]:
    for part, listing in parts.items():
        counts = zip(listing.class_names, listing.class_counts, strict=True)
        listed = shorten((f"{name} {count}" for name, count in counts), limit=12)
        yield f"{part}: {plural(len(listing), 'image')}; {listed}"
        groups = {entry.group for entry in listing.entries if entry.group}
        if groups:
            yield f"{part}: {plural(len(groups), 'group')} of images"
            if len(groups) == 1 and len(parts) == 1:
                yield "one group cannot be split: training will ask for validation images (--val)"
