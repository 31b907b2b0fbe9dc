# SPDX-License-Identifier: Apache-2.0
"""Folders of results that are written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from muntin.errors import RunError, cannot_write


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
