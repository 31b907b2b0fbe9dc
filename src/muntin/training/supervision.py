# SPDX-License-Identifier: Apache-2.0
"""Objective of a run with labels: mixing and weighting of classes, and sampling weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from muntin.data.classification_transforms import AugmentConfig
from muntin.objectives.supervised_objective import Supervised, SupervisedTask
from muntin.runs import Run
from muntin.samples import Listing


def build_objective(run: Run, train: Listing, device: torch.device) -> Supervised:
    """Build the objective of a run: its task, supervised by the annotations of `train`."""
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


def build_mixup(
    config: AugmentConfig, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Build the function that mixes a batch; None if mixup and cutmix are off.

    It maps images B, C, H, W and targets (B or B, classes) to mixed images and targets B, classes.
    If both are on, each is drawn half of the time.
    """
    kinds: list[v2.Transform] = []
    if config.mixup:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
    if config.cutmix:
        kinds.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
    # None instead of an identity: targets stay class ids, which need less memory than shares.
    if not kinds:
        return None
    choice = v2.RandomChoice(kinds)

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        mixed, shares = choice(images, targets)
        return mixed, shares

    return mix


def class_balanced_shares(listing: Listing) -> NDArray[np.float64]:
    """Sampling shares with which each class is drawn equally often, shape (images,).

    An image with several classes gets the share of its rarest class, one without any the mean.
    """
    counts = torch.tensor(listing.class_counts, dtype=torch.float32).clamp(min=1)
    rarity = (1 / counts).tolist()
    mean = sum(rarity) / len(rarity)
    shares = [max((rarity[i] for i in entry.class_ids), default=mean) for entry in listing.entries]
    return np.array(shares)
