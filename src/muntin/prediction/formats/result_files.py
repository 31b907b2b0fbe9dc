# SPDX-License-Identifier: Apache-2.0
"""The files of a call: written as results come, whole at any time, continued by another call.

Answers go to a journal, a line each, from which tables are written at the end or when the call is
interrupted. It stays, so that a later call can go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from muntin.errors import ConfigError, RunError, cannot_write
from muntin.prediction.formats.format_table import Formats, ImageFiles, ImageFormat, TableFormat
from muntin.prediction.formats.items import Answer, FormatContext
from muntin.prediction.result_names import name_results
from muntin.staging import finite, refuse_existing, replacing, write_file
from muntin.untrusted import open_regular, parse_json, read_regular, reading

JOURNAL = ".muntin-results.jsonl"
_BUFFER = 2**24  # characters of answers in memory where there is no journal

Places = Mapping[str, Sequence[Path]]
"""The files of each table format, by its name."""


class AnswerList(ExitStack):
    """Answers in the order in which they came, on the disk where they are many.

    With a place they are added to the journal there, else they end with the context.
    """

    def __init__(self, place: Path | None = None) -> None:
        super().__init__()
        self._start = 0
        if place is None:
            file: Any = tempfile.SpooledTemporaryFile(_BUFFER, "w+", encoding="ascii")  # noqa: SIM115
        else:
            file = place.open("a+", encoding="ascii")
            file.seek(0)
            file.readline()  # what it is the journal of
            self._start = file.tell()
        self._file = self.enter_context(file)

    def add(self, answer: Answer) -> None:
        """Append an answer, which is in the file when this returns."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(_format_line(answer))
        self._file.flush()

    def rows(self) -> Iterator[Answer]:
        """Give all answers from the first one on."""
        self._file.seek(self._start)
        while line := self._file.readline():
            yield json.loads(line)

    def mark(self) -> int:
        """Return the current end, for `cut`."""
        end: int = self._file.seek(0, os.SEEK_END)
        return end

    def cut(self, mark: int) -> None:
        """Remove everything added after a mark."""
        self._file.seek(mark)
        self._file.truncate()


def _format_line(values: Mapping[str, Any]) -> str:
    return json.dumps(finite(values)) + "\n"


class FilePlan(NamedTuple):
    """Names of the results of each input, without endings; and the inputs that are done."""

    names: Mapping[str, str]
    done: frozenset[str]


def plan_files(
    formats: Formats,
    context: FormatContext,
    sources: tuple[Sequence[str], Sequence[str]],
    *,
    force: bool,
    resume: bool,
) -> FilePlan:
    """Name the results of images and of videos, the two `sources`, before any work.

    Raises:
        RunError: A file is an input, or exists and is not to be replaced.
    """
    folder, (images, videos) = context.folder, sources
    used = [one for one in formats.images if images or one.of_frames]
    of_image = [one.ending for one in used if one.ending] or [".png"]
    of_video = [".mp4"] * formats.draws + [one for t in formats.tables for one in t.of_video]
    endings = {**dict.fromkeys(images, of_image), **dict.fromkeys(videos, of_video or [".mp4"])}
    tables = [name for table in formats.tables for name in table.files if images]
    fixed = fixed_files(used, context)
    names = name_results(endings, [*tables, *fixed])
    places = {
        source: [place for one in used for place in one.places(folder, names[source], source)]
        for source in images
    }
    for video in videos:
        own = [folder / one.folder / names[video] for one in used]
        places[video] = [folder / f"{names[video]}{ending}" for ending in of_video] or own
    if tables and not (force or resume):
        _refuse_journal(folder / JOURNAL)
    changed = (name for name, text in fixed.items() if not _holds(folder / name, text))
    shared = [*tables, *changed, *(one.folder for one in used if not one.ending)]
    every = chain(chain.from_iterable(places.values()), (folder / name for name in shared))
    refuse_existing(every, endings, option="--out", force=force or resume)
    _refuse_inputs(used, folder, images)
    if not resume:
        return FilePlan(names, frozenset())
    listed = {row["path"] for row in _read_journal(folder / JOURNAL)} if tables else {*images}
    listed |= {*videos} if of_video else set()
    done = (one for one in listed & places.keys() if all(map(Path.exists, places[one])))
    return FilePlan(names, frozenset(done))


def _refuse_journal(journal: Path) -> None:
    if journal.exists():
        message = (
            f"--out must not hold results of another call, got {journal}. Choose another name, go "
            f"on with --resume, or replace them with --force."
        )
        raise RunError(message)


def fixed_files(formats: Sequence[ImageFormat], context: FormatContext) -> dict[str, str]:
    """Give the files that do not depend on images, by name."""
    return {name: text for one in formats for name, text in one.fixed(context).items()}


def _holds(place: Path, text: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return read_regular(place) == text.encode()
    return False


def _refuse_inputs(formats: Sequence[ImageFormat], folder: Path, images: Sequence[str]) -> None:
    """Refuse inputs in folders whose files depend on results."""
    for one in (one for one in formats if not one.ending):
        place = os.path.join(os.path.realpath(folder / one.folder), "")
        inside = next((path for path in images if os.path.realpath(path).startswith(place)), "")
        if inside:
            message = f"--out must not lead to an input, got {inside}. Choose another name."
            raise ConfigError(message)


def _read_journal(place: Path) -> Iterator[dict[str, Any]]:
    """Give the lines of a journal behind the first; none where there is none."""
    if not place.exists():
        return
    with (
        reading(str(place), "Remove it, and begin again with --force.", RunError),
        open_regular(place) as file,
    ):
        file.readline()
        for line in file:
            if not line.endswith(b"\n"):  # the process ended while it was written
                return
            answer = parse_json(line)
            if not isinstance(answer, dict) or not {"path", "size"} <= answer.keys():
                message = f"a line that is no answer, {line[:40]!r}"
                raise ValueError(message)
            yield answer


class ResultFiles(ExitStack):
    """Writes the files of images while it is open, and those of all of them when it is closed.

    Args:
        names: Names of results by the path of the image.
        about: What answers depend on beside the images; another call goes on only with the same.
        resume: Whether another call is gone on with; its answers for `names` that are not `done`
            are dropped.
    """

    def __init__(
        self,
        formats: Formats,
        context: FormatContext,
        plan: FilePlan,
        *,
        about: Mapping[str, Any],
        resume: bool,
    ) -> None:
        super().__init__()
        self._formats, self._context, self._plan = formats, context, plan
        self._about, self._resume = about, resume
        self._answers: AnswerList | None = None

    def __enter__(self) -> ResultFiles:
        """Write what does not depend on images, and open the journal."""
        for name, text in fixed_files(self._formats.images, self._context).items():
            write_file(text.encode(), self._context.folder / name)
        if self._formats.tables:
            place = self._context.folder / JOURNAL
            try:
                self._begin_journal(place)
                self._answers = self.enter_context(AnswerList(place))
            except OSError as error:
                raise RunError(cannot_write(place, error)) from error
        return self

    def __exit__(self, *error: Any) -> bool | None:
        """Write the tables of all images that are done, however the work ended."""
        try:
            if self._answers is not None:
                folder = self._context.folder
                places = {t.name: [folder / name for name in t.files] for t in self._formats.tables}
                write_tables(self._formats.tables, places, self._answers, self._context)
        finally:
            super().__exit__(*error)
        return None

    def _begin_journal(self, place: Path) -> None:
        """Write what this is the journal of, and the answers of before that are still true."""
        first = _format_line(self._about)
        if self._resume and place.exists():
            with open_regular(place) as file:
                before = file.readline().decode("ascii", "replace")
            if before != first:
                message = (
                    f"--resume must go on with the same run and options, got {first.strip()}, but "
                    f"{place} has {before.strip()}. Choose another --out, or begin again with "
                    f"--force."
                )
                raise RunError(message)
        names, done = self._plan
        kept = _read_journal(place) if self._resume else iter(())
        with replacing(place) as fresh, fresh.open("w", encoding="ascii") as file:
            file.write(first)
            for answer in kept:
                if answer["path"] in done or answer["path"] not in names:
                    file.write(_format_line(answer))

    def add(self, result: Any) -> None:  # noqa: ANN401 (one of muntin.results)
        """Write the files of an image."""
        answer, name = result.to_dict(), self._plan.names[result.path]
        files = ImageFiles(
            result=result, answer=answer, name=name, image=Path(result.path), context=self._context
        )
        for one in self._formats.images:
            one.write(files, one.place(self._context.folder, name))
        if self._answers is not None:
            self._answers.add(answer)


def write_tables(
    tables: Sequence[TableFormat], places: Places, answers: AnswerList, context: FormatContext
) -> None:
    """Write tables of answers, if there are any, each as a whole.

    Raises:
        RunError: A file cannot be written; those of before are unchanged.
    """
    if next(answers.rows(), None) is None:
        return
    for table in tables:
        first = places[table.name][0]
        try:
            with ExitStack() as stack:
                fresh = [stack.enter_context(replacing(one)) for one in places[table.name]]
                here = dataclasses.replace(context, folder=first.parent)
                table.write(answers.rows, fresh, here)
        except OSError as error:
            raise RunError(cannot_write(first, error)) from error
