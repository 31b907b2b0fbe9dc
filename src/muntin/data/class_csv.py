# SPDX-License-Identifier: Apache-2.0
"""Labelled images in a CSV: of paths and classes, or with a column a class.

The first is DATA itself or names images below it. The second has 1 where an image has a class, else
0: Roboflow writes one `_classes.csv` into the folder of each set, beside its images.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from muntin.data.archives import is_archive
from muntin.data.class_layouts import find_lacking, order_classes, tell_unlearnt
from muntin.data.readers import (
    Reader,
    Source,
    clean_class_name,
    count_parts,
    join_parts,
    name_parts,
    number_classes,
)
from muntin.data.trees import PARTS, Tree, clean_name, fold, part_named, part_of, read_text
from muntin.errors import DataError, plural, shorten
from muntin.samples import DataSets, Entry, Listing, Problem, warning

_BETWEEN_CLASSES = re.compile(r"[;|]")
_CALLED = re.compile(r"label|annotation|class|train|metadata|dataset|^(data|index)\.csv")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One image of a CSV: its path, with slashes, is absolute or relative to the CSV's folder.

    Images of one group stay together in a split; `group` and `split` may be "".
    """

    path: str
    classes: tuple[str, ...]
    group: str = ""
    split: str = ""


def read_table(place: Path) -> list[Row]:
    """Read a CSV in UTF-8 with the columns `path` and `class`, and perhaps `group` and `split`.

    Several classes of an image are separated by `;` or `|`; an empty cell is an image of no class.
    """
    rows = _read_rows(place)
    missing = [
        f"row {number} {row.path!r}"
        for number, row in enumerate(rows, start=2)
        if not _is_there(row, place)
    ]
    if missing:
        message = (
            f"Every path in {str(place)!r} must be a file, seen from the folder of the CSV; "
            f"{len(missing)} of {len(rows)} are not: {shorten(missing, limit=3)}. Fix the paths."
        )
        raise DataError(message)
    return rows


def _is_there(row: Row, place: Path) -> bool:
    return bool(row.path) and (place.parent / row.path).is_file()


def _read_rows(place: Path) -> list[Row]:
    text = io.StringIO(read_text(str(place.parent), place.name), newline="")
    try:
        reader = csv.DictReader(text)
        columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
        if not {"path", "class"} <= columns.keys():
            message = (
                f"{str(place)!r} must have the columns path and class, separated by commas, "
                f"got {shorten(columns, limit=8) or 'an empty file'}. Correct its first line."
            )
            raise DataError(message)
        rows = [_read_row(cells, columns) for cells in reader]
    except csv.Error as error:
        message = f"{str(place)!r} must be a CSV, got: {error}. Save it again."
        raise DataError(message) from error
    if not rows:
        message = f"{str(place)!r} must have a row for each image, got none below the header."
        raise DataError(message)
    return rows


def _read_row(cells: dict[str, str | None], columns: dict[str, str]) -> Row:
    def cell(name: str) -> str:
        column = columns.get(name)
        return (cells.get(column) or "").strip() if column is not None else ""

    names = map(clean_class_name, _BETWEEN_CLASSES.split(cell("class")))
    return Row(
        path=cell("path").replace("\\", "/"),
        classes=tuple(filter(None, names)),
        group=cell("group"),
        split=cell("split"),
    )


def _read_paths(source: Source, place: Path, class_names: Sequence[str] | None) -> DataSets:
    rows, unlearnt = _keep_learnt(read_table(place), place, class_names)
    found = {name for row in rows for name in row.classes}
    names, ids = order_classes(found, class_names, repr(str(place)))
    several = sum(len(row.classes) > 1 for row in rows)
    without = sum(not row.classes for row in rows)
    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_part[_part_of(row, place)].append(row)
    blank = Listing(
        source=str(place.parent), entries=(), class_names=names, multi_label=several + without > 0
    )
    kind = "single-label"
    if blank.multi_label:
        kind = f"multi-label ({several} with several classes, {without} with none)"
    note = f"CSV, {kind}, {plural(len(names), 'class', 'classes')}"
    if not source.is_file:
        named = {os.path.relpath(place.parent / row.path, place.parent) for row in rows}
        bare = len({*map(os.path.normpath, source.tree.images)} - named)
        left = f", {plural(bare, 'image')} not in it left out" if bare else ""
        note = f"{place.name}: {note}{left}"
    if len(by_part) == 1 and not any(row.split for row in rows):
        size = plural(len(rows), "image")
        return join_parts({"train": _fill(blank, rows, ids)}, [f"{note}, one set of {size}"])
    sets = {part: _fill(blank, by_part[part], ids) for part in PARTS if part in by_part}
    sizes = count_parts({part: len(listing) for part, listing in sets.items()})
    left_out, problems = tell_unlearnt(unlearnt)
    notes = [f"{note}, sets by its split column: {sizes}", find_lacking(sets), left_out]
    return join_parts(sets, notes, problems=problems, left_out=left_out)


def _fill(blank: Listing, rows: Iterable[Row], ids: Mapping[str, int]) -> Listing:
    entries = (
        Entry(
            path=row.path,
            class_ids=tuple(sorted({ids[name] for name in row.classes})),
            group=row.group,
        )
        for row in rows
    )
    return replace(blank, entries=tuple(entries))


def _part_of(row: Row, place: Path) -> str:
    part = part_named(row.split or "train")
    if not part:
        message = (
            f"The split column must be train, val or test, got {row.split!r} "
            f"for {row.path!r} in {str(place)!r}. Correct the row."
        )
        raise DataError(message)
    return part


def _keep_learnt(
    rows: Sequence[Row], place: Path, class_names: Sequence[str] | None
) -> tuple[list[Row], dict[str, int]]:
    """Leave out of other sets the classes that rows of train lack, and count them."""
    parts = [_part_of(row, place) for row in rows]
    known = {
        name
        for row, part in zip(rows, parts, strict=True)
        if part == "train"
        for name in row.classes
    }
    known |= set(map(clean_class_name, class_names or ()))
    if "train" not in parts:
        return [*rows], {}
    kept, unlearnt = [], Counter[str]()
    for row, part in zip(rows, parts, strict=True):
        odd = [name for name in row.classes if name not in known]
        unlearnt.update(f"{part}: {name}" for name in odd)
        if len(odd) < len(row.classes) or not odd:
            kept.append(replace(row, classes=tuple(n for n in row.classes if n in known)))
    return kept, unlearnt


def _recognise_paths(source: Source) -> Path | None:
    """The CSV itself; in a folder the only one that names images there and their classes.

    Beside folders, which may be those of the classes, it must also be called as labels are.
    """
    if source.is_file or is_archive(source.path):
        return source.path if source.suffix == ".csv" else None
    found = []
    beside = any("/" in image for image in source.tree.images)
    for name in [name for name in source.tree.with_suffix(".csv") if "/" not in name]:
        if beside and not _CALLED.search(name.lower()):
            continue
        place = source.path / name
        with contextlib.suppress(DataError):
            found += [place] if any(_is_there(row, place) for row in _read_rows(place)) else []
    return found[0] if len(found) == 1 else None


CLASS_TABLE: Reader[Sequence[str] | None, DataSets] = Reader(
    name="CSV",
    recognise=_recognise_paths,
    read=_read_paths,
    looks_for="a CSV with the columns path and class",
    file="a .csv of paths and classes",
)


_FILE = "_classes.csv"
_IMAGE_COLUMNS = ("filename", "file", "image", "path")

_Columns = tuple[str, list[str], list[list[str]]]
"""The file, its classes, and its rows: an image, then the cells of the classes."""


def _recognise_columns(source: Source) -> list[_Columns] | None:
    names = source.with_suffix(".csv")
    names = [n for n in names if source.is_file or fold(n).rpartition("/")[2] == _FILE]
    return [table for name in names if (table := _open_columns(source.tree, name))] or None


def _open_columns(tree: Tree, name: str) -> _Columns | None:
    try:
        rows = [row for row in csv.reader(read_text(tree.source, name).splitlines()) if any(row)]
    except (DataError, csv.Error):
        return None
    if len(rows) < 2 or rows[0][0].strip().lower() not in _IMAGE_COLUMNS:
        return None
    cells = [[cell.strip() for cell in row] for row in rows]
    fits = all(len(row) == len(cells[0]) and set(row[1:]) <= {"0", "1"} for row in cells[1:])
    return (name, [*map(clean_class_name, cells[0][1:])], cells[1:]) if fits else None


def _read_columns(
    source: Source, tables: Sequence[_Columns], class_names: Sequence[str] | None
) -> DataSets:
    tree = source.tree
    listed = [name for _, classes, _ in tables for name in classes]
    used = {
        name for _, classes, rows in tables for row in rows for name in _classes_of(row, classes)
    }
    names, ids = number_classes(listed, used, class_names, repr(str(source.path)))
    problems: list[Problem] = []
    found: dict[str, list[Row]] = defaultdict(list)
    for file, classes, rows in tables:
        folder = file.rpartition("/")[0]
        part = part_of(folder.split("/")) or "train"
        for row in rows:
            written = clean_name(row[0])
            path = tree.find(f"{folder}/{written}" if folder else written)
            if path is None:
                problems.append(warning(file, f"image {row[0]!r} is not there, left out"))
                continue
            found[part].append(Row(path=path, classes=tuple(_classes_of(row, classes))))
    if not found:
        message = (
            f"The images of {tables[0][0]!r} must lie beside it in {tree.source!r}, got none there."
        )
        raise DataError(message)
    blank = Listing(source=tree.source, entries=(), class_names=names, multi_label=True)
    parts = {
        part: _fill(blank, sorted(found[part], key=attrgetter("path")), ids)
        for part in PARTS
        if part in found
    }
    sizes = count_parts({part: len(listing) for part, listing in parts.items()})
    note = f"CSV with a column a class, {sizes}, {plural(len(names), 'class', 'classes')}"
    return join_parts(name_parts(parts), [f"{note}, multi-label"], problems=problems)


def _classes_of(row: Sequence[str], classes: Sequence[str]) -> set[str]:
    return {name for name, cell in zip(classes, row[1:], strict=True) if cell == "1"}


LABEL_COLUMNS: Reader[Sequence[str] | None, DataSets] = Reader(
    name="CSV with a column a class",
    recognise=_recognise_columns,
    read=_read_columns,
    looks_for="a _classes.csv beside the images",
    file="a .csv with a column a class",
)
