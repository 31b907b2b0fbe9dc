# SPDX-License-Identifier: Apache-2.0
"""``muntin predict``: where results of images and videos go."""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from muntin.commands.values import to_json
from muntin.errors import UsageError, plural
from muntin.staging import list_json

if TYPE_CHECKING:
    from muntin.drawing.window import Window
    from muntin.prediction.formats.finished_inputs import FinishedInputs
    from muntin.prediction.formats.result_files import ResultFiles
    from muntin.prediction.formats.video_files import FrameResult
    from muntin.prediction.predictor import Predictor
    from muntin.prediction.video_streams import VideoReader, VideoSource
    from muntin.runs import Run

Stream = Callable[[Iterator[Any]], Iterator[Any]]


class FileOptions(NamedTuple):
    """What `muntin predict` was told about files; no folder: none are written."""

    folder: str
    formats: tuple[str, ...]
    crops: bool
    force: bool
    resume: bool
    bands: tuple[int, ...] = ()


def check_files(options: FileOptions) -> FileOptions:
    """Refuse options that need a folder without one, and those that contradict each other."""
    names = {
        "--format": options.formats, "--save-crop": options.crops, "--resume": options.resume,
        "--force": options.force, "--bands": options.bands,
    }  # fmt: skip
    given = [name for name, value in names.items() if value]
    if given and not options.folder:
        message = f"{given[0]} is about files, which need --out FOLDER, got none."
        raise UsageError(message)
    if options.force and options.resume:
        message = "--force replaces results and --resume keeps them, got both. Omit one."
        raise UsageError(message)
    return options


class Output(ExitStack):
    """Where results go: files, and a JSON list or a line each.

    Args:
        run: The run that predicts.
        options: Which files are written.
        min_score: What scores less is not drawn, counted or written as an annotation.
        about: What answers depend on beside the inputs, for `--resume`; where files are written,
            the weights are added.
        as_json: Whether a list is printed at the end.

    Raises:
        ConfigError: The formats do not suit the run.
    """

    def __init__(
        self,
        run: Run,
        options: FileOptions,
        min_score: float,
        about: Mapping[str, Any],
        *,
        as_json: bool,
    ) -> None:
        from muntin.prediction.formats.format_table import choose_formats
        from muntin.prediction.formats.items import FormatContext
        from muntin.prediction.formats.result_files import AnswerList

        super().__init__()
        self.formats = choose_formats(options.formats, run.task.kind, crops=options.crops)
        self.min_score, self.options = min_score, options
        self._about = {**about, **_sum_weights(run, about)} if options.folder else about
        self.side = max(run.preprocessing.img_size)
        self.context = FormatContext(
            folder=Path(options.folder),
            kind=run.task.kind,
            classes=run.classes,
            scorer=run.path.name,
            min_score=min_score,
            bands=options.bands,
        )
        self.names: Mapping[str, str] = {}
        self._done: frozenset[str] = frozenset()
        self._has_images = False
        self._finished: FinishedInputs | None = None
        self.num_unreadable = 0
        self.document = self.enter_context(AnswerList()) if as_json else None

    def plan(
        self, paths: list[Path], videos: list[VideoSource]
    ) -> tuple[list[Path], list[VideoSource]]:
        """Name the results of inputs; give those that are to be predicted: with --resume the rest.

        Raises:
            RunError: A file is an input, or exists and is not to be replaced; or results of before
                were made by something else.
        """
        from muntin.prediction.formats.finished_inputs import FinishedInputs
        from muntin.prediction.formats.result_files import clear_partial, plan_files, remove_old

        if not self.options.folder:
            return paths, videos
        self._has_images = bool(paths)
        force, resume = self.options.force, self.options.resume
        sources = ([*map(str, paths)], [video.name for video in videos])
        plan = plan_files(
            self.formats, self.context, sources, about=self._about, force=force, resume=resume
        )
        folder = self.context.folder
        self.names, self._done = plan
        self._finished = FinishedInputs(folder)
        if force or resume:
            clear_partial(self.formats, folder, plan.names.values())
        if force and not resume:
            for path in remove_old(self.formats, folder, plan, sources[1], self._about):
                typer.echo(f"removed: {path}, of an earlier call with other formats", err=True)
        if plan.done:
            left = plural(len(plan.done), "input")
            typer.echo(f"{left} left out, with results in {self.options.folder}", err=True)
        return (
            [path for path in paths if str(path) not in plan.done],
            [video for video in videos if video.name not in plan.done],
        )

    def open_files(self) -> ResultFiles | None:
        """Give what writes the files of images, to be entered; None where there are none."""
        from muntin.prediction.formats.result_files import FilePlan, ResultFiles

        if not self._has_images:
            return None
        plan = FilePlan(self.names, self._done)
        resume = self.options.resume
        return ResultFiles(self.formats, self.context, plan, about=self._about, resume=resume)

    def note(self, video: VideoSource, *, whole: bool) -> None:
        """Note that results of a video are begun, or whole, for a later call."""
        if self._finished is not None:
            self._finished.note(video.name, self._about, whole=whole)

    def print(self) -> None:
        """Write the JSON list to stdout, which stays empty where a command fails."""
        if self.document is not None:
            sys.stdout.writelines(list_json(map(to_json, self.document.rows())))


def _sum_weights(run: Run, about: Mapping[str, Any]) -> dict[str, str]:
    """Checksums of the weights of the run and the detector: the names of two may be equal."""
    from muntin.published import PublishedRun
    from muntin.run_files import weights_checksum
    from muntin.weights.weight_files import weights_digest

    if isinstance(run, PublishedRun):
        sums = {"weights": weights_digest(run.network)}
    else:
        sums = {"weights": weights_checksum(run.path)}
    detector = Path(str(about.get("detector", "")))
    # One that is called by its name has published weights.
    if about.get("detector") and detector.exists():
        sums["detector_weights"] = weights_checksum(detector)
    return sums


def predict_images(results: Iterable[Any], output: Output, total: int) -> tuple[int, int]:
    """Write results of images as they come, and print or collect them.

    Return the number of results, and that of images in which tiles may find more.
    """
    from rich.console import Console

    from muntin.prediction.tiling import needs_tiles
    from muntin.training.progress import Reporter

    number, shrunk, first = 0, 0, 0.0
    try:
        with ExitStack() as stack:
            opened = output.open_files()
            files = None if opened is None else stack.enter_context(opened)
            reporter = stack.enter_context(Reporter(Console(stderr=True)))
            for result in results:
                answer = None if files is None else files.add(result)
                if output.document is None:
                    typer.echo(f"{result.path}: {result.describe()}")
                else:
                    output.document.add(answer or result.to_dict())
                number += 1
                shrunk += needs_tiles(result, output.side, output.min_score)
                first = first or time.monotonic()
                facts = progress_facts(number, total, time.monotonic() - first)
                reporter.step("predicting", number / total, facts)
    except KeyboardInterrupt:
        if output.options.folder:
            done = f"{number:,} of {plural(total, 'image')} done, with whole files in"
            typer.echo(f"{done} {output.options.folder}; go on with --resume", err=True)
        raise
    return number, shrunk


def progress_facts(number: int, total: int, elapsed_s: float) -> dict[str, str]:
    """Say how many images are done and, after a second, their rate and how long the rest will take.

    `elapsed_s` is the time since the first result, so that loading and measuring do not count.

    Examples:
        >>> progress_facts(1201, 100_000, 40.0)
        {'images': '1,201 of 100,000', 'rate': '30/s', 'left': '54m53s'}
    """
    from muntin.training.progress import format_duration

    facts = {"images": f"{number:,} of {total:,}"}
    if elapsed_s < 1:
        return facts
    rate = (number - 1) / elapsed_s
    return {
        **facts,
        "rate": f"{rate:.3g}/s",
        "left": format_duration((total - number) / rate),
    }


class VideoOptions(NamedTuple):
    """What `muntin predict` was told about videos; no limit of time is 0."""

    track: bool
    smooth: bool
    max_time_s: float


def predict_videos(
    predictor: Predictor,
    videos: Sequence[VideoSource],
    output: Output,
    options: VideoOptions,
    passes: Mapping[str, Any],
    *,
    strict: bool,
    show: bool = False,
) -> dict[str, int]:
    """Predict and count every frame of videos; results are called ``VIDEO#0``, ``VIDEO#1`` ...

    Unless `strict`, an unreadable video is skipped with a warning. With `show` each has a window.
    """
    from muntin.drawing.window import Window
    from muntin.errors import DataError, MuntinWarning

    found = {}
    batch_size = predictor.batch_size
    for video in videos:
        mark = 0 if output.document is None else output.document.mark()
        # Nobody waits for a batch of what happens now.
        predictor.batch_size = 1 if video.live else batch_size
        stream = partial(predictor.stream, **passes)
        try:
            with closing(Window(video.name)) if show else nullcontext() as window:
                found[video.name] = _predict_video(stream, video, output, options, window)
            output.note(video, whole=window is None or not window.closed)
        except DataError as error:
            if output.document is not None:
                output.document.cut(mark)
            if strict:
                raise
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
    return found


@contextmanager
def _remembering_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed; pressed again, it interrupts as ever."""
    pressed: list[int] = []

    def remember(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    if threading.current_thread() is not threading.main_thread():  # which has no signals
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _note_first(results: Iterator[Any], output: Output, video: VideoSource) -> Iterator[Any]:
    """Hand results on; with the first one they are noted as begun."""
    for number, result in enumerate(results):
        if not number:  # what is live has no rest to go on with
            output.note(video, whole=video.live)
        yield result


def _show(results: Iterator[FrameResult], window: Window) -> Iterator[FrameResult]:
    """Hand results on, each shown in a window, until that is closed."""
    from muntin.prediction.predictor import draw

    for one in results:
        window.show(draw(one.pixels, one.result, threshold=0.0))
        yield one
        if window.closed:
            return


def _count_left_out(reader: VideoReader, output: Output, video: VideoSource) -> None:
    output.num_unreadable += reader.num_unreadable
    if reader.num_late:
        late = plural(reader.num_late, "frame")
        typer.echo(f"{video.name}: {late} left out, as prediction was behind", err=True)


def _predict_video(
    stream: Stream,
    video: VideoSource,
    output: Output,
    options: VideoOptions,
    window: Window | None,
) -> int:
    """Predict a video; when it is interrupted, what is done is written as a whole."""
    from muntin.prediction.formats.video_files import FrameResult, write_video_files
    from muntin.prediction.tracking import Tracker
    from muntin.prediction.video import with_results
    from muntin.prediction.video_streams import VideoReader

    count, ended = 0, False
    reader = VideoReader(video, max_time_s=options.max_time_s)

    def predicted() -> Iterator[FrameResult]:
        nonlocal count, ended
        tracker = None
        try:
            for frame, found in with_results(stream, reader, attrgetter("pixels")):
                if options.track or options.smooth:
                    tracker = tracker or Tracker(
                        output.min_score, float(reader.rate), smooth=options.smooth
                    )
                    found = tracker.update(found, frame.time)
                else:
                    found = found.above(output.min_score)
                result = dataclasses.replace(found, path=f"{video.name}#{count}")
                answer = {**result.to_dict(), "frame": count, "time": round(frame.time, 3)}
                count += 1
                if output.document is not None:
                    output.document.add(answer)
                yield FrameResult(frame.pixels, result, answer)
                if pressed():
                    ended = True
                    return
        except KeyboardInterrupt:  # a second time, while a frame is waited for
            ended = True

    with _remembering_interrupts() as pressed:
        results = _note_first(predicted(), output, video)
        if window is not None:
            results = _show(results, window)
        if output.options.folder:
            name = output.names[video.name]
            write_video_files(results, name, output.formats, output.context, lambda: reader.rate)
        deque(results, maxlen=0)
    _count_left_out(reader, output, video)
    if ended:
        again = "; --resume begins it anew" if output.options.folder and not video.live else ""
        done = plural(count, "frame")
        typer.echo(f"{video.name}: {done} until it was interrupted{again}", err=True)
        raise KeyboardInterrupt
    return count
