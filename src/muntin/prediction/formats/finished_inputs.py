# SPDX-License-Identifier: Apache-2.0
"""What a folder of results says of the inputs that it has results of, and of what made them.

Tables of images are made of a journal of their answers. Every input is noted in a file of its own,
as videos and drawings have no answers there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from muntin.errors import RunError
from muntin.prediction.formats.items import Answer
from muntin.staging import PARTIAL, finite, replacing, writing
from muntin.untrusted import open_regular, parse_json, reading

JOURNAL = ".muntin-results.jsonl"
FINISHED = ".muntin-finished.jsonl"
_OF_VIDEOS = ("track", "smooth", "max_time_s")

About = Mapping[str, Any]
"""What answers depend on beside the input, by name: the run, its weights, options."""


class Finished(NamedTuple):
    """What made the results of an input, and whether they are whole."""

    about: About
    whole: bool


def about_images(about: About) -> dict[str, Any]:
    """Leave out what only videos depend on."""
    return {name: value for name, value in about.items() if name not in _OF_VIDEOS}


def format_line(values: Mapping[str, Any]) -> str:
    """Format a line of a journal."""
    return json.dumps(finite(values)) + "\n"


def refuse_other(about: About, before: About, where: object) -> None:
    """Refuse to go on with results that something else made.

    Raises:
        RunError: With each option that differs, now and before.
    """
    now = json.loads(format_line(about))
    if differing := _list_differing(now, before):
        texts = (f"{one} is {_show(now, one)}, there {_show(before, one)}" for one in differing)
        message = (
            f"--out must hold results of the same run and options, but those of {where} differ: "
            f"{'; '.join(texts)}. Give the same, choose another --out, or begin again with --force."
        )
        raise RunError(message)


def is_other(about: About, before: About) -> bool:
    """Whether results were made by something else."""
    return bool(_list_differing(json.loads(format_line(about)), before))


def _list_differing(now: About, before: About) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _show(values: About, name: str) -> str:
    text = json.dumps(values[name]) if name in values else "not noted"
    return text if len(text) <= 40 else f"{text[:20]}..."


def read_about(place: Path) -> About | None:
    """Read what made the answers of a journal, its first line; None where there is none."""
    return next(_read_lines(place), None)


def read_answers(place: Path) -> Iterator[Answer]:
    """Give the answers of a journal; none where there is none."""
    lines = _read_lines(place, lambda line: {"path", "size"} <= line.keys())
    next(lines, None)
    return lines


def _read_lines(
    place: Path, fits: Callable[[dict[str, Any]], bool] = lambda line: True
) -> Iterator[dict[str, Any]]:
    """Give the whole lines of a journal; those behind the first must fit."""
    if not place.exists():
        return
    with (
        reading(str(place), "Remove it, and begin again with --force.", RunError),
        open_regular(place) as file,
    ):
        for number, line in enumerate(file):
            if not line.endswith(b"\n"):  # the process ended while it was written
                return
            values = parse_json(line)
            if not isinstance(values, dict) or (number and not fits(values)):
                message = f"a line that is no answer, {line[:40]!r}"
                raise ValueError(message)
            yield values


def find_finished(folder: Path) -> dict[str, Finished]:
    """Find the inputs that are noted in a folder, by `spell`; a later note counts."""
    found: dict[str, Finished] = {}
    about: About = {}
    for line in _read_lines(folder / FINISHED, lambda line: "path" in line or "about" in line):
        if "path" in line:
            found[str(line["path"])] = Finished(about, line.get("whole") is True)
        elif isinstance(line.get("about"), dict):
            about = line["about"]
    return found


def spell(source: str) -> str:
    """Give the one spelling of a path, so that `a.png` and `./a.png` are one input."""
    return source if "://" in source else os.path.normcase(os.path.abspath(source))


class FinishedInputs:
    """Notes inputs while it is there; each note is on the disk when the call returns.

    Raises:
        RunError: The file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._place = folder / FINISHED
        self._about: About | None = None

    def note(self, source: str, about: About, *, whole: bool) -> None:
        """Note what makes the results of an input, and whether they are whole."""
        with writing(self._place):
            if self._about is None:
                self._rewrite()
            lines = "" if self._about == about else format_line({"about": about})
            with self._place.open("a", encoding="ascii") as file:
                file.write(lines + format_line({"path": spell(source), "whole": whole}))
        self._about = about

    def _rewrite(self) -> None:
        """Write the notes of before anew, without a line that was cut off."""
        before = find_finished(self._place.parent)
        with replacing(self._place) as fresh, fresh.open("w", encoding="ascii") as file:
            about: About | None = None
            for path, one in before.items():
                if one.about != about:
                    about = one.about
                    file.write(format_line({"about": about}))
                file.write(format_line({"path": path, "whole": one.whole}))


def remove_partial(folders: Iterable[Path]) -> None:
    """Remove what a process that was killed had begun to write."""
    for folder in folders:
        for path in (*folder.glob(f"{PARTIAL}*"), *folder.glob(".muntin-????????")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
