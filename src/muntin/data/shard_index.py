# SPDX-License-Identifier: Apache-2.0
"""The index of a packed data set: where each file lies in which shard, and what is annotated.

``index.json`` is the head, for people too: task, classes, sets, and each shard with its size and
SHA-256. ``index.bin`` holds columns of numbers and texts, which open in moments however many rows
there are, and which forked processes share. Files are found by their names in the original data
set, by bisection; annotations are the JSON of each image, as in the shards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muntin.configs import from_dict
from muntin.data.shard_addresses import FORMAT
from muntin.data.trees import PARTS
from muntin.errors import DataError
from muntin.run_lengths import clean_segmentation
from muntin.samples import Classes, Entry, Listing, Objects, check_classes
from muntin.untrusted import parse_json, reading

UNKNOWN = -1
"""Checksum of a file that was never read."""

Holds = Literal["keypoints", "masks", "outlines", "boxes", "classes", "images"]
"""What is annotated."""

_ADVICE = "Copy the data set again, or pack it again."
_AT_ONCE = 4096
_PLACES = ("shard", "offset", "size", "crc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A file of its name beside the index, with its bytes and SHA-256.

    `plan` is a digest of what it was made from; "" where others wrote it.
    """

    name: str
    size: int
    digest: str = ""
    plan: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the bytes of a file are; `crc` is its CRC-32, or `UNKNOWN`."""

    shard: Shard
    offset: int
    size: int
    crc: int = UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """``index.json``: what was packed (`task`, `note`, `left_out`), sets and their images, shards.

    `holds` is what is annotated; `table` is where the columns are, of as many files; `classes` has
    no names without labels.
    """

    format: str = FORMAT
    version: int = 1
    task: str
    holds: Holds
    classes: Classes
    sets: tuple[tuple[str, int], ...]
    num_files: int
    shards: tuple[Shard, ...]
    table: Place | None = None
    note: str = ""
    left_out: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Many texts: all bytes, and where each ends."""

    data: NDArray[np.uint8]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.ends[row - 1] if row else 0 : self.ends[row]].tobytes()


class ShardIndex:
    """A head and the columns that belong to it.

    Raises:
        ValueError: The table does not fit the head.
    """

    def __init__(self, head: Head, table: bytes) -> None:
        self.head = head
        files, images = head.num_files, sum(count for _, count in head.sets)
        # Offsets, sizes, ..., and where texts end; all of 8 bytes, so that they are aligned.
        numbers = np.frombuffer(table, np.int64, 5 * files + images)
        *places, ends = numbers[: 5 * files].reshape(5, files)
        self.places = dict(zip(_PLACES, places, strict=True))
        text_ends, start = numbers[5 * files :], numbers.nbytes
        for each in (ends, text_ends):
            if (np.diff(each, prepend=0) < 0).any():
                message = "ends of texts that fall"
                raise ValueError(message)
        num_bytes = [int(each[-1]) if len(each) else 0 for each in (ends, text_ends)]
        data = np.frombuffer(table, np.uint8, offset=start)
        if len(data) != sum(num_bytes):
            message = f"{sum(num_bytes)} bytes of texts, got {len(data)}"
            raise ValueError(message)
        self.names = Texts(data[: num_bytes[0]], ends)
        self.texts = Texts(data[num_bytes[0] :], text_ends)
        shard, offset, size, _ = self.places.values()
        limits = np.array([one.size for one in head.shards], np.int64)
        if files and not (shard.min() >= 0 and shard.max() < len(limits)):
            message = "shards of numbers that the head lacks"
            raise ValueError(message)
        if ((offset < 0) | (size < 0) | (offset > limits[shard] - size)).any():
            message = "files beyond the end of their shards"
            raise ValueError(message)

    def find(self, name: str) -> Place | None:
        """Find a file by its name in the original data set."""
        wanted = name.encode("utf-8", "surrogateescape")
        row = bisect_left(self.names, wanted)
        if row == len(self.names) or self.names[row] != wanted:
            return None
        shard, offset, size, crc = (int(self.places[column][row]) for column in _PLACES)
        return Place(shard=self.head.shards[shard], offset=offset, size=size, crc=crc)

    def list_names(self) -> list[str]:
        """Name all files, sorted."""
        rows = range(len(self.names))
        return [self.names[row].decode("utf-8", "surrogateescape") for row in rows]

    def listings(self, source: str) -> dict[str, Listing]:
        """List the images of each set, in the order of the original data set.

        Raises:
            DataError: Annotations are none.
        """
        classes, first, listings = self.head.classes, 0, {}
        parse = EntryParser(classes).parse
        for name, count in self.head.sets:
            with reading(f"An annotation of {source!r}", _ADVICE, DataError):
                entries = tuple(map(parse, self._parse(first, first + count)))
            listings[name] = Listing(
                source=source,
                entries=entries,
                class_names=classes.names,
                multi_label=classes.multi_label,
                encoding=classes.encoding,
                skeleton=classes.skeleton,
            )
            first += count
        return listings

    def _parse(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        """Parse the annotations of images, many at once, as each call has a price."""
        for start in range(first, end, _AT_ONCE):
            texts = [self.texts[row] for row in range(start, min(start + _AT_ONCE, end))]
            values = parse_json(b"[" + b",".join(texts) + b"]")
            if len(values) != len(texts):
                message = f"{len(values)} annotations in place of {len(texts)}"
                raise ValueError(message)
            yield from values


def format_entry(entry: Entry) -> dict[str, Any]:
    """Give the annotations of an image for JSON, which keeps each number to the bit."""
    values: dict[str, Any] = {"path": entry.path, "class_ids": entry.class_ids}
    values |= {"group": entry.group} if entry.group else {}
    values |= {"size": entry.size} if entry.size else {}
    values |= {"mask": entry.mask} if entry.mask else {}
    if entry.objects is not None:
        names = ("boxes", "class_ids", "crowd", "areas", "keypoints")
        columns = {name: getattr(entry.objects, name) for name in names}
        columns = {name: one.tolist() for name, one in columns.items() if one is not None}
        values["objects"] = columns | {"masks": entry.objects.masks}
    return values


class EntryParser:
    """Builds images from what `format_entry` gave; anything may be raised where it did not."""

    def __init__(self, classes: Classes) -> None:
        self._num_points = -1 if classes.skeleton is None else len(classes.skeleton.names)
        values = classes.encoding.values if classes.encoding else ()
        self._numbers = range(-1, max([len(classes.names) - 1, *values]) + 1)
        self._shared: dict[tuple[int, ...], tuple[int, ...]] = {}  # one tuple a class

    def parse(self, values: Mapping[str, Any]) -> Entry:
        """Build an image."""
        class_ids = tuple(map(int, values["class_ids"]))
        found: Any = values.get("objects")
        size: Any = values.get("size")
        if size or found:
            size = (int(size[0]), int(size[1]))
        return Entry(
            path=str(values["path"]),
            class_ids=self._shared.get(class_ids) or self._check(class_ids),
            group=str(values.get("group", "")),
            size=size or None,
            objects=self._parse_objects(found, size) if found else None,
            mask=str(values.get("mask", "")),
        )

    def _check(self, class_ids: tuple[int, ...]) -> tuple[int, ...]:
        for number in class_ids:
            if number not in self._numbers:
                message = f"a class of number {number}"
                raise ValueError(message)
        return self._shared.setdefault(class_ids, class_ids)

    def _parse_objects(self, found: Mapping[str, Any], size: tuple[int, int]) -> Objects:
        for number in {*found["class_ids"]}:
            self._check((number,))
        points: Any = found.get("keypoints")
        if points is not None:
            points = np.array(points, np.float64).reshape(-1, self._num_points, 3)
        objects = Objects(
            boxes=np.array(found["boxes"], np.float64).reshape(-1, 4),
            class_ids=np.array(found["class_ids"], np.int64),
            crowd=np.array(found["crowd"], np.bool_),
            areas=np.array(found["areas"], np.float64),
            # Looked at, as those of any file: others may have written it.
            masks=tuple(clean_segmentation(each, size)[0] for each in found["masks"]),
            keypoints=points,
        )
        if not np.isfinite(objects.boxes).all():
            message = "a box that is not finite"
            raise ValueError(message)
        return objects


def format_table(places: Mapping[str, tuple[int, int, int, int]], texts: Iterable[bytes]) -> bytes:
    """Format the columns: shard, offset, size and CRC of files by name, and texts of images."""
    rows = sorted((name.encode("utf-8", "surrogateescape"), row) for name, row in places.items())
    numbers = np.array([row for _, row in rows], np.int64).reshape(-1, 4)
    every = list(texts)
    columns = [*numbers.T, _ends([name for name, _ in rows]), _ends(every)]
    whole = np.concatenate(columns).astype(np.int64).tobytes()
    return b"".join([whole, *(name for name, _ in rows), *every])


def _ends(texts: Sequence[bytes]) -> NDArray[np.int64]:
    return np.cumsum([len(text) for text in texts], dtype=np.int64)


def parse_head(data: bytes, where: str) -> Head:
    """Parse and check ``index.json``."""
    with reading(where, _ADVICE, DataError):
        values = parse_json(data)
        if not isinstance(values, dict) or (values.get("format"), values.get("version")) != (
            FORMAT,
            1,
        ):
            found = values.get("version") if isinstance(values, dict) else None
            message = f"an index of format {FORMAT!r}, version {found!r}, where version 1 is read"
            raise ValueError(message)
        head = from_dict(Head, values, where=where)
        if head.classes.names:
            check_classes(head.classes)
        named = [*head.shards, *([head.table.shard] if head.table else [])]
        odd = [one.name for one in named if {*"/\\"} & {*one.name} or one.name in ("", ".", "..")]
        counts = [head.num_files, *(count for _, count in head.sets), *(one.size for one in named)]
        if odd or head.table is None or min(counts) < 0:
            message = f"shards and a table beside it, and no counts below 0, got {odd or counts}"
            raise ValueError(message)
        parts = dict(head.sets)
        if not parts or len(parts) < len(head.sets) or not {*parts} <= {*PARTS}:
            message = f"sets that are each one of {', '.join(PARTS)}, got {head.sets}"
            raise ValueError(message)
    return head
