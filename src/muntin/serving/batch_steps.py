# SPDX-License-Identifier: Apache-2.0
"""The steps of a batch: encoded images in, JSON of their results out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from muntin.errors import DataError, MuntinError, first_line
from muntin.serving.messages import Answer, BatchOptions, WorkItem
from muntin.staging import finite, format_json

MOST_TILES = 400
"""Tiles of one image, which all are in memory."""


@dataclass(kw_only=True, slots=True, eq=False)
class BatchTask:
    """A batch on its way through the threads."""

    number: int
    options: BatchOptions
    items: tuple[WorkItem, ...]
    predictor: Any = None
    places: list[int] = field(default_factory=list)
    answers: list[Answer | None] = field(default_factory=list)
    value: Any = None
    seconds: list[float] = field(default_factory=list)
    cancelled: bool = False


class CancelledError(Exception):
    """Nobody waits for the batch that is worked on."""


def answer_batch(
    predictor: Any,  # noqa: ANN401 (of `load_model`)
    options: BatchOptions,
    items: tuple[WorkItem, ...],
) -> list[Answer]:
    """Answer a batch in this thread, as the threads of a worker do one after another."""
    task = BatchTask(number=0, options=options, items=items, predictor=predictor)
    for step in (prepare, predict, write):
        take_step(task, step)
    return [each for each in task.answers if each is not None]


def take_step(task: BatchTask, step: Callable[[BatchTask], None]) -> None:
    """Take a task through a step, unless it failed before; an error becomes its answer."""
    try:
        if task.cancelled:
            raise CancelledError
        if task.places or step is prepare:
            step(task)
    except CancelledError:
        _fail(task, "nobody waits for it", "server")
    except MuntinError as error:
        _fail(task, str(error), "request")
    except Exception as error:
        _fail(task, f"{type(error).__name__}: {first_line(error)}", "server")


def _fail(task: BatchTask, text: str, fault: str) -> None:
    """Answer the images that have no answer yet by an error."""
    failed = Answer(text=text, fault=fault)
    task.answers = [failed if each is None else each for each in task.answers]
    task.places, task.value = [], None


def prepare(task: BatchTask) -> None:
    """Decode and resize the images; one that cannot be read is answered by its error."""
    task.answers = [None] * len(task.items)
    if task.options.least_box is not None:
        task.predictor = _with_least_box(task.predictor, task.options.least_box)
    pre, tile = task.predictor.preprocessing, task.options.tile
    images = []
    for place, item in enumerate(task.items):
        try:
            read = _decode(item, pre.reading)
            if tile is not None:
                _refuse_tiles(read(pre.reading).shape[:2], tile, pre)
            images.append(read)
        except DataError as error:
            task.answers[place] = Answer(text=_tell(error, item), fault="image")
        else:
            task.places.append(place)
    if images:
        options = task.options
        task.value = task.predictor.prepare(images, tta=options.tta, tile=options.tile)


def _tell(error: DataError, item: WorkItem) -> str:
    """Say why an image cannot be decoded to whom it came from, who knows no file of it."""
    if not isinstance(error.__cause__, Exception):
        return str(error)
    shown = f"the image {item.name!r}" if item.name else "the image"
    reason = first_line(error.__cause__).rstrip(".")
    return (
        f"{shown} must be whole, got {len(item.data)} bytes that cannot be decoded: {reason}. "
        f"Send it again, or save it anew."
    )


def _with_least_box(predictor: Any, least: float) -> Any:  # noqa: ANN401 (of `load_model`)
    """Give a predictor whose detector has another threshold; others may use the first one."""
    changed = copy.copy(predictor)
    changed.detector = replace(predictor.detector, threshold=least)
    return changed


def _decode(item: WorkItem, reading: Any) -> Callable[[Any], np.ndarray]:  # noqa: ANN401
    """Decode an image for the model; a detector beside it may ask for another range of values."""
    from muntin.data.decoding import decode
    from muntin.data.value_ranges import as_reading

    if item.shape:
        if item.shape[2] != reading.bands:
            message = (
                f"pixels must be red, green and blue, got those for a model of {reading.bands} "
                f"bands. Send it files, such as TIFF."
            )
            raise DataError(message)
        values = np.frombuffer(item.data, np.uint8).reshape(item.shape)
        return lambda _: values
    read = partial(decode, item.data, where=item.name)
    pixels = read(value_range=reading)
    return lambda other: pixels if as_reading(other) == reading else read(value_range=other)


def _refuse_tiles(size: Any, tile: Any, pre: Any) -> None:  # noqa: ANN401
    """Refuse more tiles than memory holds, and a client waits for."""
    from muntin.prediction.tiling import count_tiles

    if (count := count_tiles(size, tile, pre)) > MOST_TILES:
        message = (
            f"tile must cut an image into at most {MOST_TILES} tiles, got {tile}, which cuts "
            f"{size[1]} x {size[0]} pixels into {count}. Choose a larger one."
        )
        raise DataError(message)


def predict(task: BatchTask) -> None:
    """Run the network."""
    task.value = task.predictor.run(task.value)


def write(task: BatchTask) -> None:
    """Write the results as JSON."""
    results = task.predictor.decode(task.value)
    task.value = None
    for place, result in zip(task.places, results, strict=True):
        item = task.items[place]
        named = replace(result.above(item.threshold), path=item.name)
        task.answers[place] = Answer(text=format_json(finite(named.to_dict())))
