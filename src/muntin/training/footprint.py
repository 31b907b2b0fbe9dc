# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of a step of training as a function of the batch, from two small steps.

What tensors hold at any moment of a step grows linearly with the batch, but which moment is the
worst depends on it: so there is a line for every moment, and the peak is the highest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from muntin.errors import ConfigError
from muntin.training.timeline import Part, Span, list_parts, record_spans

__all__ = ["Footprint", "Line", "Peak", "measure_footprint"]

MOST_IMAGES = 2**16
"""Nobody asks for larger batches."""


class Line(NamedTuple):
    """Bytes as a function of the batch.

    Attributes:
        fixed: Whatever the batch.
        each: For each image.
    """

    fixed: float
    each: float

    def at(self, batch: int) -> float:
        """Bytes at a batch."""
        return self.fixed + self.each * batch


class Moment(NamedTuple):
    """A stretch of a step.

    Attributes:
        part: Name of the part at work; empty elsewhere.
        backward: Whether on the backward pass.
        done: Parts whose way forward is behind and whose backward pass is ahead.
        most: The most that tensors hold in it.
    """

    part: str
    backward: bool
    done: int
    most: Line


class Peak(NamedTuple):
    """The worst moment of a step.

    Attributes:
        total: Bytes that tensors hold, weights and what belongs to them included, and the holes.
        remembered: Bytes that each part remembers then.
        grown: Bytes of gradients that are there, an estimate.
        moment: Its place among the moments.
        holes: Bytes of holes between tensors.
    """

    total: float
    remembered: tuple[float, ...]
    grown: float
    moment: int = 0
    holes: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Memory of a step of training.

    Attributes:
        held: Bytes of parameters, buffers, moments of the optimiser and averaged weights.
        gradients: Bytes of all gradients.
        parts: Of the network.
        moments: In the order of time.
        remembered: What each part remembers for the backward pass.
        outputs: What each part gives.
        hole_share: What the holes between tensors take of memory, as a share of what a step holds
            beyond `held`.
    """

    held: int
    gradients: int
    parts: tuple[Part, ...]
    moments: tuple[Moment, ...]
    remembered: tuple[Line, ...]
    outputs: tuple[Line, ...]
    hole_share: float = 0.0

    @property
    def num_blocks(self) -> int:
        """Blocks that may be computed again."""
        return sum(part.is_block for part in self.parts)

    def peak(self, batch: int, again: int = 0) -> Peak:
        """Predict the worst moment of a step.

        Args:
            batch: Images.
            again: Leading blocks that are computed again instead of remembered.
        """
        kept = [line.at(batch) for line in self.remembered]
        worst = Peak(0.0, (0.0,) * len(kept), 0.0)
        lean = self._forget(kept, batch, again)
        for number, moment in enumerate(self.moments):
            saved = sum(kept[: moment.done]) - sum(lean[: moment.done])
            beyond = moment.most.at(batch) - saved
            holes = self.hole_share * beyond
            if (total := self.held + beyond + holes) > worst.total:
                behind = tuple(
                    value if place < moment.done else 0.0 for place, value in enumerate(lean)
                )
                grown = min(self.gradients, max(0.0, moment.most.fixed)) if moment.backward else 0.0
                worst = Peak(total, behind, grown, number, holes)
        return worst

    def name_moment(self, number: int) -> str:
        """Say where a moment is, as "on the backward pass, in stage 1"."""
        moment = self.moments[number]
        if number == len(self.moments) - 1:
            return "at the end of a step, when the weights change"
        stages = {part.name: part.stage for part in self.parts}
        if not moment.part:
            return "in the head" if moment.done == len(self.parts) else "on the forward pass"
        stage = stages[moment.part]
        place = f"stage {stage}" if stage else "the patches"
        return f"on the way {'back' if moment.backward else 'forward'}, in {place}"

    def _forget(self, kept: list[float], batch: int, again: int) -> list[float]:
        """What is remembered when the leading blocks remember only what they give."""
        lean, left = [], again
        for part, value, output in zip(self.parts, kept, self.outputs, strict=True):
            forgets = part.is_block and left > 0
            left -= forgets
            lean.append(min(value, output.at(batch)) if forgets else value)
        return lean

    def fit_blocks(self, batch: int, room: float) -> int:
        """Fewest leading blocks to compute again so that a step fits; all where none is enough.

        The first blocks of a hierarchy have the largest maps, and cost no more than others.
        """
        for again in range(self.num_blocks + 1):
            if self.peak(batch, again).total <= room:
                return again
        return self.num_blocks

    def fit_batch(self, room: float, again: int = 0) -> int:
        """Largest batch whose step fits; 0 where one image does not."""
        low, high = 0, MOST_IMAGES
        while low < high:
            middle = (low + high + 1) // 2
            if self.peak(middle, again).total <= room:
                low = middle
            else:
                high = middle - 1
        return low


def measure_footprint(
    network: nn.Module,
    step: Callable[[int], None],
    held: int,
    device: torch.device,
    batches: tuple[int, int] = (1, 2),
) -> Footprint:
    """Take two small steps and see what grows with the batch.

    Args:
        network: That learns.
        step: Takes a whole step with so many images and leaves no gradient behind. Another step
            was taken before, so that the optimiser has its moments.
        held: As in `Footprint`.
        device: Where.
        batches: Two numbers of images, rising.

    Raises:
        ConfigError: The two steps do not consist of the same parts.
    """
    few, many = (record_spans(network, partial(step, count), device) for count in batches)
    if [span[:2] for span in few] != [span[:2] for span in many]:
        message = (
            f"{type(network).__name__} must work in the same way on {batches[0]} and "
            f"{batches[1]} images for its memory to be predicted, and does not."
        )
        raise ConfigError(message)
    parts = list_parts(network)
    learning = [p for p in network.parameters() if p.requires_grad]
    names = [part.name for part in parts]
    remembered, outputs = _remembered(names, few, many, batches)
    return Footprint(
        held=held,
        gradients=sum(p.numel() * p.element_size() for p in learning),
        parts=parts,
        moments=_moments(names, few, many, batches),
        remembered=remembered,
        outputs=outputs,
    )


def _draw(low: float, high: float, batches: tuple[int, int]) -> Line:
    """A line through two points that does not fall."""
    each = max(0.0, (high - low) / (batches[1] - batches[0]))
    return Line(high - each * batches[1], each)


def _moments(
    names: list[str], few: tuple[Span, ...], many: tuple[Span, ...], batches: tuple[int, int]
) -> tuple[Moment, ...]:
    moments = []
    done, returning = 0, False
    for one, other in zip(few, many, strict=True):
        if one.backward:
            returning = True
            done = names.index(one.part)
        elif one.part:
            done = names.index(one.part)
        elif one.output and not returning:
            done += 1
        most = _draw(one.most, other.most, batches)
        moments.append(Moment(one.part, returning, done, most))
    return tuple(moments)


def _remembered(
    names: list[str], few: tuple[Span, ...], many: tuple[Span, ...], batches: tuple[int, int]
) -> tuple[tuple[Line, ...], tuple[Line, ...]]:
    """What is left of each part after its way forward, and how much of that it gave on."""
    kept = {name: (Line(0, 0), Line(0, 0)) for name in names}
    for place, span in enumerate(few[:-1]):
        if not span.part or span.backward:
            continue
        low, high = (spans[place + 1].live - spans[place].live for spans in (few, many))
        given = _draw(few[place + 1].output, many[place + 1].output, batches)
        kept[span.part] = _draw(low, high, batches), given
    return tuple(one for one, _ in kept.values()), tuple(two for _, two in kept.values())
