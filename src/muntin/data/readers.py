# SPDX-License-Identifier: Apache-2.0
"""Data layouts: each task tries a tuple of readers; the first that recognises DATA reads it."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from muntin.data.archives import ARCHIVE_SUFFIXES, is_archive, last_read, open_packed
from muntin.data.shard_addresses import find_address
from muntin.data.trees import Tree, open_tree
from muntin.errors import DataError, plural, shorten, where_to_look
from muntin.samples import DataSets, Listing, Problem
from muntin.untrusted import read_regular, reading

_MAX_EXPLAINED = 3  # files

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class Source:
    """What the user passed as DATA: a folder, an archive, a single file or a packed data set.

    An archive is no single file, and has no `suffix`, which is in lower case. A packed data set has
    an `address`, and counts as a single file that has no suffix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.address = find_address(path)
        self.path = path = Path(path)
        self.is_file = bool(self.address) or (path.is_file() and not is_archive(path))
        self.suffix = path.suffix.lower() if self.is_file and not self.address else ""

    @cached_property
    def shards(self) -> Any:  # noqa: ANN401 (a `Shards`, which only the readers of packed data know)
        """The packed data set, opened; None for any other."""
        return open_packed(self.address) if self.address else None

    @cached_property
    def _located(self) -> tuple[Tree, str]:
        if not self.is_file:
            return open_tree(self.path), ""
        folder = Path(os.path.abspath(self.path)).parent
        tree = open_tree(self.path.parent)
        if tree.images or folder.parent == folder:
            return tree, self.path.name
        # Annotations often lie in a folder of their own, beside the folder of the images.
        return open_tree(folder.parent), f"{folder.name}/{self.path.name}"

    @property
    def tree(self) -> Tree:
        """The files; for a single file, of its folder, or of the one above if that has images."""
        return self._located[0]

    @property
    def name(self) -> str:
        """The single file, relative to `tree`; "" for a folder or an archive."""
        return self._located[1]

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Name the single file if it ends so, or the files of a folder or an archive that do."""
        if self.is_file:
            return [self.name] if self.suffix in suffixes else []
        return self.tree.with_suffix(*suffixes)


def count_others(suffix: str, why: str) -> Callable[[Source], Sequence[str]]:
    """Give a `reject` that counts the files with a suffix."""

    def reject(source: Source) -> Sequence[str]:
        count = len(source.tree.with_suffix(suffix))
        return [f"{count} {suffix}, {why}"] if count else []

    return reject


def explain_some(
    suffix: str, explain: Callable[[Tree, str], str]
) -> Callable[[Source], Sequence[str]]:
    """Give a `reject` that explains the first few files with a suffix."""

    def reject(source: Source) -> Sequence[str]:
        names = source.tree.with_suffix(suffix)[:_MAX_EXPLAINED]
        return [explain(source.tree, name) for name in names]

    return reject


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader(Generic[RequestT, ResultT]):
    """One layout of one kind of task.

    Attributes:
        name: What notes and messages call it: "COCO".
        recognise: Looks at names, and at most at the heads of files; returns what `read` needs to
            know of it, or None if this is another layout. Never None for its own layout, but
            perhaps empty.
        read: Reads what was recognised.
        looks_for: The files that it is recognised by, for the message when no reader fits; "" if
            it says itself what is missing.
        file: A single file that it reads: "a COCO .json"; "" if it needs a folder or an archive.
        reject: Why files that look similar were not recognised, one phrase each.
    """

    name: str
    recognise: Callable[[Source], Any]
    read: Callable[[Source, Any, RequestT], ResultT]
    looks_for: str
    file: str = ""
    reject: Callable[[Source], Sequence[str]] = lambda source: ()


def find_reader(
    path: str | os.PathLike[str],
    readers: Sequence[Reader[RequestT, ResultT]],
    *,
    what: str,
    advice: str = "Give the folder that holds the annotations and the images.",
) -> tuple[Reader[RequestT, ResultT], Source, Any]:
    """Find the first reader that recognises DATA; give it, the source and what it recognised.

    If none does, the message says that `what` is missing, "annotated objects", and gives `advice`.
    """
    source = Source(path)
    files = dict.fromkeys(reader.file for reader in readers if reader.file)
    accepted = ", ".join(["a folder", *files])
    accepted += f" or an archive ({shorten(ARCHIVE_SUFFIXES, limit=9)})"
    if not str(path).strip() or not (source.address or source.path.exists()):
        advice = where_to_look(path, "its files")
        message = f"DATA must be {accepted}, found nothing at {str(path)!r}. {advice}"
        raise DataError(message)
    for reader in readers:
        with _parsing(reader.name):
            found = reader.recognise(source)
        if found is not None:
            return reader, source, found
    if source.is_file:
        message = f"DATA must be {accepted}, got the file {str(path)!r}. {advice}"
        raise DataError(message)
    seen = [plural(len(source.tree.images), "image")]
    for reader in readers:
        with _parsing(reader.name):
            seen += reader.reject(source)
    expected = ", ".join(filter(None, (reader.looks_for for reader in readers)))
    message = f"No {what} in {str(path)!r} ({'; '.join(seen)}). Looked for {expected}. {advice}"
    raise DataError(message)


def read_layout(
    reader: Reader[RequestT, ResultT], source: Source, found: object, request: RequestT
) -> ResultT:
    """Read what a reader recognised; whatever its parsers raise names the file that they read."""
    with _parsing(reader.name):
        read = reader.read(source, found, request)
    runs = () if source.is_file else source.tree.runs
    if runs and isinstance(read, DataSets):
        said = f"{plural(len(runs), 'run folder')} of muntin left out ({shorten(runs, limit=2)})"
        return cast(ResultT, replace(read, note=f"{read.note}; {said}"))
    return read


def _parsing(layout: str) -> AbstractContextManager[None]:
    def name() -> str:
        return f"{last_read()!r}, taken for {layout},"

    return reading(name, "Correct it, or export it again.", DataError)


def count_parts(counts: Mapping[str, int]) -> str:
    """Write the size of each set.

    Examples:
        >>> count_parts({"train": 8, "val": 2}), count_parts({"train": 1})
        ('train 8, val 2 images', 'train 1 image')
    """
    ending = "" if [*counts.values()] == [1] else "s"
    return ", ".join(f"{part} {count}" for part, count in counts.items()) + f" image{ending}"


def join_parts(
    parts: Mapping[str, Listing],
    notes: Iterable[str],
    *,
    problems: Iterable[Problem] = (),
    left_out: str = "",
) -> DataSets:
    """Give the sets of a data set, with those notes that say something."""
    note = "; ".join(filter(None, notes))
    sets = {"train": None, **parts}
    return DataSets(**sets, note=note, problems=tuple(problems), left_out=left_out)


def name_parts(parts: Mapping[str, Listing]) -> Mapping[str, Listing]:
    """Give a single set the name train, whatever it was called."""
    return parts if len(parts) > 1 else {"train": next(iter(parts.values()))}


def clean_class_name(name: object) -> str:
    """One spelling of a class name: no space around it, one way to write an accent."""
    return unicodedata.normalize("NFC", str(name)).strip()


def number_classes(
    found: Iterable[str], used: Collection[str], wanted: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Give the names in the order of the numbers, and the number of each name.

    `found` lists the classes in order, `used` those of them that images or objects have. Numbers
    follow `wanted`, the classes of a trained run; a class that is only listed then has none. Names
    of WordNet ("n01440764"), as folders of ImageNet have them, name the classes of a run of 1,000.
    """
    names = tuple(dict.fromkeys(found))
    if wanted is None:
        if not names:
            message = (
                f"A data set of objects needs at least one class, got none in {where}. "
                f"Annotate objects first."
            )
            raise DataError(message)
        return names, {name: class_id for class_id, name in enumerate(names)}
    numbers = {clean_class_name(name): class_id for class_id, name in enumerate(wanted)}
    if len(wanted) == 1000 and names and not any(name in numbers for name in names):
        numbers = {**imagenet_synsets(), **numbers}
    refuse_unknown([n for n in names if n in used and n not in numbers], wanted, where)
    return tuple(wanted), numbers


def imagenet_synsets() -> Mapping[str, int]:
    """Number of each of the 1,000 classes of ImageNet by its name in WordNet."""
    names = read_regular(Path(__file__).with_name("imagenet_synsets.txt")).decode().split()
    return {name: class_id for class_id, name in enumerate(names)}


def refuse_unknown(
    unknown: Sequence[str],
    wanted: Sequence[str],
    where: str,
    advice: str = "Rename or remove them.",
) -> None:
    """Refuse classes that a trained run does not have."""
    if unknown:
        message = (
            f"Classes must be among the {len(wanted)} that the run was trained on "
            f"({shorten(wanted, limit=12)}), got also {shorten(unknown)} in {where}. {advice}"
        )
        raise DataError(message)
