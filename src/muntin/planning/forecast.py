# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a run will take: memory by what it is for, and time, from steps of a picture or two."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from muntin.devices import free_bytes, resident_mib
from muntin.recipes import MachineConfig
from muntin.shapes import Size
from muntin.training.preparation import Prepared, Request, prepare
from muntin.training.rehearsal import Rehearsal

__all__ = ["Plan", "plan"]

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a run will take; memory in MiB, time in seconds.

    Attributes:
        task: Name of the task.
        model: In the zoo.
        img_size: (height, width) in pixels.
        batch_size: Pictures a step.
        accumulate: Steps a weight change.
        precision: Of the products.
        device: Where.
        recomputed_blocks: Leading blocks that are computed again instead of remembered.
        num_blocks: Blocks there are.
        parameters: Weights and buffers.
        gradients: What there is of them at the worst moment.
        optimizer: Moments.
        averaged: Averaged weights.
        activations: What is remembered for the way back at the worst moment, by part: "patches",
            "stage 1" and so on.
        workspace: What else tensors hold then.
        process: What the process holds beside tensors of a step, decoded pictures included; 0 on a
            GPU, where what is allocated there is counted.
        peak: All of that, in training.
        inference: The same in validation, a batch of `inference_batch` at a time.
        inference_batch: Pictures that validation looks at at a time.
        room: What there is; what was asked for with train.memory_gib.
        largest_batch: Largest batch that fits; 0 where one picture does not.
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
    parameters: float
    gradients: float
    optimizer: float
    averaged: float
    activations: tuple[tuple[str, float], ...]
    workspace: float
    process: float
    peak: float
    inference: float
    inference_batch: int
    room: float
    largest_batch: int
    largest_batch_again: int
    step_s: float
    steps: int
    epoch_s: float
    measured: tuple[tuple[str, float], ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether training fits."""
        return self.peak <= self.room

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

    Steps of very few pictures are taken, which change nothing; everything else follows from how
    their memory and time grow with the batch.

    Args:
        task: As for `muntin.train`; the other arguments too.
        data: Training pictures.
        model: A name of `list_models`; chosen when empty.
        head: Name of a head.
        val: Validation pictures.
        weights: "auto", "none", a file, a hub id or a run folder.
        recipe: Name of a preset, or "auto".
        batch_size: Pictures a step; 0 chooses.
        img_size: Side, or (height, width), in pixels; 0 keeps the model's.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".
        settings: Any field of the configs; ``train.memory_gib`` is the room to fit.

    Returns:
        The forecast: peak resident memory of the process on a CPU, peak allocated memory on a GPU.
        Steps are not compiled for it, and pictures have full size.

    Raises:
        ConfigError: A name or a setting is wrong.
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
    return forecast(prepare(request))


def _machine(precision: str, device: str) -> MachineConfig:
    from muntin.configs import from_dict

    wanted = {"precision": precision, "device": device}
    machine: MachineConfig = from_dict(MachineConfig, wanted, where="the command")
    return machine


def forecast(prepared: Prepared) -> Plan:
    """Predict memory and time of a prepared run; its network is left alone."""
    tuned = prepared.run.config.train
    few = (1, 2) if tuned.batch_size <= 4 else (2, 4)
    plain = replace(tuned, checkpointing=False, recomputed_blocks=0)
    run = replace(prepared.run, config=replace(prepared.run.config, train=plain))
    copied = replace(prepared, run=run, network=copy.deepcopy(prepared.network))
    rehearsal = Rehearsal(copied, few)
    footprint = rehearsal.weigh()
    looking = rehearsal.weigh_looking()
    steps, reading, seeing = rehearsal.time_steps()
    held = rehearsal.held()
    on_cpu = rehearsal.device.type == "cpu"
    process = resident_mib() - sum(held.values()) / MIB if on_cpu else 0.0
    process += rehearsal.kept_bytes(len(prepared.train) + len(prepared.val)) / MIB * on_cpu
    room = tuned.memory_gib * 1024 or (free_bytes(rehearsal.device.type) / MIB + resident_mib())
    return _join(prepared, footprint, held, process, room)


def _join(*args: Any) -> Plan:
    raise NotImplementedError
