# SPDX-License-Identifier: Apache-2.0
"""The machine of a run: what is requested, what "auto" means on it, and its devices."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from torch.nn.parallel import DistributedDataParallel

from muntin.configs import from_dict, replace, to_dict
from muntin.devices import choose_device, choose_precision, granted_cores, has_compiler
from muntin.errors import ConfigError
from muntin.ops.triton.window_support import find_missing
from muntin.run_config import RunConfig
from muntin.train_config import MachineConfig
from muntin.training.defaults import Choice
from muntin.zoo.model_zoo import BackboneConfig, free_attention

_PRECISIONS: Mapping[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


PROCESSES_A_CORE = 4
"""Most training processes for each core of a CPU; each holds a network of its own."""


def choose_machine(
    base: RunConfig | None, precision: str, device: str, devices: int, nodes: int = 1
) -> MachineConfig:
    """Machine settings of a request: those given, over those of the repeated run."""
    given = {"precision": precision, "device": device, "devices": devices, "nodes": nodes}
    # "auto" and 0 are the defaults: the user has not chosen a value.
    values: dict[str, Any] = {k: value for k, value in given.items() if value not in ("auto", 0)}
    if base is not None:
        values = {**to_dict(base.machine), **values}
    return from_dict(MachineConfig, values, where="the command")


def resolve_machine(machine: MachineConfig, compiles: bool) -> Choice[MachineConfig]:
    """Replace every "auto" by its value on this machine.

    Without `compiles`, "auto" does not compile the steps. Detectors need that: their number of
    boxes changes with every batch, which would recompile each time.
    """
    device = choose_device(machine.device)
    precision = machine.precision
    if precision == "auto":
        precision = choose_precision(device)
    if precision == "fp16" and device.type == "cpu":
        message = "precision fp16 needs a GPU, got device cpu. Use bf16 or fp32."
        raise ConfigError(message)
    wanted = machine.compile
    if wanted == "auto":
        wanted = "on" if device.type == "cuda" and compiles else "off"
    notes: tuple[str, ...] = ()
    if wanted == "on" and not has_compiler():
        notes = ("no C++ compiler found: steps are not compiled (machine.compile)",)
        wanted = "off"
    cores = granted_cores()
    # More than one a core gain nothing, but show how a run behaves on more machines.
    if device.type == "cpu" and machine.devices > (most := PROCESSES_A_CORE * max(cores, 2)):
        message = (
            f"devices must be at most {most} on device cpu, {PROCESSES_A_CORE} processes a core, "
            f"got {machine.devices}. Reduce --devices."
        )
        raise ConfigError(message)
    workers = machine.workers
    if workers < 0:
        # On a CPU the training step itself needs the other half of the cores.
        workers = cores // 2 if device.type == "cpu" else min(cores, 16 * machine.devices)
        workers = max(1, workers // machine.devices)
    resolved = {"device": device.type, "precision": precision}
    return Choice(replace(machine, {**resolved, "compile": wanted, "workers": workers}), notes)


def check_attention(model: BackboneConfig, machine: MachineConfig) -> None:
    """Refuse "fused" attention where this machine cannot run the fused kernels."""
    if getattr(model, "attention", "auto") != "fused":
        return
    obstacle = find_missing(machine.device)
    if obstacle:
        message = f"{obstacle}, for model.attention=fused. Use model.attention=auto instead."
        raise ConfigError(message)


def use_available_attention(model: BackboneConfig, device: str) -> Choice[BackboneConfig]:
    """Replace fused attention in the config of another run's model where it cannot run."""
    free = free_attention(model)
    missing = "" if free is model else find_missing(device)
    if not missing:
        return Choice(model)
    return Choice(free, (f'attention "auto" instead of "fused" as in the run: {missing}',))


def build_fabric(machine: MachineConfig, devices: int, *, nodes: int = 1) -> Fabric:
    """Build what places tensors on devices and synchronises them; `machine` has no "auto".

    Of several processes, each builds its own, once it knows the others (`processes.joined`).
    """
    # Silences a line about the precision, which the notes of a run already name.
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)
    strategy: str | DDPStrategy = "auto"
    if devices * nodes > 1:
        # Buffers are equal in all processes: batch norms see the whole batch. Renamed in 2.14.
        known = inspect.signature(DistributedDataParallel).parameters
        sync = {"forward_sync_buffers", "broadcast_buffers"} & set(known)
        buffers: dict[str, Any] = {max(sync): False}
        strategy = DDPStrategy(
            cluster_environment=TorchElasticEnvironment(),
            # What a process has no use for in a step, such as the branch of masks without objects.
            find_unused_parameters=True,
            **buffers,
        )
    try:
        return Fabric(
            accelerator=machine.device,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=_PRECISIONS[machine.precision],
            # Of one process: what SLURM says of others is for those that it starts.
            plugins=[] if devices * nodes > 1 else [LightningEnvironment()],
        )
    finally:
        log.setLevel(level)


def describe_load(load: float | None = None, cores: int | None = None) -> tuple[str, ...]:
    """A note if other programs keep so many cores busy that measured times are too long."""
    cores = cores or granted_cores()
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load < 0.25 * cores + 0.5:  # half a core is this process, which has just begun
        return ()
    return (
        f"the machine is busy (load {load:.1f} on {cores} cores): times are measured beside other "
        f"programs, and shorter without them",
    )
