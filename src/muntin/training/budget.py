# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Training inside a memory that somebody names: what is computed again instead of remembered."""

from __future__ import annotations

import copy
from dataclasses import replace

from muntin.devices import give_back_memory
from muntin.errors import ConfigError
from muntin.recipes import TrainConfig
from muntin.training.footprint import Footprint
from muntin.training.preparation import Prepared
from muntin.training.rehearsal import Rehearsal

__all__ = ["fit_memory", "word_shortage", "word_ways_out"]


def fit_memory(prepared: Prepared, *, keep_batch: bool) -> Prepared:
    """Choose what is computed again, and perhaps a smaller batch, for `train.memory_gib`.

    Args:
        prepared: A run that can start.
        keep_batch: Whether the batch must stay as it is.

    Returns:
        The run with `recomputed_blocks`, and what was chosen among its notes.

    Raises:
        ConfigError: It does not fit.
    """
    tuned = prepared.run.config.train
    plain = replace(tuned, checkpointing=False, recomputed_blocks=0)
    copied = replace(prepared, network=copy.deepcopy(prepared.network))
    rehearsal = Rehearsal(_tuned(copied, plain))
    rehearsal.warm_up()
    footprint = rehearsal.weigh()
    del copied, rehearsal
    give_back_memory()
    room = tuned.memory_gib * 2**30
    again = footprint.fit_blocks(tuned.batch_size, room)
    batch = tuned.batch_size
    if footprint.peak(batch, again).total > room:
        batch = 0 if keep_batch else min(batch, footprint.fit_batch(room, again))
    if not batch:
        fits = footprint.fit_batch(room, again)
        short = word_shortage(footprint, tuned, again, room, fits)
        message = f"{short}. {word_ways_out(prepared, batch=bool(fits))}."
        raise ConfigError(message)
    steps = -(-tuned.batch_size // batch)
    need = footprint.peak(batch, again).total / 2**30
    note = (
        f"batch {batch}, {again} of {footprint.num_blocks} blocks are computed again: a step needs "
        f"{need:.2f} of {tuned.memory_gib:g} GiB (train.memory_gib)"
    )
    chosen = replace(
        plain, recomputed_blocks=again, batch_size=batch, accumulate=steps * tuned.accumulate
    )
    return replace(_tuned(prepared, chosen), notes=(*prepared.notes, note))


def word_shortage(
    footprint: Footprint, tuned: TrainConfig, again: int, room: float, fits: int
) -> str:
    """Say that a step does not fit, how much is missing, and which batch would fit.

    Args:
        footprint: Of the step.
        tuned: How it is taken.
        again: Leading blocks that are computed again.
        room: Bytes that there are.
        fits: Largest batch that fits; 0 where one image does not.
    """
    gib = 2**30
    holder = f"train.memory_gib={tuned.memory_gib:g}"
    if not tuned.memory_gib:
        holder = f"the {max(room, 0) / gib:.2f} GiB that are free"
    need = footprint.peak(tuned.batch_size, again).total
    every = footprint.num_blocks and again >= footprint.num_blocks
    least = footprint.peak(1, again).total / gib
    return (
        f"{holder} must hold a step of {tuned.batch_size} images, which needs {need / gib:.2f} "
        f"GiB{' with every block computed again' if every else ''} "
        f"({f'--batch-size {fits} does' if fits else f'one image needs {least:.2f}'}); "
        f"{(need - room) / gib:.2f} GiB are missing"
    )


def word_ways_out(prepared: Prepared, *, batch: bool) -> str:
    """Say what would make a run smaller; a smaller batch only if it may help."""
    config, tuned = prepared.run.config, prepared.run.config.train
    ways = ["raise train.memory_gib"] if tuned.memory_gib else []
    ways += ["lower --batch-size"] if batch else []
    ways += ["lower --img-size"]
    narrows = hasattr(prepared.network.backbone, "pos_drop")
    if narrows and tuned.residual == "full" and config.machine.precision != "fp32":
        ways += ["set train.residual=half"]
    text = f"{', '.join(ways[:-1])} or {ways[-1]}" if ways[1:] else ways[0]
    return text[0].upper() + text[1:]


def _tuned(prepared: Prepared, train: TrainConfig) -> Prepared:
    run = prepared.run
    return replace(prepared, run=replace(run, config=replace(run.config, train=train)))
