# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a run and its listings to the objective that it minimises."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.data.transforms import AugmentConfig
from muntin.objectives.supervised import Supervised, SupervisedTask
from muntin.runs import Run
from muntin.samples import Listing
from muntin.training.mixup import build_mixing

__all__ = ["balanced_shares", "build_objective"]


def build_objective(run: Run, train: Listing, device: torch.device) -> Supervised:
    """Make the objective of a run: its task, learnt from the annotations of `train`.

    Args:
        run: Its config says how.
        train: Labels and class weights come from here.
        device: Where the network is.
    """
    config, task = run.config.train, run.task
    labels = None if task.dense else task.table(train, run.classes).to(device)
    class_weights = None
    if config.class_weights:
        weights = 1 / task.counts(train).clamp(min=1)
        class_weights = (weights / weights.mean()).to(device)
    mixing = None
    if isinstance(run.config.augment, AugmentConfig):
        mixing = build_mixing(run.config.augment, len(run.classes.names))
    row = SupervisedTask(
        task=task,
        classes=run.classes,
        labels=labels,
        class_weights=class_weights,
        label_smoothing=config.label_smoothing,
    )
    return Supervised({"head": row}, run.preprocessing, mixing)


def balanced_shares(listing: Listing) -> NDArray[np.float64]:
    """Shares that draw every class equally often; an image of several counts as its rarest."""
    counts = torch.tensor(listing.class_counts, dtype=torch.float32).clamp(min=1)
    wanted = (1 / counts).tolist()
    usual = sum(wanted) / len(wanted)
    shares = [max((wanted[i] for i in entry.class_ids), default=usual) for entry in listing.entries]
    return np.array(shares)
