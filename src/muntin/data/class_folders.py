# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Classes as folders of images, for each set or for one.

A folder of class folders is one set; a folder that holds `train` beside `val` (or `test`) of those
is several. Only names are looked at.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from muntin.data.archives import is_archive
from muntin.data.readers import Reader, Source
from muntin.data.trees import Tree, is_hidden
from muntin.errors import DataError, shorten
from muntin.samples import DataSets, Entry, Listing

__all__ = ["CLASS_FOLDERS", "EXPECTED", "SPLIT_NAMES", "order_classes"]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
EXPECTED = (
    "Expected one folder a class (cats/1.jpg, dogs/2.jpg), or train/ and val/ folders of those."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Folder:
    """Names below one folder: `prefix` ends with a slash, the paths have it in front."""

    prefix: str
    images: tuple[str, ...]
    folders: tuple[str, ...]

    @property
    def tops(self) -> list[str]:
        """Folders directly in this one."""
        start = len(self.prefix)
        return sorted({folder[start:].partition("/")[0] for folder in self.folders})

    @property
    def loose(self) -> list[str]:
        """Images directly in this folder."""
        start = len(self.prefix)
        return [path for path in self.images if "/" not in path[start:]]

    def enter(self, top: str) -> _Folder:
        """Go down one folder."""
        prefix = f"{self.prefix}{top}/"
        return _Folder(
            prefix=prefix,
            images=tuple(path for path in self.images if path.startswith(prefix)),
            folders=tuple(path for path in self.folders if path.startswith(prefix)),
        )

    def by_top(self) -> dict[str, list[str]]:
        """Images of each folder directly in this one, at any depth."""
        start = len(self.prefix)
        found: dict[str, list[str]] = {top: [] for top in self.tops}
        for path in self.images:
            top, slash, _ = path[start:].partition("/")
            if slash:
                found[top].append(path)
        return found


def _recognise(source: Source) -> Tree | None:
    return None if source.is_file else source.tree


def _read(place: Source, found: Tree, class_names: Sequence[str] | None) -> DataSets:
    source, files, images = found.source, found.files, found.images
    if not images:
        what = f"{len(files)} other files" if files else "it is empty"
        packed = [name for name in files if is_archive(name)]
        advice = f"Give one of its archives itself: {shorten(packed)}." if packed else EXPECTED
        message = f"No images in {source!r} ({what}). {advice}"
        raise DataError(message)
    shown = tuple(name for name in found.folders if not is_hidden(name))
    tree = _look_through(_Folder(prefix="", images=images, folders=shown))
    notes: list[str] = []
    if skipped := len(files) - len(images):
        notes.append(f"{skipped} files that are not images left out")

    parts = _find_parts(tree, source, notes)
    if not parts:
        train = _list_set(tree, source, class_names)
        note = f"one set in class folders, {len(train)} images of {train.num_classes} classes"
        return DataSets(train=train, note="; ".join((note, *notes)))
    return _join_parts(parts, source, class_names, notes)


def _join_parts(
    parts: dict[str, _Folder], source: str, class_names: Sequence[str] | None, notes: list[str]
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
    note = f"{' + '.join(sets)} folders of class folders, {counts} images"
    return DataSets(
        train=sets.get("train"),
        val=sets.get("val"),
        test=sets.get("test"),
        note="; ".join((f"{note} of {num_classes} classes", *notes)),
    )


def _look_through(tree: _Folder) -> _Folder:
    """Enter the one folder that holds everything: first any, then one named like a set."""
    for _ in range(2):
        if len(tree.tops) != 1 or tree.loose:
            break
        inner = tree.enter(tree.tops[0])
        if inner.loose or not inner.tops:  # a class folder
            break
        if tree.prefix and tree.tops[0].lower() not in SPLIT_NAMES:
            break
        tree = inner
    return tree


def _find_parts(tree: _Folder, source: str, notes: list[str]) -> dict[str, _Folder]:
    """The train, val and test folders; none when the tree is one set."""
    parts: dict[str, _Folder] = {}
    others = []
    for top in tree.tops:
        part = SPLIT_NAMES.get(top.lower())
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
        # A competition's test set: its classes are unknown.
        notes.append(f"{test.prefix} has no class folders, left out")
        del parts["test"]
    if others:
        notes.append(f"beside them, left out: {shorten(others)}")
    return parts


def _list_set(tree: _Folder, source: str, class_names: Sequence[str] | None) -> Listing:
    where = f"{source!r}" if not tree.prefix else f"{tree.prefix!r} of {source!r}"
    if tree.loose:
        message = (
            f"{len(tree.loose)} images are outside class folders in {where} "
            f"({shorten(tree.loose, limit=2)}). {EXPECTED}"
        )
        raise DataError(message)
    found = tree.by_top()
    empty = [f"{tree.prefix}{top}" for top, images in found.items() if not images]
    if empty:
        message = (
            f"Every class folder must hold images, got none in {shorten(empty)} of {source!r}. "
            f"Put images there or remove the folder."
        )
        raise DataError(message)
    classes = {_clean(top): images for top, images in sorted(found.items())}
    names = order_classes(classes, class_names, where)
    ids = {name: class_id for class_id, name in enumerate(names)}
    entries = (
        Entry(path=path, class_ids=(ids[name],))
        for name, images in classes.items()
        for path in images
    )
    ordered = tuple(sorted(entries, key=lambda entry: entry.path))
    return Listing(source=source, entries=ordered, class_names=names)


def order_classes(
    found: Iterable[str], wanted: Sequence[str] | None, where: str
) -> tuple[str, ...]:
    """Give the class names in the order of their numbers.

    Args:
        found: Names in the data set.
        wanted: Classes of a trained run; None sorts the names.
        where: Where they were found, for messages.

    Raises:
        DataError: There are fewer than two classes, or some that the run does not have.
    """
    names = sorted(found)
    if wanted is None:
        if len(names) < 2:
            message = (
                f"Classification needs at least two classes, got {shorten(names) or 'none'} "
                f"in {where}. {EXPECTED}"
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
    parts += [f"it also has {shorten(extra)}"] if extra else []
    message = (
        f"All sets of {source!r} must have the same classes, got others in {prefix!r}: "
        f"{' and '.join(parts)}. Make the class folders the same."
    )
    raise DataError(message)


def _clean(name: str) -> str:
    """One spelling of an accented name, whatever system packed the files."""
    return unicodedata.normalize("NFC", name)


CLASS_FOLDERS: Reader[Sequence[str] | None, DataSets] = Reader(
    name="class folders",
    recognise=_recognise,
    read=_read,
    looks_for="one folder a class",
)
