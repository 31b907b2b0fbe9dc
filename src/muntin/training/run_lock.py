# SPDX-License-Identifier: Apache-2.0
"""One training at a time in a run folder."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from muntin.errors import RunError, cannot_write
from muntin.staging import PARTIAL

NAME = ".lock"

_held: set[int] = set()


def _let_go() -> None:
    """A forked process, such as a worker that reads images, holds none of its parent's locks."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(folder: Path, *, create: bool) -> Iterator[None]:
    """Keep other trainings out of a run folder, which is made if `create`, until the block ends.

    The system frees the lock of a process that ends in any way. Folders that were made and are
    still empty at the end are removed. Windows has no such locks, nor some network file systems.

    Raises:
        RunError: Another training has the folder, or nothing can be written there.
    """
    fresh = [each for each in (folder, *folder.parents) if not each.exists()] if create else []
    if sys.platform == "win32" or not (create or folder.is_dir()):
        yield  # what is wrong with the folder is said where it is read
        return
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = _take(folder)
    except BlockingIOError as error:
        message = (
            f"{folder} must have one training at a time, but another one is writing there. Wait "
            f"for its end, or choose another --out."
        )
        raise RunError(message) from error
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from error
    _held.add(descriptor)
    try:
        for part in folder.glob(f"{PARTIAL}*"):  # of a training that was killed
            part.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / NAME).unlink()
        _held.discard(descriptor)
        os.close(descriptor)
        with contextlib.suppress(OSError):  # the first that is not empty
            for each in fresh:
                each.rmdir()


def _take(folder: Path) -> int:
    import fcntl

    place = folder / NAME
    descriptor = os.open(place, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one before may end just now, and have removed the file that was opened here.
        free = os.path.samestat(os.stat(place), os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        free = False
    except OSError:  # no locks in this file system
        free = True
    if not free:
        os.close(descriptor)
        raise BlockingIOError
    return descriptor
