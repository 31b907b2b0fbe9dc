# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Training inside a memory that somebody names: what is computed again instead of remembered."""

from __future__ import annotations

import copy
from dataclasses import replace

from muntin.errors import ConfigError
from muntin.recipes import TrainConfig
from muntin.training.preparation import Prepared
from muntin.training.rehearsal import Rehearsal

__all__ = ["fit_memory"]


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
    room = tuned.memory_gib * 2**30
    again = footprint.fit_blocks(tuned.batch_size, room)
    batch = tuned.batch_size
    if footprint.peak(batch, again).total > room:
        batch = 0 if keep_batch else min(batch, footprint.fit_batch(room, again))
    if not batch:
        fits = footprint.fit_batch(room, again)
        least = footprint.peak(1, again).total / 2**30
        advice = f"--batch-size {fits} does" if fits else f"one picture needs {least:.2f}"
        message = (
            f"train.memory_gib={tuned.memory_gib:g} must hold a step of {tuned.batch_size} "
            f"pictures, which needs {footprint.peak(tuned.batch_size, again).total / 2**30:.2f} "
            f"GiB with every block computed again ({advice}). Raise it, or lower --batch-size or "
            f"--img-size."
        )
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


def _tuned(prepared: Prepared, train: TrainConfig) -> Prepared:
    run = prepared.run
    return replace(prepared, run=replace(run, config=replace(run.config, train=train)))
