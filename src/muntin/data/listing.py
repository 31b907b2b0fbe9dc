# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which pictures a data set has and what their classes are, found by looking at it.

Folders, zips and tars are told apart by their names only: a folder of class folders is one set; a
folder that holds `train` beside `val` (or `test`) of those is several. A CSV says it all itself
and is read in `tables.py`. No picture is opened here.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from muntin.data.archives import ARCHIVE_SUFFIXES, is_archive, list_files
from muntin.data.tables import Row, read_table
from muntin.errors import DataError, shorten
from muntin.samples import DataSets, Entry, Listing

__all__ = ["PICTURE_SUFFIXES", "list_classify"]

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
"""Names of files that are taken for pictures, in lower case."""

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_EXPECTED = (
    "Expected one folder a class (cats/1.jpg, dogs/2.jpg), or train/ and val/ folders of those."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tree:
    """Names below one folder: `prefix` ends with a slash, the paths have it in front."""

    prefix: str
    pictures: tuple[str, ...]
    folders: tuple[str, ...]

    @property
    def tops(self) -> list[str]:
        """Folders directly in this one."""
        start = len(self.prefix)
        return sorted({folder[start:].partition("/")[0] for folder in self.folders})

    @property
    def loose(self) -> list[str]:
        """Pictures directly in this folder."""
        start = len(self.prefix)
        return [path for path in self.pictures if "/" not in path[start:]]

    def enter(self, top: str) -> _Tree:
        """Go down one folder."""
        prefix = f"{self.prefix}{top}/"
        return _Tree(
            prefix=prefix,
            pictures=tuple(path for path in self.pictures if path.startswith(prefix)),
            folders=tuple(path for path in self.folders if path.startswith(prefix)),
        )

    def by_top(self) -> dict[str, list[str]]:
        """Pictures of each folder directly in this one, at any depth."""
        start = len(self.prefix)
        found: dict[str, list[str]] = {top: [] for top in self.tops}
        for path in self.pictures:
            top, slash, _ = path[start:].partition("/")
            if slash:
                found[top].append(path)
        return found


def list_classify(
    path: str | os.PathLike[str], *, class_names: Sequence[str] | None = None
) -> DataSets:
    """List the pictures of a classification data set and their classes.

    Hidden files, `__MACOSX` and `Thumbs.db` are left out in silence, other files that are not
    pictures by their names with a count in the note. Folders inside a class folder belong to the
    class. One folder around everything is looked through.

    Args:
        path: A folder, a .zip or .tar, or a .csv with the columns `path` and `class`.
        class_names: Classes of a trained run; class numbers then follow them. When left out, the
            numbers follow the sorted names that are found.

    Returns:
        The sets; one that stands alone is in `train`, whatever its name.

    Raises:
        DataError: The path or the layout is wrong; one line says what and where.
    """
    place = Path(path)
    if not str(path).strip() or not place.exists():
        message = (
            f"DATA must be a folder, a .zip, a .tar or a .csv, found nothing at {str(path)!r}. "
            f"Check the path."
        )
        raise DataError(message)
    if place.is_file() and place.suffix.lower() == ".csv":
        return _from_table(place, class_names)
    if place.is_file() and not is_archive(place):
        message = (
            f"DATA must be a folder, a .csv or an archive ({shorten(ARCHIVE_SUFFIXES, most=9)}), "
            f"got the file {str(path)!r}. Give the folder that holds the class folders."
        )
        raise DataError(message)
    return _from_tree(place, class_names)


def _from_tree(place: Path, class_names: Sequence[str] | None) -> DataSets:
    source = str(place)
    files, folders = list_files(source)
    files = [name for name in files if not _is_hidden(name)]
    pictures = tuple(name for name in files if name.lower().endswith(PICTURE_SUFFIXES))
    if not pictures:
        what = f"{len(files)} other files" if files else "it is empty"
        packed = [name for name in files if is_archive(name)]
        advice = f"Give one of its archives itself: {shorten(packed)}." if packed else _EXPECTED
        message = f"No pictures in {source!r} ({what}). {advice}"
        raise DataError(message)
    shown = tuple(name for name in folders if not _is_hidden(name))
    tree = _look_through(_Tree(prefix="", pictures=pictures, folders=shown))
    notes: list[str] = []
    if skipped := len(files) - len(pictures):
        notes.append(f"{skipped} files that are not pictures left out")

    parts = _find_parts(tree, source, notes)
    if not parts:
        train = _list_set(tree, source, class_names)
        note = f"one set in class folders, {len(train)} pictures of {train.num_classes} classes"
        return DataSets(train=train, note="; ".join((note, *notes)))
    return _join_parts(parts, source, class_names, notes)


def _join_parts(
    parts: dict[str, _Tree], source: str, class_names: Sequence[str] | None, notes: list[str]
) -> DataSets:
    names = class_names
    sets: dict[str, Listing] = {}
    for part in ("train", "val", "test"):
        if part not in parts:
            continue
        sets[part] = listing = _list_set(parts[part], source, class_names)
        if class_names is None:
            names = names or listing.class_names
            _require_same_classes(listing.class_names, names, parts[part].prefix, source)
    counts = ", ".join(f"{part} {len(listing)}" for part, listing in sets.items())
    num_classes = next(iter(sets.values())).num_classes
    note = f"{' + '.join(sets)} folders of class folders, {counts} pictures"
    return DataSets(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        note="; ".join((f"{note} of {num_classes} classes", *notes)),
    )


def _look_through(tree: _Tree) -> _Tree:
    """Enter the one folder that holds everything: first any, then one named like a set."""
    for _ in range(2):
        if len(tree.tops) != 1 or tree.loose:
            break
        inner = tree.enter(tree.tops[0])
        if inner.loose or not inner.tops:  # a class folder
            break
        if tree.prefix and tree.tops[0].lower() not in _SPLIT_NAMES:
            break
        tree = inner
    return tree


def _find_parts(tree: _Tree, source: str, notes: list[str]) -> dict[str, _Tree]:
    """The train, val and test folders; none when the tree is one set."""
    parts: dict[str, _Tree] = {}
    others = []
    for top in tree.tops:
        part = _SPLIT_NAMES.get(top.lower())
        if part is None:
            others.append(top)
            continue
        if part in parts:
            message = (
                f"There must be one {part} folder, got {parts[part].prefix!r} and {top + '/'!r} "
                f"in {source!r}. Move one of them away."
            )
            raise DataError(message)
        parts[part] = tree.enter(top)
    if len(parts) < 2:
        return {}
    test = parts.get("test")
    if test is not None and test.loose and not test.tops:
        # A competition's test set: nobody knows the classes.
        notes.append(f"{test.prefix} has no class folders, left out")
        del parts["test"]
    if others:
        notes.append(f"beside them, left out: {shorten(others)}")
    return parts


def _list_set(tree: _Tree, source: str, class_names: Sequence[str] | None) -> Listing:
    where = f"{source!r}" if not tree.prefix else f"{tree.prefix!r} of {source!r}"
    if tree.loose:
        message = (
            f"{len(tree.loose)} pictures lie outside class folders in {where} "
            f"({shorten(tree.loose, most=2)}). {_EXPECTED}"
        )
        raise DataError(message)
    found = tree.by_top()
    empty = [f"{tree.prefix}{top}" for top, pictures in found.items() if not pictures]
    if empty:
        message = (
            f"Every class folder must hold pictures, got none in {shorten(empty)} of {source!r}. "
            f"Put pictures there or remove the folder."
        )
        raise DataError(message)
    classes = {_clean(top): pictures for top, pictures in sorted(found.items())}
    names = _class_names(classes, class_names, where)
    ids = {name: class_id for class_id, name in enumerate(names)}
    entries = (
        Entry(path=path, class_ids=(ids[name],))
        for name, pictures in classes.items()
        for path in pictures
    )
    ordered = tuple(sorted(entries, key=lambda entry: entry.path))
    return Listing(source=source, entries=ordered, class_names=names)


def _from_table(place: Path, class_names: Sequence[str] | None) -> DataSets:
    rows = read_table(place)
    names = _class_names(
        {name for row in rows for name in row.classes}, class_names, repr(str(place))
    )
    ids = {name: class_id for class_id, name in enumerate(names)}
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

    parts = Counter(_part_of(row, place) for row in rows)
    kind = f"multi-label ({several} with several classes, {without} with none)"
    note = f"CSV, {kind if multi_label else 'single-label'}, {len(names)} classes"
    if len(parts) == 1 and not any(row.split for row in rows):
        return DataSets(train=gather(rows), note=f"{note}, one set of {len(rows)} pictures")
    sets = {
        part: gather(row for row in rows if _part_of(row, place) == part)
        for part in ("train", "val", "test")
        if part in parts
    }
    if class_names is None and "train" in sets:
        _require_learnt(sets, place)
    counts = ", ".join(f"{part} {len(listing)}" for part, listing in sets.items())
    return DataSets(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        note=f"{note}, sets by its split column: {counts} pictures",
    )


def _part_of(row: Row, place: Path) -> str:
    part = _SPLIT_NAMES.get(row.split.lower() or "train")
    if part is None:
        message = (
            f"The split column must say train, val or test, got {row.split!r} "
            f"for {row.path!r} in {str(place)!r}. Correct the row."
        )
        raise DataError(message)
    return part


def _class_names(found: Iterable[str], wanted: Sequence[str] | None, where: str) -> tuple[str, ...]:
    names = sorted(found)
    if wanted is None:
        if len(names) < 2:
            message = (
                f"Classification needs at least two classes, got {shorten(names) or 'none'} "
                f"in {where}. {_EXPECTED}"
            )
            raise DataError(message)
        return tuple(names)
    unknown = [name for name in names if name not in set(wanted)]
    if unknown:
        message = (
            f"Classes must be among the {len(wanted)} that the run was trained on "
            f"({shorten(wanted)}), got also {shorten(unknown)} in {where}. "
            f"Rename or remove them."
        )
        raise DataError(message)
    return tuple(wanted)


def _require_same_classes(
    names: Sequence[str], expected: Sequence[str], prefix: str, source: str
) -> None:
    missing = [name for name in expected if name not in set(names)]
    extra = [name for name in names if name not in set(expected)]
    if not missing and not extra:
        return
    parts = [f"it lacks {shorten(missing)}"] if missing else []
    parts += [f"it has also {shorten(extra)}"] if extra else []
    message = (
        f"All sets of {source!r} must have the same classes, got others in {prefix!r}: "
        f"{' and '.join(parts)}. Make the class folders the same."
    )
    raise DataError(message)


def _require_learnt(sets: dict[str, Listing], place: Path) -> None:
    counts = sets["train"].class_counts
    names = sets["train"].class_names
    unlearnt = [name for name, count in zip(names, counts, strict=True) if not count]
    if unlearnt:
        message = (
            f"Every class must have pictures whose split is train, got none for "
            f"{shorten(unlearnt)} in {str(place)!r}. Move rows of these classes to train."
        )
        raise DataError(message)


def _clean(name: str) -> str:
    """One spelling of an accented name, whatever system packed the files."""
    return unicodedata.normalize("NFC", name)


def _is_hidden(name: str) -> bool:
    return any(
        part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN")
        for part in name.split("/")
    )
