# SPDX-License-Identifier: Apache-2.0
"""The names below a folder or in an archive, listed once and asked many times.

Annotations name images as on the machine that they were made on: with other folders, backslashes, a
URL, other capitals. Names are therefore compared from their end.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from muntin.data.archives import is_archive, list_files, read_bytes
from muntin.data.decoding import decode
from muntin.data.image_formats import is_image, open_header
from muntin.errors import DataError, shorten
from muntin.shapes import Size
from muntin.untrusted import open_regular, parse_json

PARTS = ("train", "val", "test")
"""The sets of a data set, in the order in which they are reported."""

# Capitals begin a word: "TrainSet" is "Train", "Set".
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PART_WORDS = re.compile(
    r"(?P<train>train(?:ing|val|set)?)|(?P<test>test(?:ing|set|dev)?)"
    r"|(?P<val>(?:mini)?val(?:id|idation|set)?|valminusminival)"
)

ItemT = TypeVar("ItemT")

_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN")
_RUN_FILES = {"journal.jsonl", "split.json", "weights.safetensors"}  # beside config.json
_LOCK = ".lock"
_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Names below a folder or in an archive, sorted, with slashes; hidden ones are not among them.

    `spellings` are files by folded name, `by_name` images by the folded last part of their names,
    `runs` the folders of trainings, whose files are not among them either.
    """

    source: str
    files: tuple[str, ...]
    folders: tuple[str, ...]
    images: tuple[str, ...]
    spellings: dict[str, str]
    by_name: dict[str, tuple[str, ...]]
    runs: tuple[str, ...] = ()

    def find(self, path: str) -> str | None:
        """Give a file as it is spelled here, whatever its capitals in `path`."""
        return self.spellings.get(fold(path))

    def below(self, folder: str) -> tuple[str, ...]:
        """Name the images in a folder and those in it; all of them for "" or "."."""
        start = "" if folder in ("", ".") else f"{folder}/"
        return tuple(path for path in self.images if path.startswith(start))

    def with_suffix(self, *suffixes: str) -> list[str]:
        """Name the files that end so, in any capitals."""
        return [name for name in self.files if name.lower().endswith(suffixes)]


def open_tree(source: str | os.PathLike[str]) -> Tree:
    """List a folder or an archive."""
    every, folders = list_files(source)
    runs = find_runs(every)
    seen = [name for name in every if not _is_hidden(name)]
    files = tuple(name for name in seen if not is_within(name, runs))
    left_out = {*seen}.difference(files) if runs else ()
    if runs:
        kept = {above for name in files for above in _folders_above(name)}
        emptied = {above for run in runs for above in _folders_above(run)} - kept
        folders = [one for one in folders if one not in emptied and not is_within(one, runs)]
    root = Path(source) if Path(source).is_dir() else None
    images = tuple(name for name in files if is_image(name, root))
    by_name: dict[str, list[str]] = defaultdict(list)
    for path in images:
        by_name[fold(path.rpartition("/")[2])].append(path)
    return Tree(
        source=os.fspath(source),
        files=files,
        folders=tuple(name for name in folders if not _is_hidden(name)),
        images=images,
        spellings={fold(name): name for name in reversed(files)},
        by_name={name: tuple(paths) for name, paths in by_name.items()},
        runs=tuple(run for run in runs if any(is_within(name, [run]) for name in left_out)),
    )


def find_runs(files: Iterable[str]) -> tuple[str, ...]:
    """Name the folders of trainings among files, also of one that has only begun.

    The folder that the files are seen from is none: whoever gives it means its images.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for name in files:
        folder, _, last = name.rpartition("/")
        found[folder].add(last)
    above = {up for folder in found for up in _folders_above(folder)}
    begun = {folder for folder, names in found.items() if names == {_LOCK}} - above
    whole = (n for n, names in found.items() if "config.json" in names and names & _RUN_FILES)
    return tuple(sorted({*begun, *whole} - {""}))


def is_within(name: str, folders: Sequence[str]) -> bool:
    """Whether a name is one of the folders or lies in one."""
    return any(name == folder or name.startswith(f"{folder}/") for folder in folders)


def _folders_above(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def fold(name: str) -> str:
    """One spelling of a name for all capitals and both ways to write an accent."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", name).lower()


def by_stem(paths: Iterable[str]) -> dict[str, list[str]]:
    """Sort paths by their last part, folded and without its ending."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        found[fold(path).rpartition("/")[2].rpartition(".")[0]].append(path)
    return found


def take_best(name: str, ranked: Sequence[tuple[Any, str]], source: str) -> str | None:
    """The path of the highest rank, None without any; two of that rank are refused."""
    best = max((rank for rank, _ in ranked), default=None)
    paths = sorted(path for rank, path in ranked if rank == best)
    if len(paths) > 1:
        message = (
            f"The image of annotations must be one file, got {shorten(map(repr, paths), limit=3)} "
            f"for {name!r} in {source!r}. Move the one that is not meant elsewhere, or give them "
            f"different names."
        )
        raise DataError(message)
    return paths[0] if paths else None


def by_numbers(name: str) -> list[tuple[int, str]]:
    """Give a key that sorts numbers in names by their value."""
    return [
        (int(text), "") if text.isdecimal() and len(text) < 99 else (0, text)
        for text in re.split(r"(\d+)", name)
    ]


def clean_name(name: str) -> str:
    r"""Bring a path as annotations hold it to forward slashes, without machine or server.

    Examples:
        >>> clean_name("C:\\data\\images\\1.jpg"), clean_name("http://host/train2017/1.jpg")
        ('data/images/1.jpg', 'host/train2017/1.jpg')
    """
    if "\\" in name:
        name = name.replace("\\", "/")
    name = name.partition("://")[2] or name
    name = re.sub(r"^[A-Za-z]:/", "", name.strip())
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))


def part_named(name: str) -> str:
    """Give the set that a whole name stands for; "" for none.

    Examples:
        >>> part_named("Validation"), part_named("test_tube")
        ('val', '')
    """
    found = _PART_WORDS.fullmatch(name.lower())
    return str(found.lastgroup) if found else ""


@lru_cache(maxsize=4096)
def part_in(name: str) -> str:
    """Find train, val or test in one name; "" when none is there.

    Examples:
        >>> part_in("instances_train2017"), part_in("valid"), part_in("latest")
        ('train', 'val', '')
    """
    return next((part for word in _WORDS.findall(name) if (part := part_named(word))), "")


def part_of(folders: Iterable[str]) -> str:
    """Find train, val or test in the names of folders, the innermost first."""
    return next((part for name in reversed([*folders]) if (part := part_in(name))), "")


def sort_into_parts(
    items: Sequence[ItemT], path_of: Callable[[ItemT], str]
) -> tuple[dict[str, list[ItemT]], list[ItemT]]:
    """Sort files into train, val and test by the names of their folders; and what lies in none.

    Where no folder has the name of a set, or only train, everything is train.
    """
    parts: dict[str, list[ItemT]] = defaultdict(list)
    for item in items:
        parts[part_of(path_of(item).split("/")[:-1])].append(item)
    if set(parts) <= {"", "train"}:
        return {"train": [*items]}, []
    return {part: parts[part] for part in PARTS if part in parts}, parts[""]


def read_json(
    source: str, path: str, *, hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:  # noqa: ANN401
    """Read a JSON; `hook` may change each object in it."""
    data = read_bytes(source, path)
    try:
        return parse_json(data, hook=hook)
    except ValueError as error:
        message = (
            f"{path!r} in {source!r} must be JSON that is whole, got: {error}. Correct the file, "
            f"or export it again."
        )
        raise DataError(message) from error


def read_text(source: str, path: str) -> str:
    """Read a text file, UTF-8 with or without a byte order mark."""
    try:
        return read_bytes(source, path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = (
            f"{path!r} in {source!r} must be a text in UTF-8, got: {error.reason} at byte "
            f"{error.start}. Save it again as UTF-8."
        )
        raise DataError(message) from error


def read_size(source: str, path: str) -> Size:
    """Read (height, width) of an image in pixels from the head of its file, once upright."""
    packed = is_archive(source) and not Path(source).is_dir()
    # Each of Pillow's readers has its own ways to fail.
    with contextlib.suppress(Exception):
        head = io.BytesIO(read_bytes(source, path)) if packed else open_regular(Path(source, path))
        with head, open_header(head) as image:
            width, height = image.size
            # Only where it is in the head: Pillow would decode the whole image to look for it.
            known = image.format == "TIFF" or image.info.keys() & {"exif", "xmp"}
            turned = bool(known) and image.getexif().get(_ORIENTATION, 1) in _TURNED
            if not (turned and image.format == "TIFF"):  # some versions of Pillow have turned it
                return (width, height) if turned else (height, width)
    height, width = decode(read_bytes(source, path), where=path).shape[:2]
    return height, width


def _is_hidden(name: str) -> bool:
    """Whether a file is one that a system leaves behind, or lies in a hidden folder."""
    return any(part.startswith(".") or part in _HIDDEN for part in name.split("/"))
