# SPDX-License-Identifier: Apache-2.0
"""The objective of a run: what its config says is learnt from its images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from muntin.collectives import is_shared, previous_row
from muntin.data.classification_transforms import AugmentConfig
from muntin.heads.network import Network
from muntin.objectives.objective import Objective
from muntin.objectives.pretraining import PRETRAINING
from muntin.objectives.relative_location import RelativeLocation
from muntin.objectives.supervised_objective import Supervised, SupervisedTask
from muntin.runs import Run
from muntin.samples import Listing


def build_objective(
    run: Run, train: Listing, device: torch.device, network: Network
) -> Objective[Any]:
    """Build the objective of a run: its task, supervised by the annotations of `train`.

    Without labels it is that of its head.
    """
    config, task, head = run.config.train, run.task, run.config.head
    if task.kind == "pretraining" and head is not None:
        build = PRETRAINING[head.kind].build_objective
        return build(head, network.backbone, run.preprocessing)
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
    location = None
    if config.location_loss:
        # From an address: nothing else in the run may depend on what is drawn here.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            location = RelativeLocation(network.spec, run.preprocessing.img_size).to(device)
    return Supervised(
        {"head": row}, run.preprocessing, mixing, location=location, weight=config.location_loss
    )


def build_mixup(
    config: AugmentConfig, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Build the function that mixes a batch; None if mixup and cutmix are off.

    It maps images B, C, H, W and targets (B or B, classes) to mixed images and targets B, classes.
    If both are on, each is drawn half of the time.
    """
    from torchvision.transforms import v2

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
        # An image is mixed with the one before it, which another process may hold.
        if is_shared():
            images = torch.cat([previous_row(images), images])
            targets = torch.cat([previous_row(targets), targets])
        mixed, shares = choice(images, targets)
        return (mixed[1:], shares[1:]) if is_shared() else (mixed, shares)

    return mix
