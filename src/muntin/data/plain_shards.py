# SPDX-License-Identifier: Apache-2.0
"""Tar shards in webdataset's layout that others wrote: the members of a sample have one key.

``0001.jpg`` and ``0001.cls`` are a sample: the key ends at the first dot. The class is the text or
number in ``.cls``, or the field label, class, class_name or category of ``.json``. Headers are read
once, and become the same index that packing writes; shards on the disk are skipped through, those
behind an address are read whole, for a checksum of each member.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from muntin.data.image_formats import is_image
from muntin.data.shard_index import UNKNOWN, Head, Place, Shard, format_entry, format_table
from muntin.data.trees import PARTS, part_in
from muntin.errors import DataError, MuntinError, first_line, plural, shorten
from muntin.samples import Classes, Entry
from muntin.untrusted import PARSER_FAULTS, check_budget, parse_json

_FIELDS = ("label", "class", "class_name", "category", "cls")
_LONGEST_LABEL = 2**20  # bytes of an annotation
_BLOCK = 2**22  # bytes that are read at once from an address
_GZIP = b"\x1f\x8b"

Read = Callable[[Place], bytes]


class _Stream(io.RawIOBase):
    """A shard as a file."""

    def __init__(self, shard: Shard, read: Read) -> None:
        self.shard, self.fetch, self.place = shard, read, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.shard.size)[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 (any writable buffer)
        size = max(0, min(len(buffer), self.shard.size - self.place))
        part = replace(self.shard, digest="")  # not into the cache
        data = self.fetch(Place(shard=part, offset=self.place, size=size)) if size else b""
        buffer[:size] = data
        self.place += size
        return size


@dataclass(kw_only=True, slots=True)
class _Sample:
    image: str = ""
    label: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    name: str
    place: tuple[int, int, int]  # offset, size, CRC
    label: bytes | None


def scan(shards: Sequence[Shard], read: Read, source: str, *, is_local: bool) -> tuple[Head, bytes]:
    """Read the headers of shards, in the order of their names; give the head and the table.

    Raises:
        DataError: A shard is no plain tar, or holds a link, a name twice or nothing of use.
    """
    places: dict[str, tuple[int, int, int, int]] = {}
    samples: dict[str, dict[str, _Sample]] = {}
    ordered = sorted(shards, key=lambda shard: shard.name)
    for number, shard in enumerate(ordered):
        found = samples.setdefault(part_in(shard.name) or "train", {})
        where = f"the shard {shard.name!r} of {source!r}"
        for member in _read_members(shard, read, where, is_local):
            name = f"{shard.name}/{member.name}"
            folder, _, last = name.rpartition("/")
            key, _, ending = last.partition(".")
            sample = found.setdefault(f"{folder}/{key}", _Sample())
            if member.label is not None:
                sample.label = _parse_label(ending.lower(), member.label) or sample.label
            if not is_image(last):
                continue
            if name in places:
                message = f"Members of {where} must have names of their own, got {last!r} twice."
                raise DataError(message)
            places[name] = (number, *member.place)
            if not sample.image or "." not in ending:  # 1.jpg rather than 1.mask.png
                sample.image = name
    classes, sets = _number(samples, source)
    head = Head(
        task="others",
        holds="classes" if classes.names else "images",
        classes=classes,
        sets=tuple((part, len(found)) for part, found in sets.items()),
        num_files=len(places),
        # What tells versions apart is a name in the cache.
        shards=tuple(
            replace(one, digest=hashlib.sha256(f"{source} {one}".encode()).hexdigest())
            for one in ordered
        ),
        note=f"{plural(len(shards), 'shard')} in webdataset's layout",
    )
    every = (entry for found in sets.values() for entry in found)
    return head, format_table(places, (json.dumps(format_entry(one)).encode() for one in every))


def _read_members(shard: Shard, read: Read, where: str, is_local: bool) -> Iterator[_Part]:
    size = io.DEFAULT_BUFFER_SIZE if is_local else _BLOCK
    with io.BufferedReader(_Stream(shard, read), size) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # else it keeps millions
                    if not member.isdir():
                        yield _look(member, file, shard, is_local)
                file.seek(tar.offset)
                if file.read(512).strip(b"\0"):  # the library ends there without a word
                    message = f"no header at byte {tar.offset}"
                    raise ValueError(message)
        except MuntinError:
            raise
        except (*PARSER_FAULTS, tarfile.TarError) as error:
            file.seek(0)
            packed = file.read(2) == _GZIP
            what = "a compressed one: unpack it" if packed else first_line(error).rstrip(".:")
            message = f"{where} must be a plain tar that is whole, got {what}. Mend or remove it."
            raise DataError(message[0].upper() + message[1:]) from error


def _look(member: tarfile.TarInfo, file: io.BufferedIOBase, shard: Shard, is_local: bool) -> _Part:
    name = member.name.removeprefix("./")
    odd = not member.isreg() or member.issparse() or ".." in name.split("/")
    if odd or member.offset_data + member.size > shard.size:
        message = f"{name!r}, which is a link, a device, outside, or longer than the shard"
        raise ValueError(message)
    is_label = name.lower().endswith((".cls", ".json"))
    crc, data = UNKNOWN, b""
    if is_label or not is_local:
        check_budget(member.size, repr(name))
        file.seek(member.offset_data)
        data = file.read(member.size)
        crc = zlib.crc32(data)
    return _Part(
        name=name,
        place=(member.offset_data, member.size, crc),
        label=data if is_label and len(data) <= _LONGEST_LABEL else None,
    )


def _parse_label(ending: str, data: bytes) -> str | None:
    """The class that a ``.cls`` or ``.json`` names; None if none."""
    try:
        value: Any = parse_json(data) if ending == "json" else data.decode().strip()
    except ValueError:
        return None
    if isinstance(value, dict):
        value = next((value[name] for name in _FIELDS if name in value), None)
    is_class = isinstance(value, str | int) and not isinstance(value, bool)
    return str(value).strip() or None if is_class else None


def _number(
    samples: dict[str, dict[str, _Sample]], source: str
) -> tuple[Classes, dict[str, list[Entry]]]:
    """The classes, sorted, numbers by their value; and the images with their numbers."""
    sets = {
        part: [sample for sample in samples[part].values() if sample.image]
        for part in PARTS
        if part in samples
    }
    every = [sample for found in sets.values() for sample in found]
    labels = {sample.label for sample in every if sample.label is not None}
    unread = [sample.image for sample in every if sample.label is None]
    if not every or (labels and unread):
        got = f"none for {len(unread)}: {shorten(unread, limit=2)}" if every else "no image"
        message = (
            f"Shards must hold images (KEY.jpg) with one class each (KEY.cls, or {_FIELDS[0]} in "
            f"KEY.json), or none with any, got {got} in {source!r}. Correct them; a tar of class "
            f"folders is given alone."
        )
        raise DataError(message)
    numbers = all(label.isdecimal() for label in labels)
    names = sorted(labels, key=lambda label: (int(label) if numbers else 0, label))
    ids: dict[str | None, tuple[int, ...]] = {name: (n,) for n, name in enumerate(names)}
    entries = {
        part: [Entry(path=one.image, class_ids=ids.get(one.label, ())) for one in found]
        for part, found in sets.items()
        if found
    }
    if len(entries) == 1:
        entries = {"train": next(iter(entries.values()))}
    return Classes(names=tuple(names), multi_label=not names), entries
