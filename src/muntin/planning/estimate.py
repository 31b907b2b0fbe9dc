# SPDX-License-Identifier: Apache-2.0
"""Predicted memory (by purpose) and time of a run, from a few tiny training steps.

Also whether the run fits into memory, and which settings would make it fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from muntin.data.batches import evaluation_batch
from muntin.devices import choose_device, free_bytes, parse_out_of_memory, resident_mib
from muntin.drawing.notebook import show_facts
from muntin.errors import ConfigError
from muntin.shapes import Size
from muntin.train_config import TrainConfig
from muntin.training.machine import choose_machine, describe_load
from muntin.training.memory_budget import (
    choose_recomputation,
    describe_remedies,
    describe_shortage,
    fit_memory,
)
from muntin.training.memory_model import LinearFit, Recompute, StepMemory, find_largest
from muntin.training.profiling import StepProfiler, Timing
from muntin.training.request import PreparedRun, Request
from muntin.training.setup import prepare

MIB, GIB = 2**20, 2**30

MAX_IMAGES = 4096
"""Upper limit of the search for the largest batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Predicted memory and time of a run; memory in MiB, time in seconds.

    Attributes:
        img_size: (height, width) in pixels.
        accumulate: Steps per weight update.
        precision: Precision of the matrix products.
        device: "cpu", "cuda" or "mps".
        recomputed_layers: Whether norms, attention weights and hidden channels are recomputed.
        recomputed_blocks: Leading blocks with activation checkpointing.
        num_blocks: Blocks of the backbone.
        moment: When in a step memory peaks, such as "in the backward pass of stage 1"; gradients,
            activations, workspace and holes are those of that moment.
        teacher: Weights of a teacher that runs beside the network.
        parameters: Weights and buffers.
        optimizer: Optimizer state.
        averaged: Averaged weights.
        activations: Activations saved for the backward pass, by part: "patches", "stage 1" and so
            on; 0 for parts that are not saved yet, or no longer.
        workspace: All other tensors of the step.
        holes: Fragmentation of the CPU allocator, about half of activations, gradients and
            workspace; 0 on a GPU.
        process: Memory of the process besides the tensors of a step, cached images included; 0
            on a GPU, where only allocations on the device count.
        peak: Total in training.
        inference: Total in validation, with `inference_batch` images per batch.
        inference_batch: Images per batch in validation.
        room: Available memory; with train.memory_gib, that limit and the process.
        memory_gib: The setting train.memory_gib; 0 = no limit.
        largest_batch: Largest batch that fits in training and validation; 0 if a single image
            does not. At most the number of training images, and 4096.
        largest_batch_again: The same with activation checkpointing of every block.
        steps: Steps per epoch.
        epoch_s: Time of an epoch, validation included.
        measured: Times measured on this machine, by name.
        notes: What was chosen automatically, and what would fit.
    """

    task: str
    model: str
    img_size: Size
    batch_size: int
    accumulate: int
    precision: str
    device: str
    recomputed_layers: bool
    recomputed_blocks: int
    num_blocks: int
    moment: str
    teacher: float = 0.0
    parameters: float
    gradients: float
    optimizer: float
    averaged: float
    activations: tuple[tuple[str, float], ...]
    workspace: float
    holes: float
    process: float
    peak: float
    inference: float
    inference_batch: int
    room: float
    memory_gib: float
    largest_batch: int
    largest_batch_again: int
    step_s: float
    steps: int
    epoch_s: float
    measured: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether training and validation fit."""
        return max(self.peak, self.inference) <= self.room

    def to_dict(self) -> dict[str, Any]:
        """The fields and `fits` as values for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        parts = {name: dict(values.pop(name)) for name in ("activations", "measured")}
        sides = list(values.pop("img_size"))
        return {**values, **parts, "img_size": sides, "notes": list(self.notes), "fits": self.fits}

    def _repr_html_(self) -> str:
        return show_facts(f"plan of {self.model}: memory in MiB, time in s", self.to_dict())


def plan(
    task: str,
    data: str | Path,
    *,
    model: str = "",
    head: str = "",
    val: str | Path = "",
    weights: str | Path | None = "auto",
    recipe: str = "auto",
    batch_size: int = 0,
    img_size: int | Size = 0,
    precision: str = "auto",
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
    teacher: str | Path = "",
) -> Plan:
    """Predict memory and time of training before it starts.

    Runs a few tiny training steps without updating the weights, and extrapolates their memory and
    time to the batch size.

    Args:
        task: This and all other arguments as in `muntin.train`.
        data: Training images.
        model: A name of `list_models`; empty = automatic.
        head: Name of a head.
        val: Validation images.
        weights: "auto", "none", a file, a hub id or a run folder.
        recipe: Name of a preset, or "auto".
        batch_size: Images per step; 0 = automatic.
        img_size: Side, or (height, width), in pixels; 0 = the default of the model.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".
        settings: Any field of the configs; ``train.memory_gib`` is the memory budget.
        teacher: A run folder or a model with published weights.

    Returns:
        The prediction: peak resident memory of the process on a CPU, peak allocated memory on a
        GPU; for steps that are not compiled, and images of full size.

    Raises:
        ConfigError: A name or a setting is invalid, or the measured steps do not fit into memory.
        DataError: The data cannot be used.
        WeightError: The requested weights are not available.
    """
    request = Request(
        task=task,
        data=str(data),
        out="",
        val=str(val),
        model=model,
        head=head,
        weights="none" if weights is None else str(weights),
        recipe=recipe,
        batch_size=batch_size,
        img_size=(img_size, img_size) if isinstance(img_size, int) else img_size,
        machine=choose_machine(None, precision, device, 1),
        settings=tuple((key, str(value)) for key, value in (settings or {}).items()),
        teacher=str(teacher),
    )
    busy = describe_load()  # before anything is measured
    try:
        found = _forecast(prepare(request))
        return replace(found, notes=(*found.notes, *busy))
    except (MemoryError, RuntimeError) as error:
        if (shortage := parse_out_of_memory(error)) is None:
            raise
        failed = f", and an allocation of {shortage} failed" if shortage else ""
        free = free_bytes(choose_device(device).type) / 2**30
        message = (
            f"memory must hold training steps of 1 to 4 images to predict larger ones, got "
            f"{free:.1f} GiB free{failed}. Lower --img-size or choose a smaller model."
        )
        raise ConfigError(message) from error


def _forecast(prepared: PreparedRun) -> Plan:
    """Predict memory and time of a prepared run; its network is not changed."""
    tuned, profiler = prepared.run.config.train, StepProfiler(prepared)
    profiler.warmup()
    timing, persistent = profiler.time_steps(), profiler.persistent_bytes()
    kind = profiler.device.type
    # Read before memory is recorded, as the recording itself needs memory.
    resident = resident_mib() * MIB if kind == "cpu" else 0.0
    process = 0.0
    if kind == "cpu":
        copies = sum(p.numel() * p.element_size() for p in prepared.network.parameters())
        process = resident - sum(persistent.values()) - copies - profiler.cached_bytes()
        process += profiler.cached_bytes(len(prepared.train), len(prepared.val))
    process = max(process, 0.0)
    steps, limit = profiler.measure_memory(), tuned.memory_gib * 2**30
    # As training does, but a step that does not fit into a limit is reported.
    if not limit:
        prepared = fit_memory(prepared, lambda _: steps)
        tuned = prepared.run.config.train
    how = choose_recomputation(tuned, steps, limit or math.inf)
    requirements = MemoryRequirements(
        steps=steps,
        validation_memory=profiler.measure_validation_memory(),
        weights=sum(persistent.values()),
        validation_batch=partial(_validation_batch, prepared, tuned),
        budget=limit or free_bytes(kind) + resident - process,
        max_batch=max(tuned.batch_size, min(MAX_IMAGES, len(prepared.train))),
    )
    if once := profiler.teacher_s * len(prepared.train):
        note = f"teacher: answers once for all images, before the first epoch: {once:.3g} s"
        prepared = replace(prepared, notes=(*prepared.notes, note))
    return _write_plan(prepared, requirements, persistent, process, how, timing)


def _validation_batch(prepared: PreparedRun, tuned: TrainConfig, batch: int) -> int:
    """Images per batch in validation, for a training batch of `batch` images."""
    wanted = replace(tuned, batch_size=batch).validation_batch
    count = evaluation_batch(prepared.run.preprocessing, wanted)
    return min(count, max(1, len(prepared.val)))


def _write_plan(
    prepared: PreparedRun,
    requirements: MemoryRequirements,
    persistent: Mapping[str, int],
    process: float,
    how: Recompute,
    timing: Timing,
) -> Plan:
    """`persistent` and `process` are bytes."""
    run = prepared.run
    tuned, machine = run.config.train, run.config.machine
    batch, num_blocks = tuned.batch_size, requirements.steps.plain.num_blocks
    peak, model = requirements.steps.peak(batch, how), requirements.steps.model(how)
    stages: dict[str, float] = {}
    for part, value in zip(model.parts, peak.saved, strict=True):
        name = f"stage {part.stage}" if part.stage else "patches"
        stages[name] = stages.get(name, 0.0) + value / MIB
    num_steps = -(-len(prepared.train) // batch)
    step = timing.step.at(batch) * (1 + requirements.steps.slowdown(how))
    # Workers load images while the step runs: the slower of the two counts.
    load = timing.loading * batch / max(machine.workers, 1)
    step = max(step, load) if machine.workers else step + load
    known = sum(peak.saved) + peak.gradients + peak.fragmentation + sum(persistent.values())
    return Plan(
        task=run.config.task,
        model=run.config.model_name,
        img_size=run.config.model.img_size,
        batch_size=batch,
        accumulate=tuned.accumulate,
        precision=machine.precision,
        device=machine.device,
        recomputed_layers=how.layers,
        recomputed_blocks=how.blocks,
        num_blocks=num_blocks,
        moment=model.describe_phase(peak.phase),
        **{name: count / MIB for name, count in persistent.items()},
        gradients=peak.gradients / MIB,
        activations=tuple(stages.items()),
        workspace=max(0.0, peak.total - known) / MIB,
        holes=peak.fragmentation / MIB,
        process=process / MIB,
        peak=(peak.total + process) / MIB,
        inference=(requirements.validation(batch) + process) / MIB,
        inference_batch=requirements.validation_batch(batch),
        room=(requirements.budget + process) / MIB,
        memory_gib=tuned.memory_gib,
        largest_batch=requirements.largest(how),
        largest_batch_again=requirements.largest(how._replace(blocks=num_blocks)),
        step_s=step,
        steps=num_steps,
        epoch_s=num_steps * step + len(prepared.val) * timing.validation,
        measured=timing.measured,
        notes=(*prepared.notes, *advise(prepared, requirements, how)),
    )


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
