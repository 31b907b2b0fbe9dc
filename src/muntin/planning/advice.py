# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What fits into a memory, in training and in validation, and what to say where it does not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from muntin.training.memory_budget import word_shortage, word_ways_out
from muntin.training.memory_model import Footprint, Line
from muntin.training.setup import Prepared

__all__ = ["MOST_IMAGES", "Demand", "advise"]

MOST_IMAGES = 4096
"""Larger batches are not told apart."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Memory of a run beyond the process, and what there is of it; bytes.

    Attributes:
        footprint: Of a step.
        looking: Of validation, beyond the weights, by images at a time.
        weights: What of the weights is there in validation.
        looks: Images at a time in validation, by the batch.
        room: What there is.
        most: Largest batch that is of interest.
    """

    footprint: Footprint
    looking: Line
    weights: float
    looks: Callable[[int], int]
    room: float
    most: int

    def validation(self, batch: int) -> float:
        """What validation needs."""
        return self.weights + self.looking.at(self.looks(batch))

    def fits(self, batch: int, again: int) -> bool:
        """Whether a step and validation fit, with so many leading blocks computed again."""
        step = self.footprint.peak(batch, again).total
        return max(step, self.validation(batch)) <= self.room

    def largest(self, again: int) -> int:
        """Largest batch that fits, at most `most`; 0 where one image does not."""
        low, high = 0, self.most
        while low < high:
            middle = (low + high + 1) // 2
            if self.fits(middle, again):
                low = middle
            else:
                high = middle - 1
        return low


def advise(prepared: Prepared, demand: Demand, again: int) -> tuple[str, ...]:
    """Say whether a prepared run fits; if not, what is missing and what would fit."""
    config = prepared.run.config
    tuned, footprint, room = config.train, demand.footprint, demand.room
    batch, count = tuned.batch_size, len(prepared.train)
    fits = demand.largest(again)
    if demand.fits(batch, again):
        return (_word_largest(fits, demand.most, count),)
    notes = []
    if footprint.peak(batch, again).total > room:
        short = word_shortage(footprint, tuned, again, room, fits)
        notes.append(f"does not fit: {short}. {word_ways_out(prepared, batch=bool(fits))}")
    if (need := demand.validation(batch)) > room:
        notes.append(
            f"does not fit: validation looks at {demand.looks(batch)} images at a time, which "
            f"needs {need / GIB:.2f} GiB, {_word_missing(need - room)} more than there is"
        )
    blocks = footprint.fit_blocks(batch, room)
    if blocks > again and demand.fits(batch, blocks):
        notes.append(
            f"fits with {blocks} of {footprint.num_blocks} blocks computed again: --set "
            f"train.recomputed_blocks={blocks}, slower by about "
            f"{100 * blocks / max(footprint.num_blocks, 1) / 3:.0f} %"
        )
    if fits:
        notes.append(f"fits with --batch-size {fits}")
    elif less := demand.largest(footprint.num_blocks):
        notes.append(f"fits with --batch-size {less} --set train.checkpointing=true")
    elif limit := _find_limit(demand, batch, tuned.memory_gib):
        notes.append(
            f"fits with --set train.memory_gib={limit:g}: validation then looks at no more "
            f"images at a time than a step"
        )
    else:
        notes.append("not even one image fits: lower --img-size or take a smaller model")
    return tuple(notes)


def _word_largest(fits: int, most: int, count: int) -> str:
    if fits >= MOST_IMAGES:
        return f"fits; steps of {MOST_IMAGES} and more images would"
    if fits >= most:
        return f"fits; a step of all {count} images would" if fits == count else "fits"
    return f"fits; up to {fits} images a step would"


def _word_missing(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= 0.01 * GIB else f"{count / 2**20:.2g} MiB"


def _find_limit(demand: Demand, batch: int, asked: float) -> float:
    """A train.memory_gib that makes validation fit; 0 where there is none."""
    limit = math.floor(100 * demand.room / GIB) / 100
    footprint = demand.footprint
    step = footprint.peak(batch, footprint.fit_blocks(batch, limit * GIB)).total
    fits = max(step, demand.weights + demand.looking.at(batch)) <= limit * GIB
    return limit if fits and not asked else 0.0
