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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from muntin.errors import ConfigError, RunError
from muntin.prediction.formats.finished_inputs import (
    JOURNAL,
    About,
    Finished,
    FinishedInputs,
    about_images,
    find_finished,
    format_line,
    is_other,
    read_about,
    read_answers,
    refuse_other,
    remove_partial,
    spell,
)
from muntin.prediction.formats.format_table import (
    TABLE_FORMATS,
    Formats,
    ImageFiles,
    ImageFormat,
    TableFormat,
)
from muntin.prediction.formats.items import Answer, FormatContext
from muntin.prediction.result_names import name_results
from muntin.staging import refuse_existing, replacing, write_file, writing
from muntin.untrusted import read_regular

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
        self._file.write(format_line(answer))
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


class FilePlan(NamedTuple):
    """Names of the results of each input, without endings; and the inputs that are done."""

    names: Mapping[str, str]
    done: frozenset[str]


def plan_files(
    formats: Formats,
    context: FormatContext,
    sources: tuple[Sequence[str], Sequence[str]],
    *,
    about: About,
    force: bool,
    resume: bool,
) -> FilePlan:
    """Name the results of images and of videos, the two `sources`, before any work.

    `about` is what answers depend on beside the input.

    Raises:
        RunError: A file is an input, or exists and is not to be replaced; or results that are to
            be gone on with were made by something else.
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
    if force and not resume:
        return FilePlan(names, frozenset())
    noted = find_finished(folder)
    for video in videos:  # its tables of several formats must not be of several runs
        if one := noted.get(spell(video)):
            refuse_other(about, one.about, f"{video} in {folder}")
    if not resume:
        return FilePlan(names, frozenset())
    finished = {**_find_answered(folder, about, tables), **({} if tables else noted)}
    finished |= {key: one for video in videos if (one := noted.get(key := spell(video)))}
    done = [source for source in places if (one := finished.get(spell(source))) and one.whole]
    for image in {*done} - {*videos}:
        made = finished[spell(image)].about
        refuse_other(about_images(about), made, f"{image} in {folder}")
    return FilePlan(names, frozenset(one for one in done if all(map(Path.exists, places[one]))))


def _find_answered(folder: Path, about: About, tables: Sequence[str]) -> dict[str, Finished]:
    """Find the images whose answers are in the journal; `tables` cannot be of several runs."""
    journal = folder / JOURNAL
    made = read_about(journal)
    if made is None:
        return {}
    if tables:
        refuse_other(about_images(about), made, journal)
    return {spell(answer["path"]): Finished(made, whole=True) for answer in read_answers(journal)}


def remove_old(
    formats: Formats, folder: Path, plan: FilePlan, videos: Sequence[str], about: About
) -> list[Path]:
    """Remove tables of an earlier call that this one does not write, and that contradict it.

    Only those that are known to be results are: of images where there is a journal, of videos
    that are noted. Those of the same run and options stay, unless other images were in them, or
    the video was interrupted. Give what was removed.
    """
    others = [one for one in TABLE_FORMATS if one not in formats.tables]
    noted, old = find_finished(folder), list[Path]()
    made = read_about(folder / JOURNAL) if plan.names.keys() - {*videos} else None
    if made is not None and (formats.tables or is_other(about_images(about), made)):
        old += [folder / name for one in others for name in one.files]
    for video in videos:
        one = noted.get(spell(video))
        if one is not None and (not one.whole or is_other(about, one.about)):
            old += [folder / f"{plan.names[video]}{end}" for t in others for end in t.of_video]
    inputs = {spell(source) for source in plan.names}
    gone = [path for path in old if path.is_file() and spell(str(path)) not in inputs]
    for path in gone:
        with writing(path):
            path.unlink()
    return gone


def clear_partial(formats: Formats, folder: Path, names: Iterable[str]) -> None:
    """Remove what a process that was killed left where this call writes."""
    tops = {folder, *(folder / one for f in formats.images for one in (f.folder, f.copies))}
    below = {(top / name).parent for top in tops for name in names}
    inside = {top / name for top in tops for name in names}  # of frames
    remove_partial(one for one in {*tops, *below, *inside} if one.is_dir())


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


class ResultFiles(ExitStack):
    """Writes the files of images while it is open, and those of all of them when it is closed.

    Args:
        formats: What is written.
        context: Where to, and by which run.
        plan: From `plan_files`: names of results, and which images are done.
        about: What answers depend on beside the images; another call goes on only with the same.
        resume: Whether another call is gone on with, as `plan_files` allowed; its answers for
            planned images that are not done are dropped.
    """

    def __init__(
        self,
        formats: Formats,
        context: FormatContext,
        plan: FilePlan,
        *,
        about: About,
        resume: bool,
    ) -> None:
        super().__init__()
        self._formats, self._context, self._plan = formats, context, plan
        self._about, self._resume = about_images(about), resume
        self._answers: AnswerList | None = None
        self._finished = FinishedInputs(context.folder)

    def __enter__(self) -> ResultFiles:
        """Write what does not depend on images, and open the journal."""
        for name, text in fixed_files(self._formats.images, self._context).items():
            write_file(text.encode(), self._context.folder / name)
        if self._formats.tables:
            place = self._context.folder / JOURNAL
            with writing(place):
                self._begin_journal(place)
                self._answers = self.enter_context(AnswerList(place))
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
        names, done = ({spell(one) for one in each} for each in self._plan)
        kept = read_answers(place) if self._resume else iter(())
        with replacing(place) as fresh, fresh.open("w", encoding="ascii") as file:
            file.write(format_line(self._about))
            for answer in kept:
                key = spell(answer["path"])
                if key in done or key not in names:
                    file.write(format_line(answer))

    def add(self, result: Any) -> Answer:  # noqa: ANN401 (one of muntin.results)
        """Write the files of an image, and give its answer."""
        answer, name = result.to_dict(), self._plan.names[result.path]
        files = ImageFiles(
            result=result, answer=answer, name=name, image=Path(result.path), context=self._context
        )
        for one in self._formats.images:
            one.write(files, one.place(self._context.folder, name))
        if self._answers is not None:
            self._answers.add(answer)
        self._finished.note(result.path, self._about, whole=True)
        return answer


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
        with writing(first), ExitStack() as stack:
            fresh = [stack.enter_context(replacing(one)) for one in places[table.name]]
            here = dataclasses.replace(context, folder=first.parent)
            table.write(answers.rows, fresh, here)
