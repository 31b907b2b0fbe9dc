# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Training within a memory budget: how many blocks are recomputed, and the batch size."""

from __future__ import annotations

import copy
from dataclasses import replace

from muntin.devices import release_memory
from muntin.errors import ConfigError
from muntin.recipes import TrainConfig
from muntin.training.memory_model import MemoryModel
from muntin.training.prepared_run import PreparedRun
from muntin.training.profiling import StepProfiler

__all__ = ["describe_remedies", "describe_shortage", "fit_memory_budget"]

GIB = 2**30


def fit_memory_budget(prepared: PreparedRun, *, keep_batch: bool) -> PreparedRun:
    """Choose the number of recomputed blocks, and if needed a smaller batch.

    Args:
        prepared: A run with a budget, `train.memory_gib`.
        keep_batch: Whether the batch size must not change.

    Returns:
        The run with `recomputed_blocks` and `batch_size`; a note describes the choice.

    Raises:
        ConfigError: A step does not fit into the budget.
    """
    config = prepared.run.config.train
    # The memory model predicts recomputation: it is fitted to steps without it.
    plain = replace(config, checkpointing=False, recomputed_blocks=0)
    # Measured on a copy: steps change batch norm statistics and create optimizer state.
    copied = replace(prepared, network=copy.deepcopy(prepared.network))
    profiler = StepProfiler(_with_config(copied, plain))
    profiler.warmup()
    model = profiler.measure_memory()
    del copied, profiler
    release_memory()
    budget = config.memory_gib * GIB
    blocks = model.fit_blocks(config.batch_size, budget)
    batch = config.batch_size
    # Recomputing the blocks is not enough: the batch must shrink too.
    if model.peak(batch, blocks).total > budget:
        batch = 0 if keep_batch else min(batch, model.fit_batch(budget, blocks))
    if not batch:
        fits = model.fit_batch(budget, blocks)
        shortage = describe_shortage(model, config, blocks, budget, fits)
        message = f"{shortage}. {describe_remedies(prepared, batch=bool(fits))}."
        raise ConfigError(message)
    # Accumulated gradients keep the effective batch at least as large as requested.
    steps = -(-config.batch_size // batch)
    needed = model.peak(batch, blocks).total / GIB
    note = (
        f"batch {batch}, activation checkpointing: {blocks} of {model.num_blocks} blocks; a step "
        f"needs {needed:.2f} of {config.memory_gib:g} GiB (train.memory_gib)"
    )
    chosen = replace(
        plain, recomputed_blocks=blocks, batch_size=batch, accumulate=steps * config.accumulate
    )
    return replace(_with_config(prepared, chosen), notes=(*prepared.notes, note))


def describe_shortage(
    model: MemoryModel, config: TrainConfig, num_recomputed: int, budget: float, max_batch: int
) -> str:
    """Describe by how much a step exceeds the budget, and which batch size would fit.

    Args:
        model: Memory of the step.
        config: Gives the batch size and `memory_gib`.
        num_recomputed: Leading blocks with activation checkpointing.
        budget: Available memory in bytes.
        max_batch: Largest batch that fits; 0 if a single image does not.
    """
    limit = f"train.memory_gib={config.memory_gib:g}"
    if not config.memory_gib:
        limit = f"the free memory of {max(budget, 0) / GIB:.2f} GiB"
    needed = model.peak(config.batch_size, num_recomputed).total
    every = model.num_blocks and num_recomputed >= model.num_blocks
    recomputed = " with activation checkpointing of every block" if every else ""
    single = model.peak(1, num_recomputed).total / GIB
    alternative = f"--batch-size {max_batch} fits" if max_batch else f"one image needs {single:.2f}"
    return (
        f"a step of {config.batch_size} images must fit into {limit}, but needs "
        f"{needed / GIB:.2f} GiB{recomputed}, "
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


def _with_config(prepared: PreparedRun, train: TrainConfig) -> PreparedRun:
    run = prepared.run
    return replace(prepared, run=replace(run, config=replace(run.config, train=train)))
