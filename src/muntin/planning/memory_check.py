# SPDX-License-Identifier: Apache-2.0
"""Whether training and validation fit into memory, and which settings would make them fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from muntin.recipes import TrainConfig
from muntin.training.memory_budget import (
    choose_recomputation,
    describe_remedies,
    describe_shortage,
)
from muntin.training.memory_model import LinearFit, Recompute, StepMemory, find_largest
from muntin.training.request import PreparedRun

MAX_IMAGES = 4096
"""Upper limit of the search for the largest batch."""

GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryRequirements:
    """Memory of a run beyond the process, and the available memory (`budget`); bytes.

    `validation_memory` is that beyond `weights` (with optimizer state), by images per batch;
    `validation_batch` gives their number for a training batch. The search for the largest batch
    ends at `max_batch`.
    """

    steps: StepMemory
    validation_memory: LinearFit
    weights: float
    validation_batch: Callable[[int], int]
    budget: float
    max_batch: int

    def validation(self, batch: int) -> float:
        """Memory of validation, given the training batch."""
        return self.weights + self.validation_memory.at(self.validation_batch(batch))

    def fits(self, batch: int, how: Recompute) -> bool:
        """Whether training and validation fit."""
        return max(self.steps.peak(batch, how).total, self.validation(batch)) <= self.budget

    def largest(self, how: Recompute) -> int:
        """Largest batch that fits, at most `max_batch`; 0 if a single image does not."""
        return find_largest(lambda batch: self.fits(batch, how), self.max_batch)


def advise(
    prepared: PreparedRun, requirements: MemoryRequirements, how: Recompute
) -> tuple[str, ...]:
    """Report whether a run fits; if not, by how much it exceeds memory and what would fit."""
    train = prepared.run.config.train
    steps, budget, batch = requirements.steps, requirements.budget, train.batch_size
    max_batch = requirements.largest(how)
    if requirements.fits(batch, how):
        return (_describe_largest(max_batch, requirements.max_batch, len(prepared.train)),)
    notes = []
    if steps.peak(batch, how).total > budget:
        shortage = describe_shortage(steps, train, how, budget, max_batch)
        remedies = describe_remedies(prepared, batch=bool(max_batch))
        notes.append(f"does not fit: {shortage}. {remedies}")
    if (needed := requirements.validation(batch)) > budget:
        notes.append(
            f"does not fit: validation with {requirements.validation_batch(batch)} images per "
            f"batch needs {needed / GIB:.2f} GiB, {_format_bytes(needed - budget)} more than "
            f"available"
        )
    more = choose_recomputation(train, steps, budget)
    if more != how and requirements.fits(batch, more):
        percent = 100 * steps.slowdown(more)
        notes.append(f"fits with {_describe_settings(more)}, about {percent:.0f} % slower")
    if max_batch:
        notes.append(f"fits with --batch-size {max_batch}")
    elif smaller := requirements.largest(Recompute(blocks=steps.plain.num_blocks)):
        notes.append(f"fits with --batch-size {smaller} --set train.checkpointing=true")
    elif limit := _find_limit(requirements, train):
        notes.append(
            f"fits with --set train.memory_gib={limit:g}, which also limits the validation batch "
            f"to the training batch"
        )
    else:
        notes.append("a single image does not fit: lower --img-size or choose a smaller model")
    return tuple(notes)


def _describe_settings(how: Recompute) -> str:
    layers = "--set train.recomputed_layers=true" if how.layers else ""
    blocks = f"--set train.recomputed_blocks={how.blocks}" if how.blocks else ""
    return f"{layers} {blocks}".strip()


def _describe_largest(max_batch: int, limit: int, num_images: int) -> str:
    if max_batch >= MAX_IMAGES:
        return f"fits, even with {MAX_IMAGES} images per step or more"
    if max_batch >= limit:
        return (
            f"fits, even all {num_images} images in a step" if max_batch == num_images else "fits"
        )
    return f"fits, up to {max_batch} images per step"


def _format_bytes(count: float) -> str:
    return f"{count / GIB:.2f} GiB" if count >= 0.01 * GIB else f"{count / 2**20:.2g} MiB"


def _find_limit(requirements: MemoryRequirements, train: TrainConfig) -> float:
    """Find a `train.memory_gib` with which training and validation fit; 0 if none does.

    Without that setting validation runs at least 64 small images per batch, with it no more than
    a step: a limit equal to the available memory may therefore be all that is missing.
    """
    limit = math.floor(100 * requirements.budget / GIB) / 100
    how = choose_recomputation(train, requirements.steps, limit * GIB)
    step = requirements.steps.peak(train.batch_size, how).total
    validation = requirements.weights + requirements.validation_memory.at(train.batch_size)
    fits = max(step, validation) <= limit * GIB
    return limit if fits and not train.memory_gib else 0.0
