# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a run will take: memory by what it is for, and time, from steps of an image or two."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from muntin.data.batches import evaluation_batch
from muntin.devices import choose_device, find_shortage, free_bytes, resident_mib
from muntin.errors import ConfigError
from muntin.planning.advice import MOST_IMAGES, Demand, advise
from muntin.recipes import MachineConfig, TrainConfig
from muntin.shapes import Size
from muntin.training.setup import Prepared, Request, prepare
from muntin.training.profiling import Rehearsal, Timing

__all__ = ["Plan", "plan"]

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will take; memory in MiB, time in seconds.

    Attributes:
        task: Name of the task.
        model: In the zoo.
        img_size: (height, width) in pixels.
        batch_size: Images a step.
        accumulate: Steps a weight change.
        precision: Of the products.
        device: Where.
        recomputed_blocks: Leading blocks that are computed again instead of remembered.
        num_blocks: Blocks there are.
        parameters: Weights and buffers.
        moment: The worst of a step, in words; where there are parts of a sum, they are of then.
        gradients: What there is of them at the worst moment.
        optimizer: Moments.
        averaged: Averaged weights.
        activations: What is kept for the backward pass at the peak, by part: "patches", "stage 1"
            and so on; 0 where nothing is yet, or no longer.
        workspace: What else tensors hold then.
        holes: What the C library cannot give again then, in pieces between tensors that nothing
            fits into, about half of activations, gradients and workspace; 0 on a GPU.
        process: What the process holds beside tensors of a step, decoded images included; 0 on a
            GPU, where what is allocated there is counted.
        peak: All of that, in training.
        inference: The same in validation, a batch of `inference_batch` at a time.
        inference_batch: Images that validation looks at at a time.
        room: What there is; with train.memory_gib, that and the process.
        memory_gib: The setting train.memory_gib; 0 = no limit.
        largest_batch: Largest batch that fits, in training and in validation; 0 where one image
            does not. Beyond the training images, or 4096, nobody looks.
        largest_batch_again: The same with every block computed again.
        step_s: A step.
        steps: Of an epoch.
        epoch_s: An epoch, validation included.
        measured: What was measured for it, by a few steps on this machine.
        notes: What was chosen, and what would fit.
    """

    task: str
    model: str
    img_size: Size
    batch_size: int
    accumulate: int
    precision: str
    device: str
    recomputed_blocks: int
    num_blocks: int
    moment: str
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
        """Give plain values: the fields, and `fits`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        parts = {name: dict(values.pop(name)) for name in ("activations", "measured")}
        sides = list(values.pop("img_size"))
        return {**values, **parts, "img_size": sides, "notes": list(self.notes), "fits": self.fits}


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
) -> Plan:
    """Predict memory and time of training before it starts.

    Steps of very few images are taken, which change nothing; everything else follows from how
    their memory and time grow with the batch.

    Args:
        task: As for `muntin.train`; the other arguments too.
        data: Training images.
        model: A name of `list_models`; chosen when empty.
        head: Name of a head.
        val: Validation images.
        weights: "auto", "none", a file, a hub id or a run folder.
        recipe: Name of a preset, or "auto".
        batch_size: Images a step; 0 chooses.
        img_size: Side, or (height, width), in pixels; 0 keeps the model's.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".
        settings: Any field of the configs; ``train.memory_gib`` is the room to fit.

    Returns:
        The forecast: peak resident memory of the process on a CPU, peak allocated memory on a GPU.
        Steps are not compiled for it, and images have full size.

    Raises:
        ConfigError: A name or a setting is wrong, or not even the few images that are measured
            fit into memory.
        DataError: The data cannot be used.
        WeightError: Weights that were asked for cannot be had.
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
        machine=_machine(precision, device),
        settings=tuple((key, str(value)) for key, value in (settings or {}).items()),
    )
    try:
        return forecast(prepare(request))
    except (MemoryError, RuntimeError) as error:
        if (shortage := find_shortage(error)) is None:
            raise
        wanted = f", and {shortage} were asked for at once" if shortage else ""
        message = (
            f"memory must hold the steps of 1 to 4 images that a plan is drawn from, got "
            f"{free_bytes(_kind(request)) / 2**30:.1f} GiB that are free{wanted}. Lower --img-size "
            f"or take a smaller model."
        )
        raise ConfigError(message) from error


def _machine(precision: str, device: str) -> MachineConfig:
    from muntin.configs import from_dict

    wanted = {"precision": precision, "device": device}
    machine: MachineConfig = from_dict(MachineConfig, wanted, where="the command")
    return machine


def _kind(request: Request) -> str:
    return choose_device(request.machine.device).type


def forecast(prepared: Prepared) -> Plan:
    """Predict memory and time of a prepared run; its network is left alone."""
    run, tuned = prepared.run, prepared.run.config.train
    plain = replace(tuned, checkpointing=False, recomputed_blocks=0)
    copied = replace(
        prepared,
        run=replace(run, config=replace(run.config, train=plain)),
        network=copy.deepcopy(prepared.network),
    )
    rehearsal = Rehearsal(copied)
    rehearsal.warm_up()
    timing = rehearsal.time_steps()
    held = rehearsal.held()
    kind = rehearsal.device.type
    # Before anything is recorded, which takes memory of its own.
    resident = resident_mib() * MIB if kind == "cpu" else 0.0
    process = 0.0
    if kind == "cpu":
        copies = sum(p.numel() * p.element_size() for p in prepared.network.parameters())
        process = resident - sum(held.values()) - copies - rehearsal.kept_bytes()
        process += rehearsal.kept_bytes(len(prepared.train), len(prepared.val))
    process = max(process, 0.0)
    footprint, asked = rehearsal.weigh(), tuned.memory_gib * 2**30
    again = footprint.num_blocks if tuned.checkpointing else tuned.recomputed_blocks
    if asked:  # as training does
        again = max(again, footprint.fit_blocks(tuned.batch_size, asked))
    room = asked or free_bytes(kind) + resident - process
    demand = Demand(
        footprint=footprint,
        looking=rehearsal.weigh_looking(),
        weights=held["parameters"] + held["averaged"] + held["optimizer"],
        looks=partial(_looks, prepared, tuned),
        room=room,
        most=max(tuned.batch_size, min(MOST_IMAGES, len(prepared.train))),
    )
    return _write_plan(prepared, _Weighed(demand, held, process, again), timing)


def _looks(prepared: Prepared, tuned: TrainConfig, batch: int) -> int:
    """Images that validation looks at at a time, where a step takes a batch."""
    wanted = replace(tuned, batch_size=batch).validation_batch
    looks = evaluation_batch(prepared.run.preprocessing, wanted)
    return min(looks, max(1, len(prepared.val)))


class _Weighed(NamedTuple):
    """What is known of the memory; bytes."""

    demand: Demand
    held: dict[str, int]
    process: float
    again: int


def _write_plan(prepared: Prepared, weighed: _Weighed, timing: Timing) -> Plan:
    run = prepared.run
    tuned, machine = run.config.train, run.config.machine
    demand, held, process, again = weighed
    footprint, batch = demand.footprint, tuned.batch_size
    peak = footprint.peak(batch, again)
    stages: dict[str, float] = {}
    for part, value in zip(footprint.parts, peak.remembered, strict=True):
        name = f"stage {part.stage}" if part.stage else "patches"
        stages[name] = stages.get(name, 0.0) + value / MIB
    steps = -(-len(prepared.train) // batch)
    # What is computed again costs as much as on the forward pass, a third of a step.
    slower = 1 + again / max(footprint.num_blocks, 1) / 3
    step = timing.step.at(batch) * slower
    read = timing.reading * batch / max(machine.workers, 1)
    step = max(step, read) if machine.workers else step + read
    known = sum(peak.remembered) + peak.grown + peak.holes + sum(held.values())
    memory = {name: count / MIB for name, count in held.items()}
    return Plan(
        task=run.config.task,
        model=run.config.model_name,
        img_size=run.config.model.img_size,
        batch_size=batch,
        accumulate=tuned.accumulate,
        precision=machine.precision,
        device=machine.device,
        recomputed_blocks=again,
        num_blocks=footprint.num_blocks,
        moment=footprint.name_moment(peak.moment),
        **memory,
        gradients=peak.grown / MIB,
        activations=tuple(stages.items()),
        workspace=max(0.0, peak.total - known) / MIB,
        holes=peak.holes / MIB,
        process=process / MIB,
        peak=(peak.total + process) / MIB,
        inference=(demand.validation(batch) + process) / MIB,
        inference_batch=demand.looks(batch),
        room=(demand.room + process) / MIB,
        memory_gib=tuned.memory_gib,
        largest_batch=demand.largest(again),
        largest_batch_again=demand.largest(footprint.num_blocks),
        step_s=step,
        steps=steps,
        epoch_s=steps * step + len(prepared.val) * timing.looking,
        measured=timing.measured,
        notes=(*prepared.notes, *advise(prepared, demand, again)),
    )
