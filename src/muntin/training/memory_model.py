# SPDX-License-Identifier: Apache-2.0
"""Memory of a training step as a function of the batch size, fitted to two small steps.

At any point of a step tensor memory grows linearly with the batch, but which point is the peak
depends on the batch: the model has one line for each phase of a step, and the peak is the highest
of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import nn

from muntin.errors import ConfigError
from muntin.training.memory_trace import NetworkPart, Span, list_parts, record_spans

LAYERS_SLOWDOWN = 0.25
"""Time that recomputed layers add to a step of swin_tiny, as a part of it: 0.19 to 0.28."""


class LinearFit(NamedTuple):
    """A quantity (bytes, seconds) by the batch size: a `fixed` part, and one for `each` image."""

    fixed: float
    each: float

    def at(self, batch: int) -> float:
        """Value for a batch of so many images."""
        return self.fixed + self.each * batch


class Phase(NamedTuple):
    """Highest memory, in bytes, between two marks of the trace, whose `part` runs (empty: none).

    The activations of `num_saved` leading parts are saved at this point: their forward pass is
    done, their backward pass is not.
    """

    part: str
    backward: bool
    num_saved: int
    peak: LinearFit


class PeakMemory(NamedTuple):
    """Predicted peak memory of a step, in bytes: all tensors and fragmentation.

    `saved` are the activations of each part at the peak, `phase` is the index of its phase.
    """

    total: float
    saved: tuple[float, ...]
    gradients: float
    phase: int = 0
    fragmentation: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryModel:
    """Memory of a training step in bytes.

    `persistent` are parameters, buffers, optimizer state and averaged weights; `parts`, `saved` for
    the backward pass and `outputs` are in forward order, `phases` in that of time.
    """

    persistent: int
    gradients: int
    parts: tuple[NetworkPart, ...]
    phases: tuple[Phase, ...]
    saved: tuple[LinearFit, ...]
    outputs: tuple[LinearFit, ...]
    fragmentation_share: float = 0.0

    @property
    def num_blocks(self) -> int:
        """Number of blocks that can be recomputed."""
        return sum(part.is_block for part in self.parts)

    def peak(self, batch: int, num_recomputed: int = 0) -> PeakMemory:
        """Predict the peak memory of a step, with activation checkpointing of leading blocks."""
        full = [line.at(batch) for line in self.saved]
        peak = PeakMemory(0.0, (0.0,) * len(full), 0.0)
        reduced = self._recomputed(full, batch, num_recomputed)
        for index, phase in enumerate(self.phases):
            # The trace has no recomputation: subtract what the recomputed blocks no longer save.
            # Recomputing a block needs its activations again, but only when its own backward pass
            # begins, and there it is not subtracted: `num_saved` counts the parts before it.
            freed = sum(full[: phase.num_saved]) - sum(reduced[: phase.num_saved])
            beyond = phase.peak.at(batch) - freed
            fragmentation = self.fragmentation_share * beyond
            if (total := self.persistent + beyond + fragmentation) > peak.total:
                saved = tuple(
                    value if place < phase.num_saved else 0.0 for place, value in enumerate(reduced)
                )
                # Gradients are the memory of the backward pass that does not grow with the batch.
                fixed = max(0.0, phase.peak.fixed)
                gradients = min(self.gradients, fixed) if phase.backward else 0.0
                peak = PeakMemory(total, saved, gradients, index, fragmentation)
        return peak

    def describe_phase(self, index: int) -> str:
        """Describe when a phase is, such as "in the backward pass of stage 1"."""
        phase = self.phases[index]
        # No mark follows the last backward hook: this phase contains the update of the weights.
        if index == len(self.phases) - 1:
            return "at the end of a step, in the optimizer"
        stages = {part.name: part.stage for part in self.parts}
        if not phase.part:
            after = phase.num_saved == len(self.parts)
            return "in the head" if after else "in the forward pass"
        stage = stages[phase.part]
        place = f"stage {stage}" if stage else "the patch embedding"
        return f"in the {'backward' if phase.backward else 'forward'} pass of {place}"

    def _recomputed(self, full: list[float], batch: int, num_recomputed: int) -> list[float]:
        """Bytes that each part saves if the leading blocks save only their output."""
        reduced, left = [], num_recomputed
        for part, value, output in zip(self.parts, full, self.outputs, strict=True):
            recomputes = part.is_block and left > 0
            left -= recomputes
            # A block that saves less than its output gains nothing from recomputation.
            reduced.append(min(value, output.at(batch)) if recomputes else value)
        return reduced


class Recompute(NamedTuple):
    """What a step computes again in the backward pass, to save memory.

    `layers` stands for norms, attention weights and hidden channels. `blocks` counts leading
    blocks, as they have the largest maps and cost no more time than the others.
    """

    layers: bool = False
    blocks: int = 0


class StepMemory:
    """Memory of a training step, by its batch size and by what it recomputes.

    `measure_leaner` measures a step with recomputed layers, when that is first asked for; it gives
    `plain` if the network has no such layers.
    """

    def __init__(self, plain: MemoryModel, measure_leaner: Callable[[], MemoryModel]) -> None:
        self.plain = plain
        self._measure_leaner = measure_leaner

    @cached_property
    def leaner(self) -> MemoryModel:
        """Memory with recomputed layers."""
        return self._measure_leaner()

    def peak(self, batch: int, how: Recompute) -> PeakMemory:
        """Predict the peak memory of a step."""
        return self.model(how).peak(batch, how.blocks)

    def model(self, how: Recompute) -> MemoryModel:
        """Model of a step whose layers are recomputed or not."""
        return self.leaner if how.layers else self.plain

    def choose(self, batch: int, budget: float, least: Recompute) -> Recompute:
        """Choose the cheapest recomputation with which a step fits into `budget` bytes.

        It includes `least`. If nothing fits, it is what saves most.
        """
        how = least
        for how in self._list_choices(least):
            if self.peak(batch, how).total <= budget:
                break
        return how

    def slowdown(self, how: Recompute) -> float:
        """Time that recomputation adds to a step, as a part of it; an estimate."""
        # A block costs its forward pass again, about a third of its part of a step.
        return how.blocks / max(self.plain.num_blocks, 1) / 3 + LAYERS_SLOWDOWN * how.layers

    def _list_choices(self, least: Recompute) -> Iterator[Recompute]:
        """What may be recomputed, in the order of time."""
        choices = [
            Recompute(layers, blocks)
            for layers in {least.layers, True}
            for blocks in range(least.blocks, self.plain.num_blocks + 1)
        ]
        yield least
        for how in sorted(choices, key=self.slowdown):
            if how.layers == least.layers or self.leaner is not self.plain:
                yield how


def find_largest(fits: Callable[[int], bool], limit: int) -> int:
    """Largest batch up to `limit` that fits, given that smaller ones do too; 0 if none does."""
    low, high = 0, limit
    while low < high:
        # Rounded up: otherwise low could stay at middle forever.
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def fit_memory_model(
    network: nn.Module,
    step: Callable[[int], None],
    persistent: int,
    device: torch.device,
    batches: tuple[int, int] = (1, 2),
    fragmentation_share: float = 0.0,
) -> MemoryModel:
    """Record two small steps of a network in training mode, and fit a line to each phase.

    `step` runs a whole step with so many images and leaves no gradient behind; an earlier one must
    have created the state of the optimizer. `batches` are ascending.
    """
    few, many = (record_spans(network, partial(step, count), device) for count in batches)
    # Part and direction must agree; the bytes differ, as they should.
    if [span[:2] for span in few] != [span[:2] for span in many]:
        message = (
            f"{type(network).__name__} must run the same modules for {batches[0]} and "
            f"{batches[1]} images, got different ones: its memory cannot be predicted."
        )
        raise ConfigError(message)
    parts = list_parts(network)
    trainable = [p for p in network.parameters() if p.requires_grad]
    names = [part.name for part in parts]
    saved, outputs = _fit_saved(names, few, many, batches)
    return MemoryModel(
        persistent=persistent,
        gradients=sum(p.numel() * p.element_size() for p in trainable),
        parts=parts,
        phases=_fit_phases(names, few, many, batches),
        saved=saved,
        outputs=outputs,
        fragmentation_share=fragmentation_share,
    )


def fit_line(low: float, high: float, batches: tuple[int, int]) -> LinearFit:
    """Line through two measured points; flat if it would fall, which is noise."""
    # Through the larger step, where rounding of the allocator matters less.
    each = max(0.0, (high - low) / (batches[1] - batches[0]))
    return LinearFit(high - each * batches[1], each)


def _fit_phases(
    names: list[str], few: tuple[Span, ...], many: tuple[Span, ...], batches: tuple[int, int]
) -> tuple[Phase, ...]:
    phases = []
    num_saved, backward = 0, False
    for small, large in zip(few, many, strict=True):
        # The part whose backward pass runs, and those after it, have released what they saved.
        if small.backward:
            backward = True
            num_saved = names.index(small.part)
        elif small.part:
            num_saved = names.index(small.part)
        # An output means that a part has ended: from here on its activations are saved.
        elif small.output and not backward:
            num_saved += 1
        phases.append(
            Phase(small.part, backward, num_saved, fit_line(small.peak, large.peak, batches))
        )
    return tuple(phases)


def _fit_saved(
    names: list[str], few: tuple[Span, ...], many: tuple[Span, ...], batches: tuple[int, int]
) -> tuple[tuple[LinearFit, ...], tuple[LinearFit, ...]]:
    """Bytes that remain of each part after its forward pass, and bytes of its output."""
    fits = {name: (LinearFit(0, 0), LinearFit(0, 0)) for name in names}
    for place, span in enumerate(few[:-1]):
        if not span.part or span.backward:
            continue
        # Growth from the start of a part to its end is what it leaves for the backward pass.
        low, high = (spans[place + 1].live - spans[place].live for spans in (few, many))
        output = fit_line(few[place + 1].output, many[place + 1].output, batches)
        fits[span.part] = fit_line(low, high, batches), output
    return tuple(saved for saved, _ in fits.values()), tuple(output for _, output in fits.values())
