# SPDX-License-Identifier: Apache-2.0
"""Files of results: written as a whole or not at all, and never over an input."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from muntin.errors import MuntinError, RunError, cannot_write


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
    try:  # before the work begins
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".muntin-", dir=folder))
    except OSError as error:
        raise RunError(cannot_write(named or folder, error)) from error
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
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        except OSError as error:
            raise RunError(cannot_write(place, error)) from error
