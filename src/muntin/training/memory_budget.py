# SPDX-License-Identifier: Apache-2.0
"""Training within limited memory: what is recomputed, and the batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from muntin.devices import free_bytes, release_memory
from muntin.errors import ConfigError
from muntin.train_config import TrainConfig
from muntin.training.memory_model import Recompute, StepMemory, find_largest
from muntin.training.request import PreparedRun

GIB = 2**30

MEMORY_SHARE = {"cuda": 0.8, "cpu": 0.5}
"""Share of the free memory that a step may use, if the batch size is automatic."""


def _find_budget(prepared: PreparedRun) -> float | None:
    """Bytes that a step may take: `train.memory_gib`, or a share of the free memory.

    None if the batch stays: for classification, and for a batch size that was set.
    """
    config = prepared.run.config
    if config.train.memory_gib:
        return config.train.memory_gib * GIB
    if prepared.keep_batch or prepared.run.task.dense is None:
        return None
    return free_bytes(config.machine.device) * MEMORY_SHARE.get(config.machine.device, 0.5)


def choose_recomputation(train: TrainConfig, memory: StepMemory, budget: float) -> Recompute:
    """Choose the cheapest recomputation that fits; no less than the settings ask for."""
    return memory.choose(train.batch_size, budget, _read_settings(train, memory))


def _read_settings(train: TrainConfig, memory: StepMemory) -> Recompute:
    blocks = memory.plain.num_blocks if train.checkpointing else train.recomputed_blocks
    return Recompute(train.recomputed_layers, blocks)


def fit_memory(prepared: PreparedRun, measure: Callable[[PreparedRun], StepMemory]) -> PreparedRun:
    """Fit a run into limited memory: recompute as little as possible, then reduce the batch.

    `measure` is called only if memory is limited. A step that does not fit into `train.memory_gib`
    is a `ConfigError`.
    """
    budget, train = _find_budget(prepared), prepared.run.config.train
    if budget is None:
        return prepared
    memory = measure(prepared)
    how = choose_recomputation(train, memory, budget)
    largest = find_largest(lambda batch: memory.peak(batch, how).total <= budget, train.batch_size)
    if train.memory_gib and (not largest or (prepared.keep_batch and largest < train.batch_size)):
        shortage = describe_shortage(memory, train, how, budget, largest)
        message = f"{shortage}. {describe_remedies(prepared, batch=bool(largest))}."
        raise ConfigError(message)
    # The step that needs least is tried even where that seems too much for the free memory.
    batch = max(largest, 1)
    if not train.memory_gib and (batch, how) == (train.batch_size, _read_settings(train, memory)):
        return prepared
    needed = memory.peak(batch, how).total / GIB
    note = (
        f"batch {batch}, {'recomputed' if how.layers else 'plain'} layers, activation "
        f"checkpointing: {how.blocks} of {memory.plain.num_blocks} blocks; a step needs "
        f"{needed:.2f} GiB of {_describe_limit(train, budget)}"
    )
    del memory
    release_memory()  # what was measured with, before training begins
    # Accumulated gradients keep the effective batch at least as large as requested.
    steps = -(-train.batch_size // batch)
    chosen = replace(
        train,
        checkpointing=False,
        recomputed_layers=how.layers,
        recomputed_blocks=how.blocks,
        batch_size=batch,
        accumulate=steps * train.accumulate,
    )
    run = replace(prepared.run, config=replace(prepared.run.config, train=chosen))
    return replace(prepared, run=run, notes=(*prepared.notes, note))


def _describe_limit(train: TrainConfig, budget: float) -> str:
    if train.memory_gib:
        return f"train.memory_gib={train.memory_gib:g}"
    return f"the free memory of {max(budget, 0) / GIB:.2f} GiB"


def describe_shortage(
    memory: StepMemory, train: TrainConfig, how: Recompute, budget: float, largest: int
) -> str:
    """Describe by how much a step exceeds the `budget` in bytes, and which batch size would fit.

    `largest` is the largest batch that fits; 0 if a single image does not.
    """
    needed = memory.peak(train.batch_size, how).total
    every = memory.plain.num_blocks and how.blocks >= memory.plain.num_blocks
    recomputed = " with activation checkpointing of every block" if every else ""
    single = memory.peak(1, how).total / GIB
    alternative = f"--batch-size {largest} fits" if largest else f"one image needs {single:.2f}"
    return (
        f"a step of {train.batch_size} images must fit into {_describe_limit(train, budget)}, but "
        f"needs {needed / GIB:.2f} GiB{recomputed}, "
        f"{(needed - budget) / GIB:.2f} GiB too much ({alternative})"
    )


def describe_remedies(prepared: PreparedRun, *, batch: bool) -> str:
    """List the settings that reduce the memory of a run; the batch size only if it may help."""
    config, train = prepared.run.config, prepared.run.config.train
    remedies = ["raise train.memory_gib"] if train.memory_gib else []
    remedies += ["lower --batch-size"] if batch else []
    remedies += ["lower --img-size"]
    can_narrow = hasattr(prepared.network.backbone, "pos_drop")
    if can_narrow and train.residual == "full" and config.machine.precision != "fp32":
        remedies += ["set train.residual=half"]
    text = f"{', '.join(remedies[:-1])} or {remedies[-1]}" if remedies[1:] else remedies[0]
    return text[0].upper() + text[1:]
