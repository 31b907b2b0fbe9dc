# SPDX-License-Identifier: Apache-2.0
"""Data sets that are written down in a CSV: one row per image."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from muntin.data.class_folders import order_classes
from muntin.data.readers import Reader, Source, clean_class_name, count_parts, join_parts
from muntin.data.trees import PARTS, part_named
from muntin.errors import DataError, plural, shorten
from muntin.samples import DataSets, Entry, Listing

_BETWEEN_CLASSES = re.compile(r"[;|]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One image of a CSV.

    Attributes:
        path: The file, relative to the folder of the CSV (or absolute), with forward slashes.
        group: What must stay together in a split; "" = nothing.
        split: The set in the CSV: train, val, test or "".
    """

    path: str
    classes: tuple[str, ...]
    group: str = ""
    split: str = ""


def read_table(place: Path) -> list[Row]:
    """Read a CSV in UTF-8 with the columns `path` and `class`, and perhaps `group` and `split`.

    Several classes of an image are separated by `;` or `|`; an empty cell is an image of no class.
    """
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            if not {"path", "class"} <= columns.keys():
                message = (
                    f"{str(place)!r} must have the columns path and class, separated by commas, "
                    f"got {shorten(columns, limit=8) or 'an empty file'}. Correct its first line."
                )
                raise DataError(message)
            rows = [_read_row(cells, columns) for cells in reader]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        message = f"{str(place)!r} must be a CSV in UTF-8, got: {error}. Save it again as UTF-8."
        raise DataError(message) from error
    if not rows:
        message = f"{str(place)!r} must have a row for each image, got none below the header."
        raise DataError(message)
    missing = [
        f"row {number} {row.path!r}"
        for number, row in enumerate(rows, start=2)
        if not row.path or not (place.parent / row.path).is_file()
    ]
    if missing:
        message = (
            f"Every path in {str(place)!r} must be a file, seen from the folder of the CSV; "
            f"{len(missing)} of {len(rows)} are not: {shorten(missing, limit=3)}. Fix the paths."
        )
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


def _recognise(source: Source) -> Path | None:
    return source.path if source.suffix == ".csv" else None


def _read(source: Source, place: Path, class_names: Sequence[str] | None) -> DataSets:
    rows = read_table(place)
    found = {name for row in rows for name in row.classes}
    names, ids = order_classes(found, class_names, repr(str(place)))
    several = sum(len(row.classes) > 1 for row in rows)
    without = sum(not row.classes for row in rows)
    multi_label = several + without > 0

    def gather(chosen: Iterable[Row]) -> Listing:
        entries = (
            Entry(
                path=row.path,
                class_ids=tuple(sorted({ids[name] for name in row.classes})),
                group=row.group,
            )
            for row in chosen
        )
        return Listing(
            source=str(place.parent),
            entries=tuple(entries),
            class_names=names,
            multi_label=multi_label,
        )

    by_part: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_part[_part_of(row, place)].append(row)
    kind = "single-label"
    if multi_label:
        kind = f"multi-label ({several} with several classes, {without} with none)"
    note = f"CSV, {kind}, {plural(len(names), 'class', 'classes')}"
    if len(by_part) == 1 and not any(row.split for row in rows):
        size = plural(len(rows), "image")
        return join_parts({"train": gather(rows)}, [f"{note}, one set of {size}"])
    sets = {part: gather(by_part[part]) for part in PARTS if part in by_part}
    if class_names is None and "train" in sets:
        _require_learnt(sets["train"], place)
    sizes = count_parts({part: len(listing) for part, listing in sets.items()})
    return join_parts(sets, [f"{note}, sets by its split column: {sizes}"])


def _part_of(row: Row, place: Path) -> str:
    part = part_named(row.split or "train")
    if not part:
        message = (
            f"The split column must be train, val or test, got {row.split!r} "
            f"for {row.path!r} in {str(place)!r}. Correct the row."
        )
        raise DataError(message)
    return part


def _require_learnt(train: Listing, place: Path) -> None:
    counts = zip(train.class_names, train.class_counts, strict=True)
    unlearnt = [name for name, count in counts if not count]
    if unlearnt:
        message = (
            f"Every class must have images whose split is train, got none for "
            f"{shorten(unlearnt)} in {str(place)!r}. Move rows of these classes to train."
        )
        raise DataError(message)


CLASS_TABLE: Reader[Sequence[str] | None, DataSets] = Reader(
    name="CSV",
    recognise=_recognise,
    read=_read,
    looks_for="a CSV with the columns path and class",
    file="a .csv",
)
