# SPDX-License-Identifier: Apache-2.0
"""Packed data sets, on the disk or behind an address, opened as an archive of many tars is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from muntin.configs import to_dict
from muntin.data.archives import LOCAL
from muntin.data.plain_shards import scan
from muntin.data.remote_files import RemoteFiles, cache_folder
from muntin.data.shard_addresses import INDEX, split_address
from muntin.data.shard_index import UNKNOWN, Head, Place, Shard, ShardIndex, parse_head
from muntin.errors import DataError, ShardError
from muntin.staging import format_json, write_file
from muntin.untrusted import open_regular, read_regular, reading

_MAX_OPEN = 64


class _OpenShard:
    """An open file, which is closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            self.descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.descriptor)


class _LocalFiles:
    """The files of a folder, as `RemoteFiles`; the digest of one is when it was changed.

    Shards stay open, and are read in places: forks share no position.
    """

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._open: dict[str, _OpenShard] = {}

    def read(self, place: Place, where: str) -> bytes:
        name = place.shard.name
        try:
            file = self._open.get(name)
            if file is None:
                while len(self._open) >= _MAX_OPEN:
                    self._open.pop(next(iter(self._open)), None)
                file = self._open[name] = _OpenShard(self.root / name)
            data = os.pread(file.descriptor, place.size, place.offset)
        except (OSError, ValueError) as error:
            message = f"{where} cannot be read: {getattr(error, 'strerror', None) or error}. "
            raise ShardError(message + "Copy this shard again.") from error
        if len(data) < place.size or (place.crc != UNKNOWN and zlib.crc32(data) != place.crc):
            what = f"{len(data)} of {place.size} bytes are there"
            what = what if len(data) < place.size else "its checksum is not that of the index"
            message = f"{where} cannot be read: {what}. Copy this shard again, or pack it again."
            raise ShardError(message)
        return data

    def read_whole(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_regular(self.root / name)
        return None

    def look(self, names: Sequence[str]) -> list[Shard]:
        found = []
        try:
            names = names or sorted(n for n in os.listdir(self.root) if n.endswith(".tar"))
            for name in names:
                info = os.stat(self.root / name)
                found.append(Shard(name=name, size=info.st_size, digest=str(info.st_mtime_ns)))
        except OSError as error:
            message = f"There must be a shard at {error.filename!r}: {error.strerror}. Copy it."
            raise ShardError(message) from error
        return found


Files = _LocalFiles | RemoteFiles


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shards:
    """An open packed data set; `pid` is 0, as any process may use it."""

    source: str
    index: ShardIndex
    files: Files
    pid: int = 0

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Files, and no folders."""
        return self.index.list_names(), []

    def read(self, path: str) -> bytes:
        """Read a file by its name in the original data set; a KeyError tells that it has none."""
        place = self._find(path)
        return self.files.read(place, f"{path!r} in {place.shard.name!r} of {self.source!r}")

    def stamp(self, path: str) -> tuple[int, int]:
        """Bytes of a file, and no time."""
        return self._find(path).size, 0

    def _find(self, path: str) -> Place:
        place = self.index.find(path)
        if place is None:
            raise KeyError(path)
        return place


def open_shards(source: str) -> Shards:
    """Open a packed data set by its address.

    Raises:
        DataError: There is none, or its index is damaged.
        ShardError: It cannot be reached, or a shard on the disk is missing or torn.
    """
    root, names = split_address(source)
    is_local = root.startswith(LOCAL)
    files: Files = _LocalFiles(root.removeprefix(LOCAL)) if is_local else RemoteFiles(root)
    data = None if names else files.read_whole(INDEX)
    if data is not None:
        head = parse_head(data, f"{INDEX!r} of {source!r}")
        index = _open_table(files, head, source)
        if is_local:
            _refuse_torn(files.look([shard.name for shard in head.shards]), head, source)
        return Shards(source=source, index=index, files=files)
    found = files.look(names)
    if not found:
        message = f"There must be {INDEX} or tar shards at {source!r}, found neither. Check it."
        raise DataError(message)
    return Shards(source=source, index=_scan_once(files, found, source), files=files)


def _open_table(files: Files, head: Head, source: str) -> ShardIndex:
    assert head.table is not None, "asked when the head was parsed"
    where = f"{head.table.shard.name!r} of {source!r}, which {INDEX} names,"
    data = files.read(head.table, where)
    with reading(where, "Copy the data set again, or pack it again.", DataError):
        return ShardIndex(head, data)


def _refuse_torn(there: Sequence[Shard], head: Head, source: str) -> None:
    for one, shard in zip(there, head.shards, strict=True):
        if one.size != shard.size:
            message = (
                f"The shard {one.name!r} of {source!r} must have the {shard.size} bytes that "
                f"{INDEX} tells, got {one.size}. Copy it again, or pack it again."
            )
            raise ShardError(message)


def _scan_once(files: Files, found: Sequence[Shard], source: str) -> ShardIndex:
    """The index of shards that others wrote: made once, and kept in the cache."""
    key = hashlib.sha256(repr((source, sorted(found, key=str))).encode()).hexdigest()
    folder = cache_folder()
    kept = _LocalFiles(str(folder))
    with contextlib.suppress(OSError, DataError, ShardError):
        head = parse_head(read_regular(folder / f"{key}.json"), key)
        return _open_table(kept, head, source)
    is_local = isinstance(files, _LocalFiles)
    head, table = scan(found, lambda place: files.read(place, source), source, is_local=is_local)
    with contextlib.suppress(OSError, ShardError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_index(head, table, folder, (f"{key}.json", f"{key}.bin"))
    return ShardIndex(head, table)


def write_index(head: Head, table: bytes, folder: Path, names: tuple[str, str]) -> Head:
    """Write the table and then the head, to files of these names; give the head as written."""
    digest, crc = hashlib.sha256(table).hexdigest(), zlib.crc32(table)
    shard = Shard(name=names[1], size=len(table), digest=digest)
    whole = replace(head, table=Place(shard=shard, offset=0, size=len(table), crc=crc))
    write_file(table, folder / names[1])
    values = to_dict(whole) | {"shards": [to_dict(each) for each in whole.shards]}
    write_file(format_json(values).encode(), folder / names[0])
    return whole
