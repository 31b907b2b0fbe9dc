# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets that are written down in a CSV: one row a picture."""

from __future__ import annotations

import csv
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from muntin.errors import DataError, shorten

__all__ = ["Row", "read_table"]

_BETWEEN_CLASSES = re.compile(r"[;|]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One picture of a CSV.

    Attributes:
        path: The file, relative to the folder of the CSV (or absolute), with forward slashes.
        classes: Its classes, none to many.
        group: What must stay together in a split; "" = nothing.
        split: What the CSV says about the set: train, val, test or "".
    """

    path: str
    classes: tuple[str, ...]
    group: str = ""
    split: str = ""


def read_table(place: Path) -> list[Row]:
    """Read a CSV with the columns `path` and `class`, and perhaps `group` and `split`.

    Several classes of a picture are parted by `;` or `|`; an empty cell is a picture of no class.

    Args:
        place: The file, UTF-8 with or without a byte order mark.

    Raises:
        DataError: A column is missing, there are no rows, or a picture is not there.
    """
    try:
        with place.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
            _require_columns(columns, place)
            rows = [_read_row(cells, columns) for cells in reader]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        message = f"{str(place)!r} must be a CSV in UTF-8, got: {error}. Save it again as UTF-8."
        raise DataError(message) from error
    if not rows:
        message = f"{str(place)!r} must have a row for each picture, got none below the header."
        raise DataError(message)
    missing = []
    for number, row in enumerate(rows, start=2):
        if not row.path or not (place.parent / row.path).is_file():
            missing.append(f"row {number} {row.path!r}")
    if missing:
        message = (
            f"Every path in {str(place)!r} must be a file, seen from the folder of the CSV; "
            f"{len(missing)} of {len(rows)} are not: {shorten(missing, most=3)}. Correct the paths."
        )
        raise DataError(message)
    return rows


def _require_columns(columns: dict[str, str], place: Path) -> None:
    if {"path", "class"} <= columns.keys():
        return
    message = (
        f"{str(place)!r} must have the columns path and class, parted by commas, "
        f"got {shorten(columns, most=8) or 'an empty file'}. Correct its first line."
    )
    raise DataError(message)


def _read_row(cells: dict[str, str | None], columns: dict[str, str]) -> Row:
    def cell(name: str) -> str:
        column = columns.get(name)
        return (cells.get(column) or "").strip() if column is not None else ""

    names = (part.strip() for part in _BETWEEN_CLASSES.split(cell("class")))
    return Row(
        path=cell("path").replace("\\", "/"),
        classes=tuple(unicodedata.normalize("NFC", name) for name in names if name),
        group=cell("group"),
        split=cell("split"),
    )
