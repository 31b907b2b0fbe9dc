# SPDX-License-Identifier: Apache-2.0
"""Labelled images: class folders, of each set or of one.

A folder of class folders is one set; a folder that holds `train` beside `val` (or `test`) of those
is several. Classes are those of train: images of others are left out of the other sets, as no
answer could be right. Only names are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from muntin.data.archives import is_archive
from muntin.data.mask_layouts import kind_of_folder, pair_masks
from muntin.data.readers import (
    Reader,
    Source,
    clean_class_name,
    count_parts,
    join_parts,
    number_classes,
)
from muntin.data.trees import PARTS, Tree, part_named
from muntin.errors import DataError, plural, shorten
from muntin.samples import DataSets, Entry, Listing, Problem, warning

EXPECTED = (
    "Expected one folder a class (cats/1.jpg, dogs/2.jpg), or train/ and val/ folders of those."
)


@dataclass(frozen=True, slots=True)
class _Folder:
    """What lies below one folder: `prefix` ends with a slash."""

    tree: Tree
    prefix: str = ""

    @property
    def where(self) -> str:
        source = repr(self.tree.source)
        return f"{self.prefix!r} of {source}" if self.prefix else source

    @property
    def tops(self) -> list[str]:
        """Folders directly in this one."""
        return sorted({name.partition("/")[0] for name in self.cut(self.tree.folders)})

    @property
    def loose(self) -> list[str]:
        """Images directly in this folder."""
        return [self.prefix + name for name in self.cut(self.tree.images) if "/" not in name]

    def cut(self, names: Iterable[str]) -> list[str]:
        """Names below this folder, seen from it."""
        start = len(self.prefix)
        return [name[start:] for name in names if name.startswith(self.prefix)]

    def enter(self, top: str) -> _Folder:
        return _Folder(self.tree, f"{self.prefix}{top}/")


def _read_folders(place: Source, tree: Tree, class_names: Sequence[str] | None) -> DataSets:
    others = len(tree.files) - len(tree.images)
    if not tree.images:
        what = plural(others, "other file") if others else "it is empty"
        packed = [name for name in tree.files if is_archive(name)]
        advice = f"Give one of its archives itself: {shorten(packed)}." if packed else EXPECTED
        message = f"No images in {tree.source!r} ({what}). {advice}"
        raise DataError(message)
    top = _look_through(_Folder(tree))
    notes: list[str] = []
    problems: list[Problem] = []
    if others:
        notes.append(f"{plural(others, 'file')} other than images left out")
    folders = _find_parts(top, notes)
    if not folders:
        train = _list_set(top, class_names, problems)
        size = f"{plural(len(train), 'image')} of {train.num_classes} classes"
        said = [f"one set in class folders, {size}", *notes]
        return join_parts({"train": train}, said, problems=problems)
    sets: dict[str, Listing] = {}
    unlearnt: dict[str, int] = {}
    names = class_names
    for part in (part for part in PARTS if part in folders):
        # The first set, which is train wherever there is one, decides what the classes are.
        later = "train" in sets or (sets and class_names is None)
        counts = unlearnt if later else None
        listing = _list_set(folders[part], names, problems, counts)
        names = names or listing.class_names
        if listing.entries:
            sets[part] = listing
    if lacking := find_lacking(sets):
        notes.append(lacking)
    sizes = count_parts({part: len(listing) for part, listing in sets.items()})
    num_classes = next(iter(sets.values())).num_classes
    note = f"{' + '.join(sets)} folders of class folders, {sizes} of {num_classes} classes"
    left_out, more = tell_unlearnt(unlearnt)
    return join_parts(sets, [note, *notes, left_out], problems=problems + more, left_out=left_out)


def _look_through(folder: _Folder) -> _Folder:
    """Enter the one folder that holds everything: first any, then one named like a set."""
    for _ in range(2):
        tops = folder.tops
        if len(tops) != 1 or folder.loose:
            break
        inner = folder.enter(tops[0])
        if inner.loose or not inner.tops:  # a class folder
            break
        if folder.prefix and not part_named(tops[0]):
            break
        folder = inner
    return folder


def _find_parts(folder: _Folder, notes: list[str]) -> Mapping[str, _Folder]:
    """The train, val and test folders; none when all is one set."""
    parts: dict[str, _Folder] = {}
    others = []
    for top in folder.tops:
        part = part_named(top)
        if not part:
            others.append(top)
            continue
        if part in parts:
            message = (
                f"There must be one {part} folder, got {parts[part].prefix!r} and {top + '/'!r} "
                f"in {folder.tree.source!r}. Move one of them away."
            )
            raise DataError(message)
        parts[part] = folder.enter(top)
    if len(parts) < 2 and not ([*parts] == ["train"] and _stands_alone(folder, parts["train"])):
        return {}
    test = parts.get("test")
    if test is not None and test.loose and not test.tops:
        # A competition's test set: its classes are unknown.
        notes.append(f"{test.prefix} has no class folders, left out")
        del parts["test"]
    if others:
        notes.append(f"beside them, left out: {shorten(others)}")
    return parts


def _stands_alone(folder: _Folder, train: _Folder) -> bool:
    """Whether a train folder without val is a set: it alone has class folders."""
    sets = [top for top in folder.tops if len(folder.enter(top).tops) > 1]
    return sets == folder.cut([train.prefix.removesuffix("/")]) and not train.loose


def _refuse_masks(folder: _Folder) -> None:
    kinds = {kind_of_folder(top)[0] for top in folder.tops}
    if kinds == {True, False} and pair_masks(folder.tree).parts:
        message = (
            f"Classification needs one folder a class, got images and their masks in "
            f"{folder.where}: {shorten(folder.tops)}. Use semantic, or instance for masks of "
            f"objects."
        )
        raise DataError(message)


def _list_set(
    folder: _Folder,
    class_names: Sequence[str] | None,
    problems: list[Problem],
    unlearnt: dict[str, int] | None = None,
) -> Listing:
    """List a set; with `unlearnt`, leave classes out that have no number, and count them there."""
    source = folder.tree.source
    if loose := folder.loose:
        message = (
            f"Every image must be in a class folder, got {plural(len(loose), 'image')} outside in "
            f"{folder.where} ({shorten(loose, limit=2)}). {EXPECTED}"
        )
        raise DataError(message)
    _refuse_masks(folder)
    found: dict[str, list[str]] = {top: [] for top in folder.tops}
    for name in folder.cut(folder.tree.images):
        found[name.partition("/")[0]].append(folder.prefix + name)
    empty = [f"{folder.prefix}{top}" for top, images in found.items() if not images]
    if class_names is None:
        what = "no image in this class folder: put images there or remove it"
        problems += [Problem(file=name, what=what, severity="error") for name in empty]
    if unlearnt is not None:
        for top in [one for one in found if clean_class_name(one) not in (class_names or ())]:
            unlearnt[f"{folder.prefix}{top}"] = len(found.pop(top))
    kept = [clean_class_name(top) for top, images in found.items() if images]
    where = folder.where + (f" (no image in {shorten(empty)})" if empty else "")
    names, ids = order_classes(kept, class_names, where)
    entries = [
        Entry(path=path, class_ids=(ids[clean_class_name(top)],))
        for top, images in found.items()
        for path in images
    ]
    entries.sort(key=lambda entry: entry.path)
    return Listing(source=source, entries=tuple(entries), class_names=names)


def order_classes(
    found: Iterable[str], wanted: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Give the names in the order of their numbers, sorted without `wanted`, and each number."""
    names = sorted(set(found))
    if wanted is None and len(names) < 2:
        message = (
            f"Classification needs at least two classes, got {shorten(names) or 'none'} "
            f"in {where}. {EXPECTED}"
        )
        raise DataError(message)
    return number_classes(names, names, wanted, where)


def tell_unlearnt(counts: Mapping[str, int]) -> tuple[str, list[Problem]]:
    """Say in one line, and one by one, how many labels no image of train teaches."""
    what = "left out: no image of train teaches this class. Move some to train"
    found = {name: count for name, count in counts.items() if count}
    problems = [warning(name, f"{plural(n, 'image')} {what}") for name, n in found.items()]
    rows = shorten(f"{name} {count}" for name, count in found.items())
    return rows and f"images of classes that train lacks are left out: {rows}", problems


def find_lacking(sets: Mapping[str, Listing]) -> str:
    """Name the classes of which a set other than train has no image; empty if there are none."""
    lacking = {
        part: [n for n, count in zip(one.class_names, one.class_counts, strict=True) if not count]
        for part, one in sets.items()
    }
    return "; ".join(
        f"{part} has no image of {shorten(names)}"
        for part, names in lacking.items()
        if names and part != "train"
    )


CLASS_FOLDERS: Reader[Sequence[str] | None, DataSets] = Reader(
    name="class folders",
    recognise=lambda source: None if source.is_file else source.tree,
    read=_read_folders,
    looks_for="one folder a class",
)
