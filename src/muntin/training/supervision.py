# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Objective and sampling weights of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.data.classification_transforms import AugmentConfig
from muntin.objectives.supervised_objective import Supervised, SupervisedTask
from muntin.samples import Listing
from muntin.training.mixup import build_mixup

if TYPE_CHECKING:
    from muntin.runs import Run

__all__ = ["build_objective", "class_balanced_shares"]


def build_objective(run: Run, train: Listing, device: torch.device) -> Supervised:
    """Build the objective of a run: its task, supervised by the annotations of `train`.

    Args:
        run: Gives task, classes and loss settings.
        train: Training images; give labels and class weights.
        device: Device of the network.
    """
    config, task = run.config.train, run.task
    # Class ids of all images fit on the device; dense targets come with their batch.
    labels = None if task.dense else task.ground_truth(train, run.classes).to(device)
    class_weights = None
    if config.class_weights:
        # A class without images would get an infinite weight.
        weights = 1 / task.class_counts(train).clamp(min=1)
        # Mean 1, so that the learning rate keeps its meaning.
        class_weights = (weights / weights.mean()).to(device)
    mixing = None
    if isinstance(run.config.augment, AugmentConfig):
        mixing = build_mixup(run.config.augment, len(run.classes.names))
    row = SupervisedTask(
        task=task,
        classes=run.classes,
        labels=labels,
        class_weights=class_weights,
        label_smoothing=config.label_smoothing,
    )
    return Supervised({"head": row}, run.preprocessing, mixing)


def class_balanced_shares(listing: Listing) -> NDArray[np.float64]:
    """Sampling shares with which each class is drawn equally often, shape (images,).

    An image with several classes gets the share of its rarest class, one without any the mean.
    """
    counts = torch.tensor(listing.class_counts, dtype=torch.float32).clamp(min=1)
    rarity = (1 / counts).tolist()
    mean = sum(rarity) / len(rarity)
    shares = [max((rarity[i] for i in entry.class_ids), default=mean) for entry in listing.entries]
    return np.array(shares)
