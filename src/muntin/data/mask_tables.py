# SPDX-License-Identifier: Apache-2.0
"""Tables of the classes that masks encode.

``classes.json``  {"road": "#6EC1E4"} or {"road": [110, 193, 228]} or {"road": 3}; {"3": "road"};
                  {"names": [...], "colors": [...], "ignored": [...]}; a list of names, or of rows
                  such as {"name": "road", "id": 3, "color": "#6EC1E4"}
other JSON, YAML  the same, beside other keys: ``names``, ``labels`` (nnU-Net's dataset.json) ...
``labelmap.txt``  CVAT and Datumaro: name:r,g,b:parts:actions
``classes.txt``   a name a line, for values 0, 1, 2 ...; also class_names.txt (labelme, where
                  __ignore__ in front has no number) and codes.txt
a CSV             with the columns name, r, g, b (CamVid's class_dict.csv), or Pixel Value, Class
                  (Roboflow's _classes.csv)
``label_colors.txt``, ``objectInfo150.txt``
Cityscapes and CamVid are known by the names and values of their files.

Classes whose names are "ignore", "ignored", "void", "unlabeled" or "unlabelled" are not learnt.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from muntin.data.mask_values import Stored
from muntin.data.readers import clean_class_name
from muntin.data.trees import Tree, fold, read_json, read_text
from muntin.errors import DataError, shorten
from muntin.samples import Classes, MaskEncoding
from muntin.untrusted import parse_yaml

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


CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
"""The 11 classes of CamVid as SegNet numbers them; 11 has no class."""

_FIRST = ("classes.json", "labelmap.txt")
_THEN = (
    "classes.txt", "class_names.txt", "codes.txt", "label_colors.txt", "objectinfo150.txt",
    "dataset.json", "labels.json", "class_names.json", "label_map.json", "id2label.json",
)  # fmt: skip
_VOC_BORDER = 0xE0E0C0
_END = 2**31  # of the numbers that a mask can hold

# Keys of JSON and YAML, and columns of CSV, without anything but letters.
_LISTS = ("names", "classnames", "classes", "labels", "labelnames", "categories")
_COLOR_LISTS = ("colors", "colours", "colormap", "palette", "ids", "values")
_NAMES = ("name", "classname", "class", "label", "labelname", "category", "title")
_COLORS = ("color", "colour", "rgb", "hex")
_NUMBERS = ("pixelvalue", "value", "id", "index", "labelid", "classid")


def find_table(
    tree: Tree, masks: Sequence[str], *, wanted: Collection[str] = ()
) -> MaskTable | None:
    """Find the table of a data set; names of masks identify Cityscapes.

    Of lists, names that stand for no class are not learnt unless they are `wanted`.
    """
    by_name = {fold(path).rpartition("/")[2]: path for path in reversed(tree.files)}
    first, then = (
        [by_name[name] for name in names if name in by_name] for names in (_FIRST, _THEN)
    )
    for path in (*first, *tree.with_suffix(".csv"), *then, *tree.with_suffix(".yaml", ".yml")):
        if table := _read_table(tree, path, wanted):
            return table
    ends = {fold(path).rpartition("/")[2].rpartition("_")[2] for path in masks}
    if ends == {"labelids.png"}:
        values = tuple(CITYSCAPES.values())
        ignored = (*sorted({*range(34)} - {*values}), 255)
    elif ends == {"labeltrainids.png"}:
        values, ignored = tuple(range(len(CITYSCAPES))), (255,)
    else:
        return None
    return MaskTable(names=tuple(CITYSCAPES), values=values, ignored=ignored, origin="Cityscapes")


def recognise_camvid(masks: Sequence[str], values: Collection[int]) -> MaskTable | None:
    """Give the table of CamVid as SegNet has it: folders such as trainannot, numbers up to 11."""
    if max(values, default=0) != len(CAMVID) or len(values) < len(CAMVID) // 2:
        return None
    folders = {fold(path).split("/")[-2] for path in masks if "/" in path}
    if not folders or not folders <= {"trainannot", "valannot", "testannot"}:
        return None
    numbers = tuple(range(len(CAMVID)))
    return MaskTable(names=CAMVID, values=numbers, ignored=(len(CAMVID),), origin="CamVid")


_RUN = "the run"


def table_of_run(classes: Classes, encoding: MaskEncoding) -> MaskTable:
    """Give the table of a run; one that learnt from objects has none but its order."""
    table = MaskTable(names=classes.names, origin=_RUN)
    if encoding.kind == "objects":
        return table
    return replace(table, kind=encoding.kind, values=encoding.values, ignored=encoding.ignored)


def free_values(
    table: MaskTable | None, seen: Collection[int], notes: list[str]
) -> MaskTable | None:
    """Keep but the order of two classes of a run where masks hold two other values: 0 and 255."""
    if table is None or table.origin != _RUN or table.kind != "index":
        return table
    other = len(seen) == len(table.names) == 2 and not {*seen} <= {*table.values}
    if not other or list(table.values) != sorted(table.values):
        return table
    theirs, ours = (" and ".join(map(str, values)) for values in (table.values, sorted(seen)))
    notes.append(f"the two classes of the run, stored there as {theirs}, are {ours} here")
    return replace(table, values=(), ignored=())


def parse_colors(texts: Sequence[str]) -> MaskTable | None:
    """Read ``road:#6EC1E4`` words."""
    if not texts:
        return None
    rows = [text.rpartition(":") for text in texts]
    return _from_rows({name: value for name, _, value in rows}, "data.colors")


def parse_value(value: Any, where: str) -> tuple[Literal["index", "color"], int]:  # noqa: ANN401
    """Read a number, "#6EC1E4" or [110, 193, 228].

    Examples:
        >>> parse_value("#00000A", "here"), parse_value(3, "here")
        (('color', 10), ('index', 3))
    """
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"#[0-9A-Fa-f]{6}", text):
            return "color", int(text[1:], 16)
        if text.isdecimal():
            return "index", int(text)
        if parts := re.fullmatch(r"[(\[]?\s*(\d+)[,\s]+(\d+)[,\s]+(\d+)\s*[)\]]?", text):
            value = [*map(int, parts.groups())]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _END:
        return "index", value
    if isinstance(value, list | tuple) and len(value) == 3:
        red, green, blue = value
        if all(isinstance(part, int) and 0 <= part <= 255 for part in value):
            return "color", red << 16 | green << 8 | blue
    message = (
        f"a class in {where} must be a number below {_END}, a colour such as #6EC1E4, or three "
        f"numbers from 0 to 255, got {value!r}. Correct it."
    )
    raise DataError(message)


def _read_table(tree: Tree, path: str, wanted: Collection[str]) -> MaskTable | None:
    """Read a file that may hold a table; None if it is something else."""
    name = fold(path).rpartition("/")[2]
    if name.endswith(".csv"):
        return _read_csv(tree, path)
    if name.endswith(".json"):
        values = read_json(tree.source, path)
        if name == "dataset.json":
            _refuse_regions(values, path)
        return _from_structure(values, path, wanted) or _require(values, tree, path, name)
    text = read_text(tree.source, path)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if name.endswith((".yaml", ".yml")):
        try:
            return _from_structure(parse_yaml(text), path, wanted)
        except ValueError:
            return None
    if name == "labelmap.txt":
        return _read_labelmap(lines, path)
    if name == "label_colors.txt":
        rows = [line.split(maxsplit=3) for line in lines]
        return _from_rows({row[-1]: " ".join(row[:3]) for row in rows}, path)
    return (
        _read_ade20k(lines, path) if name.startswith("object") else _from_list(lines, path, wanted)
    )


def _refuse_regions(values: Any, path: str) -> None:  # noqa: ANN401
    """Refuse nnU-Net's regions, which are several values and may overlap."""
    labels = values.get("labels") if isinstance(values, dict) else None
    rows = labels if isinstance(labels, dict) else {}
    if regions := [f"{name} {value}" for name, value in rows.items() if isinstance(value, list)]:
        message = (
            f"Labels in {path!r} must be one value each, as classes exclude each other, got "
            f"regions of several: {shorten(regions, limit=4)}. Name the values instead: "
            f"--set data.colors=NAME:0,NAME:1,..."
        )
        raise DataError(message)


def _require(values: Any, tree: Tree, path: str, name: str) -> MaskTable | None:  # noqa: ANN401
    """Read the plain table of a classes.json, which must be one."""
    if name != "classes.json":
        return None
    if isinstance(values, dict) and values:
        return _from_rows(values, path)
    message = (
        f"{path!r} in {tree.source!r} must give a value for each class, such as "
        f'{{"road": "#6EC1E4", "water": "#E2A929"}} or ["background", "road"], got something else. '
        f"Correct the file."
    )
    raise DataError(message)


def _from_structure(values: Any, origin: str, wanted: Collection[str]) -> MaskTable | None:  # noqa: ANN401
    """Read names and what they are stored as; None where there are no names."""
    known = {_plain(key): v for key, v in values.items()} if isinstance(values, dict) else {}
    lists, stored = (
        [known[key] for key in keys if isinstance(known.get(key), list | dict)]
        for keys in (_LISTS, _COLOR_LISTS)
    )
    rows = _rows_of(lists[0] if lists else values, nested=bool(lists))
    if not rows:
        return None
    colors = dict(enumerate(stored[0])) if stored and isinstance(stored[0], list) else None
    colors = dict(stored[0]) if stored and colors is None else colors
    if isinstance(rows, list):
        if not colors or len(set(rows)) < len(rows):
            return _from_list(rows, origin, wanted)
        rows = {name: number for number, name in enumerate(rows)}
    if colors:
        at = {str(key): value for key, value in colors.items()}
        rows = {name: at.get(str(number), at.get(name, number)) for name, number in rows.items()}
    table = _from_rows(rows, origin)
    more = known.get("ignored")
    ignored = [parse_value(v, origin)[1] for v in more] if isinstance(more, list) else []
    return replace(table, ignored=(*table.ignored, *ignored))


def _rows_of(inner: Any, *, nested: bool) -> dict[str, Any] | list[str] | None:  # noqa: ANN401
    """Give what each name is stored as, or names in order; None for another structure."""
    if isinstance(inner, dict) and inner:
        if all(isinstance(row, dict) for row in inner.values()):
            inner = [{"name": name, **row} for name, row in inner.items()]
        elif all(str(k).isdecimal() and isinstance(name, str) for k, name in inner.items()):
            return {name: int(key) for key, name in inner.items()}
        else:
            kinds = {_kind_of(value) for value in inner.values()}
            return {str(k): v for k, v in inner.items()} if nested or kinds == {"color"} else None
    if not isinstance(inner, list) or not all(isinstance(row, str | dict) for row in inner):
        return None
    if all(isinstance(row, str) for row in inner):
        return list(inner)
    rows = [{_plain(k): v for k, v in row.items()} for row in inner if isinstance(row, dict)]
    name, value = (
        next((key for key in keys if rows and all(key in row for row in rows)), "")
        for keys in (_NAMES, (*_COLORS, *_NUMBERS))
    )
    if not name or len(rows) < len(inner):
        return None
    names = [str(row[name]) for row in rows]
    return {n: row[value] for n, row in zip(names, rows, strict=True)} if value else names


def _plain(key: object) -> str:
    return re.sub(r"[^a-z]", "", str(key).lower())


def _kind_of(value: object) -> str:
    try:
        return parse_value(value, "")[0]
    except DataError:
        return ""


def _read_labelmap(lines: Sequence[str], path: str) -> MaskTable:
    """Read ``name:r,g,b:parts:actions``; the border of VOC's masks has no class."""
    rows = [line.split(":") for line in lines if not line.startswith("#")]
    table = _from_rows({row[0]: row[1] if len(row) > 1 else "" for row in rows}, path)
    border = () if _VOC_BORDER in (*table.values, *table.ignored) else (_VOC_BORDER,)
    return replace(table, ignored=(*table.ignored, *border))


def _read_ade20k(lines: Sequence[str], path: str) -> MaskTable:
    rows = [line.split("\t") for line in lines[1:]]
    head = [_plain(cell) for cell in lines[0].split("\t")] if lines else []
    place = head.index("idx") if "idx" in head else None
    names: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    for number, row in enumerate((row for row in rows if len(row) > 1), 1):
        name = row[-1].split(",")[0]
        seen[name] += 1  # some names occur twice, such as "stool"
        names[f"{name} {seen[name]}" if seen[name] > 1 else name] = (
            number if place is None else row[place]
        )
    table = _from_rows(names, path)
    return table if 0 in table.values else replace(table, ignored=(0, *table.ignored))


def _read_csv(tree: Tree, path: str) -> MaskTable | None:
    reader = csv.DictReader(io.StringIO(read_text(tree.source, path)), skipinitialspace=True)
    columns = {_plain(name): name for name in reversed(reader.fieldnames or ()) if name}
    name = next((columns[key] for key in _NAMES if key in columns), None)
    rgb = (["r", "g", "b"], ["red", "green", "blue"])
    values = next((names for names in rgb if {*names} <= {*columns}), [])
    # A table of something else may have numbers too.
    ours = "class" in fold(path).rpartition("/")[2]
    numbers = [key for key in (*_COLORS, *_NUMBERS) if key in columns]
    if not values and numbers and (ours or numbers[0] == "pixelvalue"):
        values = numbers[:1]
    if name is None or not values:
        return None
    rows: dict[str, Any] = {}
    for row in reader:
        cells = [row[columns[key]] for key in values]
        try:
            rows[row[name]] = cells[0] if len(cells) == 1 else [*map(int, cells)]
        except (TypeError, ValueError) as error:
            message = (
                f"{path!r} must have numbers from 0 to 255 in {', '.join(values)}, got {row}. "
                f"Correct it."
            )
            raise DataError(message) from error
    return _from_rows(rows, path)


def _from_list(names: Sequence[str], origin: str, wanted: Collection[str]) -> MaskTable:
    """Number names in order; what is not learnt keeps its number."""
    cleaned = _distinct(names, origin)
    if cleaned[0] == "__ignore__":  # of labelme: it has the number -1
        cleaned = cleaned[1:]
    learnt = [name in wanted or name.lower() not in _NOT_LEARNT for name in cleaned]
    if all(learnt):
        return MaskTable(names=cleaned, origin=origin)
    return MaskTable(
        names=tuple(name for name, good in zip(cleaned, learnt, strict=True) if good),
        values=tuple(number for number, good in enumerate(learnt) if good),
        ignored=tuple(number for number, good in enumerate(learnt) if not good),
        origin=origin,
    )


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
