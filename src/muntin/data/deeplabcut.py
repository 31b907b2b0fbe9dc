# SPDX-License-Identifier: Apache-2.0
"""DeepLabCut: a CSV of keypoints whose first rows name scorer, body parts and x or y.

A row is a frame, named in its first cell or, in newer files, in its first three. Where all rows of
a table name frames by numbers alone, each is the only image beside the table whose name ends with
that number. Empty cells are points that are not visible. A row "individuals" distinguishes several
instances in a frame; body parts of the individual "single" belong to the scene, which is an
instance of its own: the image. What a network labelled (machinelabels) is not read where people
labelled too, as DeepLabCut does not learn from it either.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.data.objects import (
    WRONG_KEYPOINTS,
    Annotation,
    AnnotationReport,
    Fault,
    ObjectRequest,
    make_entry,
    make_listing,
)
from muntin.data.readers import Reader, Source, explain_some
from muntin.data.trees import PARTS, Tree, clean_name, fold, part_in, part_of, read_text
from muntin.errors import DataError, plural, shorten
from muntin.samples import Entry, Listing, Skeleton
from muntin.shapes import Size

SUBJECT = "subject"
"""Class name of every instance: these files name none."""

SCENE = "scene"
"""Class name of the image as a whole, where body parts belong to no individual."""

_MARGIN = 0.1  # around the points of an individual, relative to their extent

_HEAD = ("scorer", "individuals", "bodyparts", "coords")
_LAST_NUMBER = re.compile(r"\d+(?=\D*$)")
_MACHINE = re.compile(r"(?:^|/)machinelabels[^/]*$", re.IGNORECASE)
_ALONE = "single"  # what DeepLabCut calls body parts of a frame that belong to no individual


class _Frame(NamedTuple):
    """One labelled image; (N, P, 3) x, y and visibility (2 or 0) of each individual."""

    path: str
    where: str
    instances: NDArray[np.float64]


class _Table(NamedTuple):
    """One CSV; whether it distinguishes individuals, and which row of a frame is the scene."""

    path: str
    keypoints: tuple[str, ...]
    has_individuals: bool
    frames: list[_Frame]
    scene: int = -1


def _recognise(source: Source) -> list[str] | None:
    if source.is_file:
        # A file that the user names is read whatever it looks like.
        return [source.name] if source.suffix == ".csv" else None
    tree = source.tree
    return [name for name in tree.with_suffix(".csv") if not _explain(tree, name)] or None


def _explain(tree: Tree, path: str) -> str:
    """Why a CSV is not recognised as labels of DeepLabCut; "" if it is."""
    try:
        lines = read_text(tree.source, path).splitlines()[:4]
    except DataError:
        return f"{path!r} is no text in UTF-8"
    if not any(map(str.strip, lines)):
        return f"{path!r} is empty"
    if any("likelihood" in line.lower() for line in lines):
        return f"{path!r} holds predictions (likelihood); to learn from them, give its own path"
    rows = {line.partition(",")[0] for line in lines}
    if lines[0].startswith("scorer") and {"bodyparts", "coords"} <= rows:
        return ""
    return f"{path!r} {_describe_head([line.split(',') for line in lines])}"


def _describe_head(rows: list[list[str]]) -> str:
    if any(row and row[0].lower().startswith(("scorer;", "bodyparts;")) for row in rows):
        return "has semicolons between its cells: save it with commas, and points in its numbers"
    cells = [row[0] for row in rows[: len(_HEAD)] if row]
    lacking = [name for name in _HEAD if name not in cells and name != "individuals"]
    return f"has no row that begins with {' and none with '.join(lacking)}"


def _read_table(tree: Tree, path: str, findings: AnnotationReport) -> _Table:
    rows = list(csv.reader(io.StringIO(read_text(tree.source, path))))
    count = next((i for i, row in enumerate(rows) if row[:1] == ["coords"]), -1) + 1
    head = {row[0]: row for row in rows[:count] if row}
    first = next((i for i, cell in enumerate(head.get("coords", [])) if cell in ("x", "y")), 0)
    if not {"bodyparts", "coords"} <= head.keys() <= set(_HEAD) or not first:
        got = shorten(head, limit=5) or "none"
        if not {"scorer", "bodyparts", "coords"} <= head.keys():
            got = f"a file that {_describe_head(rows)}" if rows else "an empty file"
        message = (
            f"{path!r} must begin with rows named scorer, bodyparts and coords, got {got}. Is it a "
            f"file of labels of DeepLabCut?"
        )
        raise DataError(message)
    parts = head["bodyparts"]
    people = head.get("individuals", [""] * len(parts))
    columns = _find_columns(head["coords"], parts, people, first, path)
    keypoints = tuple(dict.fromkeys(part for _, part in columns))
    names = list(dict.fromkeys(one for one, _ in columns))
    frames: list[_Frame] = []
    seen: dict[str, str] = {}
    filled = [(n, row) for n, row in enumerate(rows[count:], count + 1) if any(map(str.strip, row))]
    names_of = [_name_in(row, first) for _, row in filled]
    numbered = _find_numbered(names_of, tree, path)
    for (number, row), image_name in zip(filled, names_of, strict=True):
        where = f"row {number}"
        image = numbered.get(image_name) or _find_image(image_name, tree, path) or ""
        fault = _fault_of(row, len(parts), first, image)
        if not fault and image in seen:
            fault = ("duplicate", f"{image} is in {seen[image]} too")
        if not fault:
            try:
                instances = _read_points(row, columns, names, keypoints)
            except ValueError as error:
                fault = ("with cells that are no numbers", str(error))
        if fault:
            findings.leave_out(path, where, *fault)
            continue
        seen[image] = where
        frames.append(_Frame(image, where, instances))
    scene = names.index(_ALONE) if len(names) > 1 and _ALONE in names else -1
    return _Table(path, keypoints, "individuals" in head, frames, scene)


_Columns = dict[tuple[str, str], tuple[int, int]]
"""Individual and body part, to the columns of x and y."""


def _find_columns(
    coords: list[str], parts: list[str], people: list[str], first: int, path: str
) -> _Columns:
    found: dict[tuple[str, str], dict[str, int]] = {}
    for place in range(first, min(len(coords), len(parts), len(people))):
        if coords[place] in ("x", "y"):  # a file of predictions has the likelihood beside them
            axes = found.setdefault((people[place], parts[place]), {})
            if coords[place] in axes:
                name = f"{people[place]} {parts[place]}".strip()
                message = (
                    f"every body part in {path!r} must have one column x and one y, got "
                    f"{name!r} in more of them. Rename the one that is another part."
                )
                raise DataError(message)
            axes[coords[place]] = place
    half = [f"{one} {part}".strip() for (one, part), axes in found.items() if len(axes) < 2]
    if half or not found:
        message = (
            f"every body part in {path!r} must have the columns x and y, got one of them for "
            f"{shorten(half) or 'none at all'}. Export the labels again."
        )
        raise DataError(message)
    return {key: (axes["x"], axes["y"]) for key, axes in found.items()}


def _name_in(row: list[str], first: int) -> str:
    return "/".join(cell for cell in row[:first] if cell)


def _fault_of(row: list[str], wanted: int, first: int, image: str) -> Fault | None:
    if len(row) != wanted:
        return WRONG_KEYPOINTS, f"{len(row) - first} cells, {wanted - first} needed"
    return None if image else ("of an image that is not there", _name_in(row, first))


def _find_numbered(names: Sequence[str], tree: Tree, table: str) -> dict[str, str]:
    """The images of frames that are named by numbers alone; none unless each has a single one."""
    by_number: dict[int, list[str]] = defaultdict(list)
    folder = table.rpartition("/")[0]
    for path in tree.images:
        place, _, file = path.rpartition("/")
        if place == folder and (digits := _LAST_NUMBER.search(file.rpartition(".")[0])):
            by_number[int(digits[0])].append(path)
    numbers = [name.rpartition("/")[2] for name in names]
    if not all(number.isdecimal() and len(by_number[int(number)]) == 1 for number in numbers):
        return {}
    return {name: by_number[int(n)][0] for name, n in zip(names, numbers, strict=True)}


def _find_image(name: str, tree: Tree, table: str) -> str | None:
    """The image that a cell names: from the root, beside the table, or by the end of its name."""
    folder = table.rpartition("/")[0]
    if (exact := _follow_path(name, tree.source, folder)) is not None:
        return exact
    name = clean_name(name)
    for path in (name, f"{folder}/{name}", f"{folder}/{name.rpartition('/')[2]}"):
        if (found := tree.find(path.lstrip("/"))) is not None:
            return found
    alike = tree.by_name.get(fold(name.rpartition("/")[2]), ())
    ends = [path for path in alike if fold(path).endswith(fold("/" + name))] or list(alike)
    return ends[0] if len(ends) == 1 else None


def _follow_path(name: str, source: str, folder: str) -> str | None:
    """The image at a path that is absolute or leads out of its folder, as predictions have."""
    place = Path(source, folder, name)
    if not (name.startswith("../") or Path(name).is_absolute()) or not place.is_file():
        return None
    try:
        return Path(os.path.relpath(place, source)).as_posix()
    except ValueError:  # on another drive
        return place.as_posix()


def _read_points(
    row: list[str], columns: _Columns, names: list[str], keypoints: tuple[str, ...]
) -> NDArray[np.float64]:
    points = np.zeros((len(names), len(keypoints), 3))
    for (one, part), (x, y) in columns.items():
        message = f"{part} is ({row[x]}, {row[y]})"
        try:
            values = [float(row[place]) if row[place].strip() else math.nan for place in (x, y)]
        except ValueError as error:
            raise ValueError(message) from error
        if all(map(math.isfinite, values)):
            points[names.index(one), keypoints.index(part)] = (*values, 2)
        elif any(map(math.isfinite, values)) or any(map(math.isinf, values)):
            raise ValueError(message)
    return points


def _read(source: Source, paths: Sequence[str], request: ObjectRequest) -> dict[str, Listing]:
    tree, findings = source.tree, request.findings
    by_machine = [path for path in paths if _MACHINE.search(path)]
    if 0 < len(by_machine) < len(paths):
        findings.notes.append(f"labelled by a network, left out: {shorten(by_machine)}")
        paths = [path for path in paths if path not in by_machine]
    tables = [_read_table(tree, path, findings) for path in paths]
    first = tables[0]
    for table in tables[1:]:
        if table.keypoints != first.keypoints:
            message = (
                f"every CSV must have the same body parts, got {shorten(table.keypoints)} in "
                f"{table.path!r} and {shorten(first.keypoints)} in {first.path!r}."
            )
            raise DataError(message)
    by_part: dict[str, list[Entry | None]] = defaultdict(list)
    seen: dict[str, str] = {}
    for table in tables:
        *folders, file = table.path.split("/")
        part = part_in(file.rpartition(".")[0]) or part_of(folders)
        again = [frame.where for frame in table.frames if frame.path in seen]
        if again:
            where = shorten(sorted({seen[f.path] for f in table.frames if f.path in seen}))
            rows = f"{plural(len(again), 'row')} ({shorten(again, limit=3)})"
            findings.leave_out(table.path, rows, "duplicate", f"their images are in {where} too")
        frames = [frame for frame in table.frames if frame.path not in seen]
        seen |= dict.fromkeys((frame.path for frame in frames), table.path)
        by_part[part] += [_read_frame(tree, table, frame, request) for frame in frames]
    parts = {part: by_part[part] for part in PARTS if part in by_part}
    if "" in by_part or not parts:  # what is of no part is learnt from
        parts["train"] = [*parts.get("train", []), *by_part[""]]
    skeleton = Skeleton(names=first.keypoints)
    names = (SUBJECT, SCENE) if any(table.scene >= 0 for table in tables) else (SUBJECT,)
    return {
        part: make_listing(tree.source, entries, names, skeleton) for part, entries in parts.items()
    }


def _read_frame(tree: Tree, table: _Table, frame: _Frame, request: ObjectRequest) -> Entry | None:
    size = request.findings.size_of(tree.source, frame.path)
    if size is None:
        return None
    annotations = []
    for number, points in enumerate(frame.instances):
        where, box = frame.where, (0.0, 0.0, float(size[1]), float(size[0]))
        if table.has_individuals:
            if not (points[:, 2] > 0).any():
                continue  # this one is not in the image
            where = f"{where}, individual {number + 1}"
            box = box if number == table.scene else box_around(points, size)
        values, scene = points.ravel().tolist(), int(number == table.scene)
        annotations.append(Annotation(where=where, class_id=scene, box=box, keypoints=values))
    return make_entry(
        frame.path, size, annotations, request, file=table.path, keypoint_names=table.keypoints
    )


def box_around(points: NDArray[np.float64], size: Size) -> tuple[float, float, float, float]:
    """The box of the points and a margin, inside the image; boxes end where pixels do."""
    known = points[points[:, 2] > 0, :2]
    low, high = known.min(axis=0), known.max(axis=0) + 1
    margin = np.maximum(_MARGIN * (high - low), 0.02 * max(size))
    left, top = np.maximum(low - margin, 0).tolist()
    right, bottom = np.minimum(high + margin, [size[1], size[0]]).tolist()
    return left, top, max(right, left + 1), max(bottom, top + 1)


DEEPLABCUT: Reader[ObjectRequest, dict[str, Listing]] = Reader(
    name="DeepLabCut",
    recognise=_recognise,
    read=_read,
    looks_for="DeepLabCut (a CSV whose rows begin with scorer, bodyparts and coords)",
    file="a CSV of DeepLabCut",
    reject=explain_some(".csv", _explain),
)
