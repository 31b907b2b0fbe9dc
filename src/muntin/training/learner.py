# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A network that learns: one step at a time, with all the state that a step changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from muntin.data.batches import Batch
from muntin.data.randomness import derive_seed
from muntin.data.transforms import AugmentConfig, normalise
from muntin.errors import TrainingError
from muntin.heads.network import Network
from muntin.runs import Run
from muntin.samples import Listing
from muntin.tasks.task import Lesson
from muntin.training.checkpointing import checkpoint_blocks, narrow_residual
from muntin.training.mixing import build_mixing
from muntin.training.optimization import build_optimizers, freeze_stages
from muntin.training.step import TrainingStep

__all__ = ["Learner", "balanced_shares", "class_counts"]


def class_counts(listing: Listing) -> Tensor:
    """Pictures of each class, at least 1, as float."""
    return torch.tensor(listing.class_counts, dtype=torch.float32).clamp(min=1)


def balanced_shares(listing: Listing) -> NDArray[np.float64]:
    """Shares that draw every class equally often; a picture of several counts as its rarest."""
    wanted = (1 / class_counts(listing)).tolist()
    usual = sum(wanted) / len(wanted)
    shares = [max((wanted[i] for i in entry.class_ids), default=usual) for entry in listing.entries]
    return np.array(shares)


Tensors = tuple[Tensor, ...] | list[Tensor]


def _average_by(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential average whose decay rises to `decay`, so that short runs forget the start.

    Source:
        The rise (1 + n) / (10 + n) after n changes is that of TensorFlow's
        ExponentialMovingAverage with `num_updates`.
    """

    @torch.no_grad()
    def average(kept: Tensors, current: Tensors, count: Tensor | int) -> None:
        changes = int(count)
        weight = 1 - min(decay, (1 + changes) / (10 + changes))
        torch._foreach_lerp_(kept, current, weight)

    return average


class Learner:
    """Network, optimisers and averaged weights.

    Args:
        fabric: Devices and precision, launched.
        run: Its config tells how to learn; its batch size is resolved.
        network: Changed by learning.
        listing: The training pictures.
    """

    def __init__(self, fabric: Fabric, run: Run, network: Network, listing: Listing) -> None:
        self.fabric = fabric
        self.run = run
        self.config = run.config.train
        self.network = network
        freeze_stages(network, self.config.freeze)
        optimizers = build_optimizers(network, self.config, self.config.batch_size)
        if self.config.checkpointing or self.config.recomputed_blocks:
            most = None if self.config.checkpointing else self.config.recomputed_blocks
            checkpoint_blocks(network.backbone, most)
        if self.config.residual == "half":
            narrow_residual(network.backbone)
        body: Any = TrainingStep(network, run.task.losses, run.classes)
        if run.config.machine.compile == "on":
            body = torch.compile(body)
        self._step, *self._optimizers = fabric.setup(body, *optimizers)
        self._averaged = None
        if self.config.ema_decay:
            average = _average_by(self.config.ema_decay)
            self._averaged = AveragedModel(network, multi_avg_fn=average).requires_grad_(False)
        table = None if run.task.dense else run.task.table(listing, run.classes)
        self._labels = None if table is None else table.to(fabric.device)
        self._mixing = None
        if isinstance(run.config.augment, AugmentConfig):
            self._mixing = build_mixing(run.config.augment, len(run.classes.names))
        self._class_weights = None
        if self.config.class_weights:
            weights = 1 / run.task.counts(listing).clamp(min=1)
            self._class_weights = (weights / weights.mean()).to(fabric.device)

    @property
    def best_network(self) -> Network:
        """The weights to evaluate and keep: averaged ones if they are."""
        if self._averaged is None:
            return self.network
        averaged: Any = self._averaged.module
        return averaged

    @property
    def learning_rate(self) -> float:
        """Of the first group of parameters."""
        rate: float = self._optimizers[0].param_groups[0]["lr"]
        return rate

    def learn(self, batch: Batch, epoch: int, step: int, *, share: float, last: bool) -> float:
        """Go forward and back on a batch.

        Args:
            batch: Pictures of this process.
            epoch: From 0; with `step` it decides everything random.
            step: Of the epoch, from 0.
            share: Part of the weight change that this batch accounts for.
            last: Whether the weights change after it, so that processes must agree.

        Returns:
            Loss summed over the pictures of this process.

        Raises:
            TrainingError: The loss is not a number.
        """
        fabric = self.fabric
        torch.manual_seed(derive_seed(self.config.seed, epoch, step, fabric.global_rank))
        lesson = self._prepare(batch)
        weights = batch.weights.to(fabric.device)
        with fabric.no_backward_sync(self._step, enabled=not last):
            parts = self._step(lesson)
            total = (sum(parts.values()) * weights).sum()
            # The gradients of the processes are averaged; together they are those of the mean
            # over the pictures of the whole batch.
            fabric.backward(total * (share * fabric.world_size / batch.num_real))
        value = float(total.detach())
        if not math.isfinite(value):
            message = (
                f"the loss must stay a number, got {value} at epoch {epoch + 1}, step {step + 1}. "
                f"Lower train.learning_rate (now {self.config.learning_rate:g}), or use "
                f"--precision fp32. The best weights so far are kept."
            )
            raise TrainingError(message)
        return value

    def _prepare(self, batch: Batch) -> Lesson:
        device = self.fabric.device
        sizes = batch.sizes.to(device)
        padded = None if batch.targets is None else sizes
        images = normalise(batch.images.to(device), self.run.preprocessing, padded)
        labels = None if self._labels is None else self._labels[batch.indices.to(device)]
        if self._mixing is not None and labels is not None:
            images, labels = self._mixing(images, labels)
        targets = batch.targets
        return Lesson(
            images=images,
            sizes=sizes,
            labels=labels,
            targets=None if targets is None else tuple(one.to(device) for one in targets),
            class_weights=self._class_weights,
            label_smoothing=self.config.label_smoothing,
        )

    def change_weights(self, rate_factor: float) -> None:
        """Change the weights by the gradients gathered since the last change."""
        for optimizer in self._optimizers:
            # Muon looks at the direction of a gradient alone.
            if self.config.clip_grad and isinstance(optimizer.optimizer, torch.optim.AdamW):
                self.fabric.clip_gradients(
                    self._step, optimizer, max_norm=self.config.clip_grad, error_if_nonfinite=False
                )
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate_factor
            optimizer.step()
            optimizer.zero_grad()
        if self._averaged is not None:
            self._averaged.update_parameters(self.network)

    def state(self) -> dict[str, Any]:
        """Everything that a step changes."""
        return {
            "network": self.network.state_dict(),
            "averaged": None if self._averaged is None else self._averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.network.load_state_dict(state["network"])
        if self._averaged is not None:
            self._averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.fabric.strategy.precision.load_state_dict(state["precision"])
