# SPDX-License-Identifier: Apache-2.0
"""Supervised learning of one task, or of several at once on the same images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader
from muntin.data.transforms import Preprocessing, normalise
from muntin.devices import Autocast
from muntin.features import Features
from muntin.heads.network import Head, Network
from muntin.objectives.objective import Objective
from muntin.objectives.relative_location import RelativeLocation
from muntin.prediction.predictor import Predictor
from muntin.samples import Classes, Listing
from muntin.scoring.evaluator import Outputs, Scored, compute_figures, run_network
from muntin.shapes import Float
from muntin.tasks.task import Task, TrainBatch

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images and labels to blended ones: mixup, CutMix."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SupervisedTask:
    """One task, with what its losses need besides a batch.

    `labels` are `Task.ground_truth` of the training listing, on the device of the network; None if
    targets come with the images. `class_weights` are factors on the loss of each class,
    `loss_weight` on all losses; `label_smoothing` is the share spread over all classes.
    """

    task: Task
    classes: Classes
    labels: Tensor | None = None
    class_weights: Tensor | None = None
    label_smoothing: float = 0.0
    loss_weight: float = 1.0


class Supervised(Objective[dict[str, TrainBatch]]):
    """Minimise the losses of each task's head; all heads share one pass of the backbone.

    Tasks have the names of their heads in the network ("head" if there is only one). The first
    one is validated, and its goal chooses the best epoch. `mixing` blends images and labels, for
    one classification task only. `location` predicts how far apart tokens lie, as a further loss
    with this `weight`; it is trained too, and dropped afterwards.
    """

    def __init__(
        self,
        tasks: Mapping[str, SupervisedTask],
        preprocessing: Preprocessing,
        mixing: Mixing | None = None,
        *,
        location: RelativeLocation | None = None,
        weight: float = 1.0,
    ) -> None:
        assert mixing is None or len(tasks) == 1, "mixed images have labels of one task"
        self.tasks = dict(tasks)
        self.preprocessing, self.mixing = preprocessing, mixing
        self.auxiliary, self.location, self.weight = location, location, weight

    @property
    def first(self) -> SupervisedTask:
        """The task that is validated."""
        return next(iter(self.tasks.values()))

    def prepare(self, views: Sequence[Batch], device: torch.device) -> dict[str, TrainBatch]:
        """Normalise the images, and look up the labels of each task."""
        (batch,) = views
        sizes = batch.sizes.to(device)
        # Only images with targets are padded: zeros outside the image are set after normalising.
        padded = None if batch.targets is None else sizes
        images = normalise(batch.images.to(device), self.preprocessing, padded)
        targets = batch.targets
        if targets is not None:
            targets = tuple(target.to(device) for target in targets)
        indices = batch.indices.to(device)
        inputs = {}
        for name, row in self.tasks.items():
            labels = None if row.labels is None else row.labels[indices]
            if self.mixing is not None and labels is not None:
                images, labels = self.mixing(images, labels)
            inputs[name] = TrainBatch(
                images=images,
                sizes=sizes,
                labels=labels,
                targets=targets,
                class_weights=row.class_weights,
                label_smoothing=row.label_smoothing,
            )
        return inputs

    def losses(
        self, network: Network, inputs: dict[str, TrainBatch]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the losses of every head; of several, names begin with the head's."""
        first = next(iter(inputs.values()))
        return self.compare(network, self.features(network, first), inputs)

    def features(self, network: Network, batch: TrainBatch) -> Features:
        """Run the backbone once."""
        return network.features(batch.images, batch.sizes, maps=self.location is not None)

    def compare(
        self, network: Network, features: Features, inputs: dict[str, TrainBatch]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the same losses from features of the images."""
        losses: dict[str, Tensor] = {}
        for name, batch in inputs.items():
            row = self.tasks[name]
            head = cast("Head", network.heads[name])
            parts = row.task.losses(head, features, batch, row.classes)
            prefix = f"{name}/" if len(inputs) > 1 else ""
            for part, value in parts.items():
                weighted = value if row.loss_weight == 1.0 else row.loss_weight * value
                losses[prefix + part] = weighted
        return {**losses, **self.location_losses(features)}

    def location_losses(self, features: Features) -> dict[str, Float[Tensor, " B"]]:
        """Compute the loss of relative locations, if there is one."""
        return {} if self.location is None else {"location": self.weight * self.location(features)}

    def evaluate(
        self, network: Network, loader: EvalLoader, device: torch.device, autocast: Autocast
    ) -> Outputs:
        """Predict the validation images as `muntin eval` does."""
        row, was_training = self.first, network.training
        # The predictor puts the network into evaluation mode.
        predictor = Predictor(network, row.task, row.classes, self.preprocessing, device=device)
        try:
            return run_network(predictor, loader, loader.store.listing, autocast=autocast)
        finally:
            network.train(was_training)

    def score(self, parts: Sequence[Outputs], listing: Listing) -> Scored:
        """Compute the figures of the task's metric, and the mean loss where it has one."""
        return compute_figures(parts, self.first.task, self.first.classes, listing)

    def goal(self, figures: Mapping[str, Any]) -> tuple[str, float]:
        """Name and value of the task's main figure."""
        return self.first.task.goal(figures)
