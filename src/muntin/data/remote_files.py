# SPDX-License-Identifier: Apache-2.0
"""Files behind an address, read in ranges through fsspec, with tries and a bounded local cache.

A cached shard is a sparse file of the name of its digest, in which the ranges that were read lie in
their places. No list says which: what is read is compared with its checksum, and fetched again
where it differs. So processes share the cache without locks, and one that is killed leaves nothing
wrong. Where it would grow too large, the shards that were not written to for longest are removed.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from muntin.data.shard_addresses import redact
from muntin.data.shard_index import UNKNOWN, Place, Shard
from muntin.errors import ShardError, first_line, missing_extra
from muntin.staging import cache_home
from muntin.untrusted import amount_of, open_regular

CACHE_VARIABLE, SIZE_VARIABLE = "MUNTIN_SHARD_CACHE", "MUNTIN_SHARD_CACHE_SIZE"
DEFAULT_SIZE = 20 * 2**30
"""Bytes of the cache."""

TRIES = 6
_FIRST_WAIT = 0.2  # seconds, then twice as long each time
_TIMEOUT = 60.0  # seconds for one range
_CHECKS = 64  # how often the cache is looked at while it grows to its size

ResultT = TypeVar("ResultT")

# By words: the libraries of several clouds are behind fsspec.
_FINAL = re.compile(r"NotFound|NoSuch|Gated|NoCredentials|Unauthorized|Forbidden|InvalidAccess")
_DENIED = re.compile(r"credential|token|forbidden|denied|unauthori[sz]ed|\b40[13]\b", re.IGNORECASE)
_ASKED = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true if it is public",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon if it is public",
    "hf": "HF_TOKEN",
}
# Passwords may be in ~/.netrc; what fails is tried again here, and not in every layer below.
_WEB: dict[str, Any] = {"client_kwargs": {"trust_env": True}}
_OPTIONS: dict[str, dict[str, Any]] = {
    "http": _WEB,
    "https": _WEB,
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}},
}


def cache_folder() -> Path:
    """Give the folder of the cache; it may be deleted at any time."""
    return Path(os.environ.get(CACHE_VARIABLE) or cache_home() / "shards")


class RemoteFiles:
    """The files below an address."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.cache = ShardCache(cache_folder(), amount_of(SIZE_VARIABLE, DEFAULT_SIZE))
        self._systems: dict[int, Any] = {}

    def read(self, place: Place, where: str) -> bytes:
        """Read a part of a file, and compare its checksum; `where` names both, for messages."""
        data = self.cache.read(place)
        if data is None:
            data = self._try(where, lambda: self._fetch_checked(place))
            self.cache.keep(place, data)
        return data

    def read_whole(self, name: str) -> bytes | None:
        """Read a file; None if it is not there."""

        def fetch() -> bytes | None:
            with contextlib.suppress(FileNotFoundError):
                return self._fetch(name)
            return None

        return self._try(f"{name!r} of {self.root!r}", fetch)

    def look(self, names: Sequence[str]) -> list[Shard]:
        """Look at files, or without names at all tars; the digest is that of a version."""

        def look() -> list[Shard]:
            system = self._system()
            every = names or [
                str(path).rstrip("/").rpartition("/")[2]
                for path in system.ls(self.root, detail=False)
            ]
            found = []
            for name in sorted(name for name in every if names or name.endswith(".tar")):
                info = system.info(f"{self.root}/{name}")
                version = next((info[k] for k in ("ETag", "etag", "mtime") if k in info), "")
                found.append(Shard(name=name, size=int(info["size"]), digest=str(version)))
            return found

        return self._try(f"the shards of {self.root!r}", look)

    def _system(self) -> Any:  # noqa: ANN401 (fsspec has no types)
        """The file system of this process: forks must not share its connections."""
        system = self._systems.get(os.getpid())
        if system is None:
            try:
                import fsspec
            except ImportError as error:
                library, purpose = "fsspec", f"reading {self.root}"
                raise missing_extra(library, "cloud", purpose) from error
            protocol = self.root.partition("://")[0]
            system = fsspec.filesystem(protocol, **_OPTIONS.get(protocol, {}))
            if hasattr(system, "retries"):
                system.retries = 1
            self._systems[os.getpid()] = system
        return system

    def _fetch(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        system, path = self._system(), f"{self.root}/{name}"
        if not getattr(system, "async_impl", False):
            return bytes(system.cat_file(path, start=start, end=end))
        from fsspec.asyn import sync

        path = system._strip_protocol(path)
        timeout = None if start is None else _TIMEOUT
        data = sync(system.loop, system._cat_file, path, start=start, end=end, timeout=timeout)
        return bytes(data)

    def _fetch_checked(self, place: Place) -> bytes:
        data = self._fetch(place.shard.name, place.offset, place.offset + place.size)
        if len(data) > place.size:
            message = (
                f"{self.root!r} must answer requests for ranges, got {len(data)} bytes in place of "
                f"{place.size}. Use another server, or copy the data set."
            )
            raise ShardError(message)
        if len(data) < place.size:
            message = f"{len(data)} of {place.size} bytes came"
            raise OSError(message)
        if place.crc != UNKNOWN and zlib.crc32(data) != place.crc:
            message = "its checksum is not that of the index"
            raise OSError(message)
        return data

    def _try(self, where: str, action: Callable[[], ResultT]) -> ResultT:
        """Try an action several times, waiting longer each time."""
        for number in range(1, TRIES + 1):
            try:
                return action()
            except ShardError:
                raise
            except Exception as error:  # of any library behind fsspec
                final = isinstance(error, FileNotFoundError | PermissionError | ImportError)
                final = final or _FINAL.search(type(error).__name__) is not None
                if final or number == TRIES:
                    raise ShardError(self._explain(where, error, number)) from error
            time.sleep(_FIRST_WAIT * 2 ** (number - 1) * random.uniform(0.5, 1))
        raise AssertionError

    def _explain(self, where: str, error: Exception, tries: int) -> str:
        kind = type(error).__name__
        reason = redact(first_line(error)).rstrip(". ") or kind
        advice = "Is the address right, and the server up? Then start again, or resume."
        if isinstance(error, PermissionError) or _DENIED.search(f"{kind} {reason}"):
            protocol = self.root.partition("://")[0]
            asked = _ASKED.get(protocol, "what fsspec reads (FSSPEC_...) or ~/.netrc")
            advice = f"Are credentials missing? Set {asked}."
        elif isinstance(error, FileNotFoundError):
            reason = f"it is not there ({reason})"
            advice = "Copy the data set again, or correct the address."
        elif isinstance(error, ImportError):
            advice = "Run: pip install 'muntin[cloud]'"
        count = "once" if tries == 1 else f"{tries} times"
        return f"{where} cannot be read, tried {count}: {reason}. {advice}"


class ShardCache:
    """Ranges of shards on the disk; together at most `size` bytes, and 1/64 for each process."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self._written = size  # so that the first write looks at what others left

    def read(self, place: Place) -> bytes | None:
        """Give what was kept, if it is whole."""
        if not place.shard.digest or place.crc == UNKNOWN:
            return None
        with contextlib.suppress(OSError, ValueError):
            with open_regular(self.folder / place.shard.digest) as file:
                data = os.pread(file.fileno(), place.size, place.offset)
            if len(data) == place.size and zlib.crc32(data) == place.crc:
                return data
        return None

    def keep(self, place: Place, data: bytes) -> None:
        """Keep a range, where there is room on the disk."""
        if not place.shard.digest or place.crc == UNKNOWN or len(data) > self.size:
            return
        with contextlib.suppress(OSError):
            self._make_room(len(data))
            flags = os.O_CREAT | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self.folder / place.shard.digest, flags, 0o600)
            try:
                os.pwrite(descriptor, data, place.offset)
            finally:
                os.close(descriptor)

    def _make_room(self, num_bytes: int) -> None:
        """Remove what was not written to for longest, if there is too much."""
        self._written += num_bytes
        if self._written < self.size / _CHECKS:
            return
        self._written = 0
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.scandir(self.folder) as found:
            files = [(one.stat(follow_symlinks=False), one.path) for one in found if one.is_file()]
        total = num_bytes + sum(512 * info.st_blocks for info, _ in files)
        for info, path in sorted(files, key=lambda each: each[0].st_mtime_ns):
            if total <= self.size:
                break
            with contextlib.suppress(OSError):  # another process was quicker
                os.unlink(path)
            total -= 512 * info.st_blocks
