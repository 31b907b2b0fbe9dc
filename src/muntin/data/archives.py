# SPDX-License-Identifier: Apache-2.0
"""Files in a folder, a zip or a tar, read alike; nothing is ever extracted to disk.

`list_files` looks at a source afresh; `read_bytes` reuses what is open. A zip keeps one handle per
process, because a forked worker would share the file position with its parent. A plain tar is an
index of offsets and the file is opened for each read. A compressed tar has no random access, so
its images are held in memory, once for all forked workers.
"""

from __future__ import annotations

import os
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from muntin.errors import DataError, first_line

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Names of files that are read as archives, in lower case."""

_MAX_OPEN = 8
_MAX_MEMORY = 4 * 2**30  # bytes of a compressed tar, unpacked


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
        return self.file.read(path)


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
        with Path(self.source).open("rb") as file:
            file.seek(offset)
            data = file.read(length)
        if len(data) < length:
            message = f"{length} bytes wanted, {len(data)} there"
            raise EOFError(message)
        return data


# Plain dictionary operations only, no lock: a lock that is held while the process forks would
# never be released in the child.
_opened: dict[str, _Zip | _Tar] = {}

_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    EOFError,
    OSError,  # includes a bad gzip or bz2 stream
    RuntimeError,  # an encrypted zip
    NotImplementedError,  # a zip compressed in a way that Python cannot read
    ValueError,
    zlib.error,
)


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
    if not Path(source).exists():
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
    archive = _opened.get(source)
    if archive is None and (not is_archive(source) or Path(source).is_dir()):
        try:
            return Path(source, path).read_bytes()
        except OSError as error:
            message = f"Cannot read {path!r} in {source!r}: {error.strerror}. Check the data set."
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


def _walk(source: str) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    seen: set[str] = set()
    for here, names_of_folders, names_of_files in os.walk(source, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up
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


def _open(source: str) -> _Zip | _Tar:
    try:
        if source.lower().endswith(".zip"):
            archive: _Zip | _Tar = _Zip(file=zipfile.ZipFile(source), pid=os.getpid())
        else:
            archive = _open_tar(source)
    except _BROKEN as error:
        why = first_line(error).rstrip(":.")
        message = (
            f"The archive {source!r} is broken or not an archive: {why}. "
            f"Fetch it again (was the download cut off?), or use an unpacked folder."
        )
        raise DataError(message) from error
    while len(_opened) >= _MAX_OPEN:
        _opened.pop(next(iter(_opened)), None)
    _opened[source] = archive
    return archive


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
    with tarfile.open(source, "r:*") as tar:
        for member in tar:
            members.append(member)
            file = tar.extractfile(member) if member.isreg() else None
            if file is None:
                continue
            total += member.size
            if total > _MAX_MEMORY:
                message = f"more than {_MAX_MEMORY >> 30} GiB unpacked, too much to hold in memory"
                raise ValueError(message)
            contents[_clean(member.name)] = file.read()
    return members


def _clean(name: str) -> str:
    """Drop the "./" that tar puts in front of everything when asked to pack "."."""
    return "" if name == "." else name.removeprefix("./")
