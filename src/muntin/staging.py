# SPDX-License-Identifier: Apache-2.0
"""Files of results: written as a whole or not at all, never over an input or through a link."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from muntin.errors import MuntinError, RunError, cannot_write
from muntin.untrusted import open_regular

PARTIAL = ".muntin-partial-"
"""How the names of files begin that are being written."""


def cache_home() -> Path:
    """Give the folder of what is kept between calls, and may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muntin"


def format_json(values: Any, *, allow_nan: bool = False) -> str:  # noqa: ANN401 (whatever JSON can hold)
    """Format a JSON document, with characters of every language as themselves.

    A text that holds half of a pair of surrogates, which UTF-8 cannot, is escaped.
    """
    text = json.dumps(values, indent=2, allow_nan=allow_nan, ensure_ascii=False)
    if text.encode("utf-8", "ignore").decode() == text:
        return text
    return json.dumps(values, indent=2, allow_nan=allow_nan)


def list_json(texts: Iterable[str]) -> Iterator[str]:
    """Give the parts of a JSON list of documents that `format_json` has written."""
    start = "[\n"
    for text in texts:
        # Not by `splitlines`: texts may hold line breaks of Unicode, which JSON leaves as they are.
        yield start + "  " + text.replace("\n", "\n  ")
        start = ",\n"
    yield "[]\n" if start == "[\n" else "\n]\n"


def finite(values: Any) -> Any:  # noqa: ANN401
    """Copy values of JSON with null for what is no finite number, which JSON lacks."""
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a new file beside `path`, which takes its place if the block succeeds.

    Its name cannot be foreseen, it is created only where nothing is, and lies on the disk before
    it is renamed; a link at `path` is replaced, not followed.

    Raises:
        OSError: It cannot be written; an existing file is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{PARTIAL}{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield fresh
        sync(fresh)
        os.replace(fresh, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink()


@contextlib.contextmanager
def writing(place: object) -> Iterator[None]:
    """Make what the system refuses in the block a `RunError`, of a place that was to be written."""
    try:
        yield
    except OSError as error:
        raise RunError(cannot_write(place, error)) from error


def write_file(data: bytes, path: Path) -> Path:
    """Write a file as `replacing` does, and return its path; what fails is a RunError."""
    with writing(path), replacing(path) as fresh:
        fresh.write_bytes(data)
    return path


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    folder = path.is_dir()
    # Not every system can open folders, or tell of them.
    with contextlib.suppress(OSError) if folder else contextlib.nullcontext():
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def checksum(path: Path) -> str:
    """Give the SHA-256 of a file in hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def part_of(folder: Path, *names: str) -> Path:
    """Path of a part of a run folder that is about to be written, which no link may lead out of.

    Raises:
        RunError: With the link and what it leads to.
    """
    path = folder
    for name in names:
        path = path / name
        if path.is_symlink():
            message = (
                f"{path} must not be a link where results are written, but leads to "
                f"{os.readlink(path)}. Remove the link."
            )
            raise RunError(message)
    return path


def refuse_existing(
    places: Iterable[Path],
    inputs: Iterable[str | Path],
    *,
    option: str,
    force: bool | None,
    error: type[MuntinError] = RunError,
) -> None:
    """Refuse to write over an input, or, unless `force`, over any file.

    Raises:
        RunError: (or `error`) With the first file in question, and `option`, which led to it. It
            offers --force unless that is None.
    """
    given = {os.path.normcase(os.path.realpath(each)) for each in inputs if str(each)}
    for place in places:
        if not os.path.lexists(place):  # nor an input then; looking at links takes longer
            continue
        if os.path.normcase(os.path.realpath(place)) in given:
            message = f"{option} must not lead to an input, got {place}. Choose another name."
            raise error(message)
        if place.exists() and not force:
            message = f"{option} must not lead to existing files, got {place}. Choose another name"
            message += "." if force is None else ", or replace them with --force."
            raise error(message)


@contextlib.contextmanager
def staged(
    folder: Path,
    named: Path | None = None,
    *,
    inputs: Iterable[str | Path] = (),
    force: bool = True,
) -> Iterator[Path]:
    """Yield a temporary folder whose files move to their destination if the block succeeds.

    After any error, Ctrl-C included, nothing is left behind and existing files are unchanged. An
    error of the folder names it, or what was to be written to it. Inputs are never replaced, other
    files only with `force`.
    """
    fresh = not folder.exists()
    with writing(named or folder):  # before the work begins
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".muntin-", dir=folder))
    try:
        yield stage
        made = (path for path in stage.rglob("*") if path.is_file())
        places = (folder / path.relative_to(stage) for path in made)
        refuse_existing(places, inputs, option="--out", force=force)
        _move_files(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):  # keep it if it is not empty
                folder.rmdir()


def _move_files(stage: Path, folder: Path) -> None:
    """Move all files, the page last: it links to all others."""
    paths = [path for path in stage.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: (path.suffix == ".html", path)):
        place = folder / path.relative_to(stage)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
