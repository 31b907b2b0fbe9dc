# SPDX-License-Identifier: Apache-2.0
"""The files of a video: a drawn one, tables of its frames, and frames with annotations."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.prediction.formats.format_table import Formats, ImageFiles
from muntin.prediction.formats.items import Answer, FormatContext
from muntin.prediction.formats.result_files import AnswerList, fixed_files, write_tables
from muntin.prediction.predictor import draw
from muntin.prediction.video import write_timed_video
from muntin.staging import write_file


class FrameResult(NamedTuple):
    """A frame, (H, W, 3) uint8 RGB, with its result, and its answer with number and time."""

    pixels: NDArray[np.uint8]
    result: Any
    answer: Answer


def write_video_files(
    results: Iterator[FrameResult],
    name: str,
    formats: Formats,
    context: FormatContext,
    rate_of: Callable[[], Fraction],
) -> None:
    """Write the files of a video as its frames come, and tables of all answers at the end.

    `rate_of` gives the frames a second once there is one. Nothing is written where there is none.

    Raises:
        RunError: A file cannot be written.
    """
    first = next(results, None)
    if first is None:
        return
    folder = context.folder
    images = (one.copies or one.folder for one in formats.images if one.of_frames and one.ending)
    stored = next((folder / one / name for one in images), None)
    places = {one.name: [folder / f"{name}{end}" for end in one.of_video] for one in formats.tables}
    with AnswerList() as answers:
        frames = _write_frames(chain([first], results), name, formats, context)
        if formats.tables:
            frames = _keep_answers(frames, answers)
        if formats.draws:
            drawn = (
                (draw(frame.pixels, frame.result, threshold=0.0), frame.answer["time"])
                for frame in frames
            )
            write_timed_video(folder / f"{name}.mp4", drawn, rate_of())
        deque(frames, maxlen=0)
        write_tables(formats.tables, places, answers, replace(context, frames=stored))


def _keep_answers(frames: Iterator[FrameResult], answers: AnswerList) -> Iterator[FrameResult]:
    for frame in frames:
        answers.add(frame.answer)
        yield frame


def _write_frames(
    frames: Iterator[FrameResult], name: str, formats: Formats, context: FormatContext
) -> Iterator[FrameResult]:
    """Hand frames on, with the files that each has of its own."""
    own = [one for one in formats.images if one.of_frames]
    for path, text in fixed_files(own, context).items():
        write_file(text.encode(), context.folder / path)
    for frame in frames:
        called = f"{name}/{frame.answer['frame']:06}"
        for one in own:
            files = ImageFiles(
                result=frame.result, answer=frame.answer, name=called, image=frame.pixels,
                context=context,
            )  # fmt: skip
            one.write(files, one.place(context.folder, called))
        yield frame
