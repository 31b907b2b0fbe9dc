# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What "auto" means on this machine: device, precision, compilation, workers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.configs import replace
from muntin.devices import choose_device, choose_precision, has_compiler
from muntin.errors import ConfigError
from muntin.ops.triton.window_support import find_missing
from muntin.recipes import MachineConfig
from muntin.training.defaults import Choice

if TYPE_CHECKING:
    from muntin.zoo.families import BackboneConfig

__all__ = ["PRECISIONS", "check_attention", "resolve_machine"]

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Names of the precisions in Lightning Fabric."""


def resolve_machine(machine: MachineConfig, *, compiles: bool = True) -> Choice[MachineConfig]:
    """Replace every "auto" by its value on this machine.

    Args:
        machine: The requested settings.
        compiles: Whether "auto" may compile the steps. Not for detectors: their number of boxes
            changes with every batch, which would recompile each time.

    Raises:
        ConfigError: The device is not available, or does not support the requested precision.
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
    workers = machine.workers
    if workers < 0:
        import os

        # Containers and job schedulers often grant fewer cores than the machine has.
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        # On a CPU the training step itself needs the other half of the cores.
        workers = max(1, cores // 2) if device.type == "cpu" else max(1, min(cores, 16))
    resolved = {"device": device.type, "precision": precision}
    return Choice(replace(machine, {**resolved, "compile": wanted, "workers": workers}), notes)


def check_attention(model: BackboneConfig, machine: MachineConfig) -> None:
    """Check that the attention back end of a model runs on this machine.

    Raises:
        ConfigError: It is "fused", and the machine cannot run the fused kernels.
    """
    if getattr(model, "attention", "auto") != "fused":
        return
    obstacle = find_missing(machine.device)
    if obstacle:
        message = f"{obstacle}, for model.attention=fused. Use model.attention=auto instead."
        raise ConfigError(message)
