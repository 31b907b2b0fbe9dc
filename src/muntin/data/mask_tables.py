# SPDX-License-Identifier: Apache-2.0
"""Tables of the classes that masks encode.

``classes.json``  {"road": "#6EC1E4"} or {"road": [110, 193, 228]} or {"road": 3}; classes whose
                  names are "ignore", "ignored", "void", "unlabeled" or "unlabelled" are not learnt;
                  also {"names": [...], "colors": [...], "ignored": [...]}
``classes.txt``   a name a line, for values 0, 1, 2 ...
a CSV             with the columns name, r, g, b (CamVid's class_dict.csv)
``objectInfo150.txt``, Cityscapes by the names of its files
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from muntin.data.mask_values import Stored
from muntin.data.readers import clean_class_name
from muntin.data.trees import Tree, fold, read_json, read_text
from muntin.errors import DataError, shorten

_NOT_LEARNT = frozenset(("ignore", "ignored", "void", "unlabeled", "unlabelled"))


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskTable:
    """Names and what they are stored as; `origin` is where that is from, for notes.

    Without `values`, classes are numbered in order, and the masks decide whether from 0 or from 1.
    """

    names: tuple[str, ...]
    kind: Stored = "index"
    values: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
    origin: str


CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17,
    "traffic light": 19, "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23,
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
"""The 19 classes that are scored, and their numbers in files called labelIds."""


def find_table(tree: Tree, masks: Sequence[str]) -> MaskTable | None:
    """Find the table of a data set; names of masks identify Cityscapes."""
    by_name = {fold(path).rpartition("/")[2]: path for path in reversed(tree.files)}
    if path := by_name.get("classes.json"):
        return _read_json(tree, path)
    for path in tree.with_suffix(".csv"):
        if table := _read_csv(tree, path):
            return table
    if path := by_name.get("classes.txt"):
        lines = read_text(tree.source, path).splitlines()
        names = _distinct([line for line in lines if line.strip()], path)
        return MaskTable(names=names, origin=path)
    if path := by_name.get("objectinfo150.txt"):
        return _read_ade20k(tree, path)
    ends = {fold(path).rpartition("/")[2].rpartition("_")[2] for path in masks}
    if ends == {"labelids.png"}:
        values = tuple(CITYSCAPES.values())
        ignored = (*sorted({*range(34)} - {*values}), 255)
    elif ends == {"labeltrainids.png"}:
        values, ignored = tuple(range(len(CITYSCAPES))), (255,)
    else:
        return None
    return MaskTable(names=tuple(CITYSCAPES), values=values, ignored=ignored, origin="Cityscapes")


def parse_colors(texts: Sequence[str]) -> MaskTable | None:
    """Read ``road:#6EC1E4`` words."""
    if not texts:
        return None
    rows = [text.rpartition(":") for text in texts]
    return _from_rows({name: value for name, _, value in rows}, "data.colors")


def parse_value(value: Any, where: str) -> tuple[Literal["index", "color"], int]:  # noqa: ANN401
    """Read a number, "#6EC1E4" or [110, 193, 228].

    Example:
        >>> parse_value("#00000A", "here"), parse_value(3, "here")
        (('color', 10), ('index', 3))
    """
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
            return "color", int(text[1:], 16)
        if text.isdecimal():
            return "index", int(text)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return "index", value
    if isinstance(value, list | tuple) and len(value) == 3:
        red, green, blue = value
        if all(isinstance(part, int) and 0 <= part <= 255 for part in value):
            return "color", red << 16 | green << 8 | blue
    message = (
        f"a class in {where} must be a number, a colour such as #6EC1E4, or three numbers "
        f"from 0 to 255, got {value!r}. Correct it."
    )
    raise DataError(message)


def _read_json(tree: Tree, path: str) -> MaskTable:
    values = read_json(tree.source, path)
    if isinstance(values, dict) and isinstance(values.get("names"), list):
        names, colors = values["names"], values.get("colors")
        if isinstance(colors, list) and len(colors) == len(names):
            table = _from_rows(dict(zip(map(str, names), colors, strict=True)), path)
            ignored = [parse_value(value, path)[1] for value in values.get("ignored") or []]
            return replace(table, ignored=(*table.ignored, *ignored))
        values = names if colors is None else None
    if isinstance(values, list) and all(isinstance(name, str) for name in values):
        return MaskTable(names=_distinct(values, path), origin=path)
    if isinstance(values, dict) and values:
        if all(str(key).isdecimal() and isinstance(name, str) for key, name in values.items()):
            values = {name: int(key) for key, name in values.items()}
        return _from_rows(values, path)
    message = (
        f"{path!r} in {tree.source!r} must give a value for each class, such as "
        f'{{"road": "#6EC1E4", "water": "#E2A929"}} or ["background", "road"], got something else. '
        f"Correct the file."
    )
    raise DataError(message)


def _read_ade20k(tree: Tree, path: str) -> MaskTable:
    rows = [line.split("\t") for line in read_text(tree.source, path).splitlines()[1:]]
    names: list[str] = []
    seen: Counter[str] = Counter()
    for name in (row[-1].split(",")[0] for row in rows if len(row) > 1):
        seen[name] += 1  # some names occur twice, such as "stool"
        names.append(f"{name} {seen[name]}" if seen[name] > 1 else name)
    values = tuple(range(1, len(names) + 1))
    return MaskTable(names=_distinct(names, path), values=values, ignored=(0,), origin=path)


def _read_csv(tree: Tree, path: str) -> MaskTable | None:
    reader = csv.DictReader(io.StringIO(read_text(tree.source, path)))
    columns = {(name or "").strip().lower(): name for name in reader.fieldnames or ()}
    if not {"name", "r", "g", "b"} <= columns.keys():
        return None
    rows = {}
    for row in reader:
        try:
            rows[row[columns["name"]]] = [int(row[columns[c]]) for c in "rgb"]
        except (TypeError, ValueError) as error:
            message = (
                f"{path!r} must have numbers from 0 to 255 in r, g and b, got {row}. Correct it."
            )
            raise DataError(message) from error
    return _from_rows(rows, path)


def _from_rows(rows: Mapping[str, Any], origin: str) -> MaskTable:
    names, values, ignored, kinds = [], [], [], set()
    for name, written in rows.items():
        kind, value = parse_value(written, origin)
        kinds.add(kind)
        if clean_class_name(name).lower() in _NOT_LEARNT:
            ignored.append(value)
        else:
            names.append(name)
            values.append(value)
    if len(kinds) > 1 or len({*values, *ignored}) < len(values) + len(ignored):
        message = (
            f"{origin} must give every class a value of its own, all colours or all numbers, got "
            f"{dict(rows)}. Correct it."
        )
        raise DataError(message)
    return MaskTable(
        names=_distinct(names, origin), kind=kinds.pop() if kinds else "index",
        values=tuple(values), ignored=tuple(ignored), origin=origin,
    )  # fmt: skip


def _distinct(names: Sequence[Any], origin: str) -> tuple[str, ...]:
    cleaned = tuple(clean_class_name(str(name)) for name in names)
    if not cleaned or len(set(cleaned)) < len(cleaned) or not all(cleaned):
        message = (
            f"{origin} must name every class once, got {shorten(cleaned, limit=12)}. Correct it."
        )
        raise DataError(message)
    return cleaned
