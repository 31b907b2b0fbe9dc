# SPDX-License-Identifier: Apache-2.0
"""Files in a folder, a zip, a tar or many, read alike; nothing is ever extracted to disk.

`list_files` looks at a source afresh; `read_bytes` reuses what is open. A zip keeps one handle per
process, because a forked worker would share the file position with its parent. A plain tar is an
index of offsets and the file is opened for each read. A compressed tar has no random access, so
its images are held in memory, once for all forked workers.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from muntin.errors import DataError, first_line
from muntin.lazy import resolve_method
from muntin.untrusted import PARSER_FAULTS, check_budget, open_regular, read_regular

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Names of files that are read as archives, in lower case."""

LOCAL = "file://"
"""How the source of packed data on the disk begins: that of any is an address."""

_MAX_OPEN = 8
_UNPACK: Mapping[bytes, Callable[[str], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


# Shards need more of the package than folders and archives do.
_open_shards = resolve_method("muntin.data.shards", "open_shards")


@runtime_checkable
class _Archive(Protocol):
    """An open source; `names` are files and folders, `stamp` size and time of change in ns."""

    @property
    def pid(self) -> int: ...
    @property
    def names(self) -> tuple[list[str], list[str]]: ...
    def read(self, path: str) -> bytes: ...
    def stamp(self, path: str) -> tuple[int, int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Zip:
    file: zipfile.ZipFile
    pid: int

    @property
    def names(self) -> tuple[list[str], list[str]]:
        every = self.file.namelist()
        files = [name for name in every if not name.endswith("/")]
        return files, [name.rstrip("/") for name in every if name.endswith("/")]

    def read(self, path: str) -> bytes:
        # Of a member that says less than it unpacks to, only that much is read.
        check_budget(self.file.getinfo(path).file_size, f"{path!r}")
        return self.file.read(path)

    def stamp(self, path: str) -> tuple[int, int]:
        return self.file.getinfo(path).file_size, os.stat(str(self.file.filename)).st_mtime_ns


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tar:
    source: str
    contents: Mapping[str, bytes | tuple[int, int]]  # in memory, or offset and length
    folders: tuple[str, ...]
    pid: int = 0

    @property
    def names(self) -> tuple[list[str], list[str]]:
        return list(self.contents), list(self.folders)

    def read(self, path: str) -> bytes:
        content = self.contents[path]
        if isinstance(content, bytes):
            return content
        offset, length = content
        with open_regular(self.source) as file:
            file.seek(offset)
            data = file.read(min(length, os.fstat(file.fileno()).st_size))
        if len(data) < length:
            message = f"{length} bytes wanted, {len(data)} there"
            raise EOFError(message)
        return data

    def stamp(self, path: str) -> tuple[int, int]:
        content = self.contents[path]
        size = len(content) if isinstance(content, bytes) else content[1]
        return size, os.stat(self.source).st_mtime_ns


_last = threading.local()
_SYSTEM = ("/proc/", "/sys/", "/dev/")
# Plain dictionary operations only, no lock: a lock that is held while the process forks would
# never be released in the child.
_opened: dict[str, _Archive] = {}

_BROKEN = (*PARSER_FAULTS, tarfile.TarError)


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of a zip or a tar. The file is not looked at."""
    return os.fspath(path).lower().endswith(ARCHIVE_SUFFIXES)


def list_files(source: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Name the files and the folders in a folder or an archive, sorted, relative, with slashes.

    Links to folders are followed, once each.
    """
    source = os.fspath(source)
    if Path(source).is_dir():
        return _walk(source)
    if not is_packed(source) and not Path(source).exists():
        message = (
            f"There must be a folder or an archive at {source!r}, found nothing. Check the path."
        )
        raise DataError(message)
    _opened.pop(source, None)
    files, named = _open(source).names
    folders = set(named)
    for name in (*files, *named):
        head = name.rpartition("/")[0]
        while head and head not in folders:
            folders.add(head)
            head = head.rpartition("/")[0]
    return sorted(files), sorted(folders - {""})


def read_bytes(source: str, path: str) -> bytes:
    """Read one file of a folder, a zip or a tar, as `list_files` names it.

    Safe in threads and in forked or spawned workers. For a folder, any path will do.
    """
    _last.place = Path(source, path)
    archive = _opened.get(source)
    if archive is None and _is_folder(source):
        try:
            return read_regular(Path(source, path))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            message = f"Cannot read {path!r} in {source!r}: {reason}. Check the data set."
            raise DataError(message) from error
    if archive is None or archive.pid not in (0, os.getpid()):
        archive = _open(source)
    try:
        return archive.read(path)
    except KeyError as error:
        message = (
            f"There is no file {path!r} in {source!r}. Has the archive changed? List it again."
        )
        raise DataError(message) from error
    except _BROKEN as error:
        message = (
            f"{path!r} in the archive {source!r} cannot be read: {error}. "
            f"Fetch the archive again, or unpack it and use the folder."
        )
        raise DataError(message) from error


def stamp_of(source: str, path: str) -> tuple[int, int]:
    """Bytes of a file as `list_files` names it, and when it, or its archive, was changed, in ns."""
    if _is_folder(source):
        try:
            info = os.stat(Path(source, path))
        except OSError as error:
            message = f"Cannot read {path!r} in {source!r}: {error.strerror}. Check the data set."
            raise DataError(message) from error
        return info.st_size, info.st_mtime_ns
    return (_opened.get(source) or _open(source)).stamp(path)


def open_packed(source: str) -> Any:  # noqa: ANN401 (a `Shards`, of which this module knows nothing)
    """Open a packed data set afresh, to be listed and then read."""
    _opened.pop(source, None)
    return _open(source)


def is_packed(source: str) -> bool:
    """Whether the source of a listing is a packed data set."""
    return "://" in source


def path_of(source: str) -> Path:
    """Give the path below which images of a packed data set are named."""
    return Path(source.removeprefix(LOCAL))


def read_packed(path: str | os.PathLike[str]) -> bytes | None:
    """Read a file below an open packed data set, ``OUT/cats/1.jpg``; None for any other path."""
    text = Path(path).as_posix()
    for source in filter(is_packed, [*_opened]):
        start = f"{path_of(source).as_posix()}/"
        if text.startswith(start):
            return read_bytes(source, text.removeprefix(start))
    return None


def _is_folder(source: str) -> bool:
    return not is_packed(source) and (not is_archive(source) or Path(source).is_dir())


def last_read() -> str:
    """The file that this thread read last, for the message of a parser that does not know it."""
    return str(getattr(_last, "place", ""))


def _refuse_system(source: str) -> None:
    """Refuse the whole disk, and folders whose files are made by the system and never end."""
    real = os.path.realpath(source)
    if real == os.path.abspath(os.sep) or f"{real}{os.sep}".startswith(_SYSTEM):
        message = (
            f"A data set must be a folder of its own, got {source!r}, which is "
            f"{real if real in source else f'a link to {real}'} of the system. Check the path."
        )
        raise DataError(message)


def _walk(source: str) -> tuple[list[str], list[str]]:
    _refuse_system(source)
    files: list[str] = []
    folders: list[str] = []
    seen: set[str] = set()
    for here, names_of_folders, names_of_files in os.walk(source, followlinks=True):
        real = os.path.realpath(here)
        # A link that leads back up, or out of all data.
        if real in seen or (here != source and f"{real}{os.sep}".startswith(_SYSTEM)):
            names_of_folders.clear()
            continue
        seen.add(real)
        # A folder that is also linked to is listed under the name that somebody chose for it.
        names_of_folders.sort(key=lambda name: (not Path(here, name).is_symlink(), name))
        inside = os.path.relpath(here, source).replace(os.sep, "/")
        prefix = "" if inside == "." else inside + "/"
        files.extend(prefix + name for name in names_of_files)
        folders.extend(prefix + name for name in names_of_folders)
    return sorted(files), sorted(folders)


def _open(source: str) -> _Archive:
    archive: _Archive = _open_shards(source) if is_packed(source) else _open_file(source)
    while len(_opened) >= _MAX_OPEN:
        _opened.pop(next(iter(_opened)), None)
    _opened[source] = archive
    return archive


def _open_file(source: str) -> _Archive:
    try:
        open_regular(source).close()
        if source.lower().endswith(".zip"):
            return _Zip(file=zipfile.ZipFile(source), pid=os.getpid())
        return _open_tar(source)
    except _BROKEN as error:
        why = first_line(error).rstrip(":.")
        message = (
            f"The archive {source!r} is broken or not an archive: {why}. "
            f"Fetch it again (was the download cut off?), or use an unpacked folder."
        )
        raise DataError(message) from error


def _open_tar(source: str) -> _Tar:
    contents: dict[str, bytes | tuple[int, int]] = {}
    try:
        with tarfile.open(source, "r:") as tar:
            members = tar.getmembers()
    except tarfile.ReadError:  # compressed, or broken: then this raises too
        members = _unpack(source, contents)
    else:
        for member in members:
            if member.isreg() and not member.issparse():
                contents[_clean(member.name)] = member.offset_data, member.size
    folders = tuple(_clean(member.name) for member in members if member.isdir())
    return _Tar(source=source, contents=contents, folders=folders)


def _unpack(source: str, contents: dict[str, bytes | tuple[int, int]]) -> list[tarfile.TarInfo]:
    """Read a compressed tar, whole, into `contents`."""
    members = []
    total = 0
    with _Unpacked(source) as stream, tarfile.open(fileobj=stream, mode="r|", bufsize=2**20) as tar:
        for member in tar:
            members.append(member)
            total += member.size
            check_budget(total, "what it unpacks to")
            file = tar.extractfile(member) if member.isreg() else None
            if file is not None:
                contents[_clean(member.name)] = file.read()
    return members


class _Unpacked(io.RawIOBase):
    """Bytes of a compressed file, of which no more than the budget are unpacked."""

    def __init__(self, source: str) -> None:
        with open_regular(source) as file:
            head = file.read(6)
        unpack = next((unpack for start, unpack in _UNPACK.items() if head.startswith(start)), None)
        if unpack is None:
            message = "neither a tar nor one compressed by gzip, bzip2 or xz"
            raise ValueError(message)
        self._inner, self._total = unpack(source), 0

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._inner.read(size)
        self._total += len(data)
        check_budget(self._total, "what it unpacks to")
        return data

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def _clean(name: str) -> str:
    """Drop the "./" that tar puts in front of everything when asked to pack "."."""
    return "" if name == "." else name.removeprefix("./")
