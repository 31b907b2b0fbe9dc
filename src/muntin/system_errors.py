# SPDX-License-Identifier: Apache-2.0
"""Errors caused by the system or by a missing library, and folders that are written as a whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from muntin.errors import MissingExtra, RunError

# Error numbers for a full disk, and for a file where a folder is needed or vice versa.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRONG_KIND = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def cannot_write(path: object, error: Exception) -> str:
    """Format the message for a file that could not be written; the advice depends on the `errno`.

    Example:
        >>> cannot_write("a.png", OSError(errno.ENOSPC, "No space left on device"))
        'a.png could not be written (No space left on device). Free disk space.'
    """
    reason = getattr(error, "strerror", None) or str(error)
    # Libraries written in Rust raise their own exceptions, with the error number in the text.
    number = re.search(r"os error (\d+)", reason)
    code = int(number[1]) if number else getattr(error, "errno", None)
    if code in _FULL:
        advice = "Free disk space"
    elif code in _WRONG_KIND:
        advice = "A file is where a folder is needed, or vice versa; move it"
    else:
        advice = "Choose a writable location"
    return f"{path} could not be written ({reason}). {advice}."


def missing_extra(library: str, extra: str, purpose: str) -> MissingExtra:
    """Build the error for an optional library that is not installed."""
    message = (
        f"{purpose} needs {library}, which is not installed. Run: pip install 'muntin[{extra}]'"
    )
    return MissingExtra(message)


@contextlib.contextmanager
def staged(folder: Path, named: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder whose files move to their destination if the block succeeds.

    After any error, Ctrl-C included, nothing is left behind and existing files are unchanged. An
    error of the folder names it, or what was to be written to it.
    """
    fresh = not folder.exists()
    try:  # before the work begins
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".muntin-", dir=folder))
    except OSError as error:
        raise RunError(cannot_write(named or folder, error)) from error
    try:
        yield stage
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
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        except OSError as error:
            raise RunError(cannot_write(place, error)) from error
