# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch that a training process holds, and random numbers for the whole batch.

Every process holds consecutive rows of each batch. Within `holding`, random numbers are drawn for
the whole batch, of which a process uses its rows, so that what is learnt does not depend on the
number of processes. With one process, and outside of training steps, drawing is local.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class BatchPart(NamedTuple):
    """The rows of a batch of `total` images that a process holds: `rows` from `start` on.

    Rows from `total` on repeat the last image, to fill up the share of a process; they count for
    nothing.
    """

    start: int
    rows: int
    total: int

    @property
    def real(self) -> int:
        """Rows that do not only fill up."""
        return max(0, min(self.rows, self.total - self.start))


class _State:
    part: BatchPart | None = None


@contextlib.contextmanager
def holding(part: BatchPart | None) -> Iterator[None]:
    """Context of a training step of which this process holds a part of the batch; None: all."""
    _State.part = part
    try:
        yield
    finally:
        _State.part = None


def held_part() -> BatchPart | None:
    """The part of the batch of this step; None if it is the whole batch."""
    return _State.part


def is_shared() -> bool:
    """Whether this is a step whose batch several processes share."""
    return _State.part is not None


def draw_rows(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Draw for `count` images, or several versions of each: `draw(n)` gives n rows.

    Versions follow each other: all first ones, then all second ones.
    """
    part = _State.part
    if part is None or count % part.rows:
        return draw(count)
    drawn = draw(count // part.rows * part.total)
    places = torch.arange(part.start, part.start + part.rows, device=drawn.device)
    return drawn.unflatten(0, (-1, part.total))[:, places.clamp(max=part.total - 1)].flatten(0, 1)


def drop_rows(drop: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply dropout to the rows here as it would be applied to those of the whole batch."""
    part = _State.part
    if part is None or len(values) % part.rows:
        return drop(values)
    return values * draw_rows(
        lambda count: drop(values.new_ones(count, *values.shape[1:])), len(values)
    )


def real_rows(values: Tensor) -> Tensor:
    """The rows, of images or of versions of them, that do not only fill up."""
    part = _State.part
    if part is None or part.real == part.rows or len(values) % part.rows:
        return values
    return values.unflatten(0, (-1, part.rows))[:, : part.real].flatten(0, 1)


def image_generators(count: int, device: torch.device) -> list[torch.Generator]:
    """A generator for each image, for draws whose number depends on what is in it."""
    first = int(torch.randint(2**62, ()))
    start = 0 if _State.part is None else _State.part.start
    return [torch.Generator(device).manual_seed(first + start + row) for row in range(count)]


def count_real(count: int) -> int:
    """How many of the first of `count` rows do not only fill up the share of this process."""
    return count if _State.part is None else _State.part.real
