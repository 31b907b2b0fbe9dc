# SPDX-License-Identifier: Apache-2.0
"""Labelled images in a CSV with a column a class: 1 where an image has it, else 0.

Roboflow writes one `_classes.csv` into the folder of each set, beside its images.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence

from muntin.data.readers import (
    Reader,
    Source,
    clean_class_name,
    count_parts,
    join_parts,
    name_parts,
    number_classes,
)
from muntin.data.trees import PARTS, Tree, clean_name, fold, part_of, read_text
from muntin.errors import DataError, plural
from muntin.samples import DataSets, Entry, Listing, Problem, warning

_FILE = "_classes.csv"
_IMAGE_COLUMNS = ("filename", "file", "image", "path")

_Table = tuple[str, list[str], list[list[str]]]
"""The file, its classes, and its rows: an image, then the cells of the classes."""


def _recognise(source: Source) -> list[_Table] | None:
    names = source.with_suffix(".csv")
    names = [n for n in names if source.is_file or fold(n).rpartition("/")[2] == _FILE]
    return [table for name in names if (table := _open_table(source.tree, name))] or None


def _open_table(tree: Tree, name: str) -> _Table | None:
    try:
        rows = [row for row in csv.reader(read_text(tree.source, name).splitlines()) if any(row)]
    except (DataError, csv.Error):
        return None
    if len(rows) < 2 or rows[0][0].strip().lower() not in _IMAGE_COLUMNS:
        return None
    cells = [[cell.strip() for cell in row] for row in rows]
    fits = all(len(row) == len(cells[0]) and set(row[1:]) <= {"0", "1"} for row in cells[1:])
    return (name, [*map(clean_class_name, cells[0][1:])], cells[1:]) if fits else None


def _read(source: Source, tables: Sequence[_Table], class_names: Sequence[str] | None) -> DataSets:
    tree = source.tree
    listed = [name for _, classes, _ in tables for name in classes]
    used = {
        name for _, classes, rows in tables for row in rows for name in _classes_of(row, classes)
    }
    names, ids = number_classes(listed, used, class_names, repr(str(source.path)))
    problems: list[Problem] = []
    entries: dict[str, list[Entry]] = defaultdict(list)
    for file, classes, rows in tables:
        folder = file.rpartition("/")[0]
        part = part_of(folder.split("/")) or "train"
        for row in rows:
            written = clean_name(row[0])
            path = tree.find(f"{folder}/{written}" if folder else written)
            if path is None:
                problems.append(warning(file, f"image {row[0]!r} is not there, left out"))
                continue
            found = sorted(ids[name] for name in _classes_of(row, classes))
            entries[part].append(Entry(path=path, class_ids=tuple(found)))
    if not entries:
        message = (
            f"The images of {tables[0][0]!r} must lie beside it in {tree.source!r}, got none there."
        )
        raise DataError(message)
    parts = {
        part: Listing(
            source=tree.source,
            entries=tuple(sorted(entries[part], key=lambda entry: entry.path)),
            class_names=names,
            multi_label=True,
        )
        for part in PARTS
        if part in entries
    }
    sizes = count_parts({part: len(listing) for part, listing in parts.items()})
    note = f"CSV with a column a class, {sizes}, {plural(len(names), 'class', 'classes')}"
    return join_parts(name_parts(parts), [f"{note}, multi-label"], problems=problems)


def _classes_of(row: Sequence[str], classes: Sequence[str]) -> set[str]:
    return {name for name, cell in zip(classes, row[1:], strict=True) if cell == "1"}


LABEL_COLUMNS: Reader[Sequence[str] | None, DataSets] = Reader(
    name="CSV with a column a class",
    recognise=_recognise,
    read=_read,
    looks_for="a _classes.csv beside the images",
    file="a .csv with a column a class",
)
