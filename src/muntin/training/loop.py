# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, epochs, validation, checkpoints, on one device or several.

Everything random depends on (seed, epoch, step or picture) alone, so a run that is stopped at any
step and resumed has the same bits as one that never stopped (one device, no time limit).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from muntin.data.loading import Batch, EvalLoader, PictureStore, TrainLoader
from muntin.data.randomness import derive_seed
from muntin.data.transforms import normalise
from muntin.errors import TrainingError
from muntin.runs import WEIGHTS, Run
from muntin.scoring import Outputs, run_network
from muntin.training.checkpoint import read_checkpoint, write_checkpoint
from muntin.training.interruption import Interruption
from muntin.training.journal import append_line, drop_lines_from, write_events
from muntin.training.mixing import build_mixing
from muntin.training.optimization import build_optimizers, freeze_stages
from muntin.training.progress import Reporter, as_time
from muntin.training.schedule import rate_factor, size_at
from muntin.weights.files import write_weights

__all__ = ["Fitted", "Stores", "fit"]

VALIDATION_SHARE = 0.04
"""Under a time limit, validation takes at most about this part of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """Pictures to learn from and to validate with."""

    train: PictureStore
    val: PictureStore


@dataclass(kw_only=True, slots=True)
class Position:
    """Where a run stands; saved with it.

    Attributes:
        epoch: Epochs that have ended.
        step: Steps of the present epoch that have ended.
        elapsed_s: Seconds trained, all sittings together.
        loss_sum: Loss summed over the pictures of the present epoch.
        num_seen: Pictures of the present epoch.
        best: Best value of the goal so far.
        best_epoch: Epoch that had it, counted from 1; 0 = none yet.
        stale: Epochs since then that were validated.
        figures: Of the best epoch.
    """

    epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    num_seen: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    stale: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """How training ended.

    Attributes:
        figures: Of the best epoch.
        epochs: Epochs that were trained.
        seconds: How long it took.
        interrupted: Whether it was stopped from outside.
    """

    figures: dict[str, Any]
    epochs: int
    seconds: float
    interrupted: bool


def fit(
    fabric: Fabric,
    run: Run,
    network: nn.Module,
    stores: Stores,
    reporter: Reporter,
    *,
    started: float,
    resume: bool = False,
    stop_after: int = 0,
) -> Fitted:
    """Train a network as a run says, and write the run folder.

    Args:
        fabric: Devices and precision, launched.
        run: Its config tells everything; its batch size is resolved.
        network: Changed.
        stores: The pictures.
        reporter: Shows progress.
        started: `time.monotonic` when the command began; a time limit counts from there.
        resume: Go on from the run's checkpoint.
        stop_after: End after so many steps as if interrupted; 0 = never. For tests.

    Returns:
        The figures of the best epoch.

    Raises:
        TrainingError: The loss is not a number.
        RunError: The run folder cannot be written, or there is nothing to resume.
    """
    loop = _Loop(fabric, run, network, stores, reporter, started)
    if resume:
        loop.load()
    with Interruption(stop_after) as interruption:
        return loop.run_all(interruption)


class _Loop:
    """The moving parts of one training run."""

    def __init__(
        self,
        fabric: Fabric,
        run: Run,
        network: nn.Module,
        stores: Stores,
        reporter: Reporter,
        started: float,
    ) -> None:
        config = run.config
        self.fabric, self.run, self.stores, self.reporter = fabric, run, stores, reporter
        self.config, self.task, self.classes = config.train, run.task, run.classes
        self.started = started
        self.position = Position()
        self.network = network
        freeze_stages(network, self.config.freeze)
        optimizers = build_optimizers(network, self.config, self.config.batch_size)
        body = torch.compile(network) if config.machine.compile == "on" else network
        # Set up a compiled network without moving: fabric finds the module inside by itself.
        self.model, *self.optimizers = fabric.setup(body, *optimizers)
        self.averaged = self._average() if self.config.ema_decay else None
        targets = self.task.targets(stores.train.listing, self.classes)
        self.targets = targets.to(fabric.device)
        self.class_weights = self._weigh_classes()
        self.mixing = build_mixing(config.augment, len(self.classes.names))
        self.loader = TrainLoader(
            stores.train,
            config.augment,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            shares=self._shares() if config.reading.sampler == "balanced" else None,
            rank=fabric.global_rank,
            world=fabric.world_size,
            workers=max(config.machine.workers, 0),
        )
        self._validation_s = 0.0
        self._validated_at = started
        self._rates = (0.0, 0)

    # What is prepared once.

    def _average(self) -> AveragedModel:
        decay = get_ema_multi_avg_fn(self.config.ema_decay)
        return AveragedModel(self.network, multi_avg_fn=decay).requires_grad_(False)

    def _class_counts(self) -> Tensor:
        counts = torch.tensor(self.stores.train.listing.class_counts, dtype=torch.float32)
        return counts.clamp(min=1)

    def _weigh_classes(self) -> Tensor | None:
        if not self.config.class_weights:
            return None
        weights = 1 / self._class_counts()
        return (weights / weights.mean()).to(self.fabric.device)

    def _shares(self) -> Any:  # noqa: ANN401 (numpy's array type says no more)
        per_class = 1 / self._class_counts()
        entries = self.stores.train.listing.entries
        mean = float(per_class.mean())
        rarest = [max((float(per_class[i]) for i in e.class_ids), default=mean) for e in entries]
        return torch.tensor(rarest, dtype=torch.float64).numpy()

    # Where it stands.

    def elapsed(self) -> float:
        """Seconds since the command began, sittings before a resume included."""
        return self.position.elapsed_s + time.monotonic() - self.started

    def progress(self) -> float:
        """Part of the training that is done, by steps or by the clock, whichever is further."""
        total = self.config.epochs * len(self.loader)
        done = (self.position.epoch * len(self.loader) + self.position.step) / total
        limit = self.config.max_time_s
        if limit:
            # What comes after the last step takes time too.
            reserve = 5 + 0.01 * limit + 1.5 * self._validation_s
            done = max(done, self.elapsed() / max(limit - reserve, 1e-9))
            if self.fabric.world_size > 1:
                done = float(self.fabric.broadcast(done))
        return min(done, 1.0)

    # One step.

    def train_step(self, batch: Batch, epoch: int, scale: float, updates: bool) -> float:
        """Learn from a batch; give the loss, averaged over the pictures of this process."""
        fabric, config = self.fabric, self.config
        seed = derive_seed(config.seed, epoch, self.position.step, fabric.global_rank)
        torch.manual_seed(seed)
        images = normalise(batch.images.to(fabric.device), self.run.preprocessing)
        targets = self.targets[batch.indices.to(fabric.device)]
        if self.mixing is not None:
            images, targets = self.mixing(images, targets)
        weights = batch.weights.to(fabric.device)
        with fabric.no_backward_sync(self.model, enabled=not updates):
            logits = self.model(images)
            losses = self.task.loss(
                logits, targets, self.classes, self.class_weights, config.label_smoothing
            )
            # Each process averages its own; together that is the mean over the whole batch.
            loss = (losses * weights).sum() * fabric.world_size / batch.num_real
            fabric.backward(loss * scale)
        value = float((losses.detach() * weights).sum())
        if not math.isfinite(value):
            message = (
                f"the loss must stay a number, got {value} at epoch {epoch + 1}, step "
                f"{self.position.step + 1} (pictures {batch.indices[:4].tolist()} ...). Lower "
                f"train.learning_rate (now {config.learning_rate}), or use --precision fp32. "
                f"The best weights so far are kept."
            )
            raise TrainingError(message)
        return value

    def update(self) -> None:
        """Change the weights by the gradients, and let the average follow."""
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if self.config.clip_grad and parameters:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_grad)
        factor = rate_factor(self.config, self.progress())
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
            optimizer.zero_grad()
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def train_epoch(self, interruption: Interruption) -> bool:
        """Go through the present epoch from the present step; False if it was cut short."""
        position, accumulate = self.position, self.config.accumulate
        epoch, total = position.epoch, len(self.loader)
        size = self._size()
        batches = self.loader.batches(epoch, position.step, size)
        since, pictures = time.monotonic(), 0
        for batch in batches:
            left = total - position.step
            group = min(accumulate, left + position.step % accumulate)
            updates = (position.step + 1) % accumulate == 0 or left == 1
            value = self.train_step(batch, epoch, 1 / group, updates)
            if updates:
                self.update()
            position.step += 1
            position.loss_sum += value
            position.num_seen += int(batch.weights.sum())
            pictures += batch.num_real
            self._rates = (pictures / (time.monotonic() - since), pictures)
            self._show(size)
            if interruption.wanted(self.fabric):
                return False
            progress = self.progress()
            if progress >= 1 and self.config.max_time_s:
                break
            if self._size() != size:
                return self.train_epoch(interruption)
        return True

    def _size(self) -> tuple[int, int]:
        stride = self.network.backbone.spec.strides[-1]
        return size_at(self.config, self.run.preprocessing.img_size, stride, self.progress())

    def _show(self, size: tuple[int, int]) -> None:
        position, done = self.position, self.progress()
        spent = self.elapsed()
        facts = {
            "loss": f"{position.loss_sum / max(position.num_seen, 1):.3f}",
            "lr": f"{self.optimizers[0].param_groups[0]['lr']:.1e}",
            "img/s": f"{self._rates[0]:.0f}",
            "mem": f"{memory_mib():.0f}M",
            "left": as_time(spent * (1 - done) / done) if done > 0.01 else "?",
        }
        if size != self.run.preprocessing.img_size:
            facts["size"] = f"{size[0]}x{size[1]}"
        if position.best_epoch:
            name, value = self.task.goal(position.figures)
            facts["best"] = f"{name} {value:.3f}"
        self.reporter.step(f"epoch {position.epoch + 1}/{self.config.epochs}", done, facts)

    # Epochs.

    def run_all(self, interruption: Interruption) -> Fitted:
        """Train until the epochs or the time are over, or somebody stops it."""
        position, config = self.position, self.config
        while position.epoch < config.epochs and self.progress() < 1:
            if not self.train_epoch(interruption):
                self.save()
                return self._ended(interrupted=True)
            self.end_epoch()
            if config.early_stop and position.stale >= config.early_stop:
                self.reporter.note(
                    f"Stopped: {position.stale} epochs without a better result than epoch "
                    f"{position.best_epoch}."
                )
                break
        return self._ended(interrupted=False)

    def end_epoch(self) -> None:
        """Validate, keep the best weights, write journal and checkpoint."""
        position = self.position
        position.epoch += 1
        position.step = 0
        last = position.epoch == self.config.epochs or self.progress() >= 1
        line: dict[str, Any] = {"epoch": position.epoch}
        line["train_loss"] = self._mean_loss()
        line["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        line["images_per_s"] = round(self._rates[0], 1)
        line["memory_mib"] = round(memory_mib())
        line["seconds"] = round(self.elapsed(), 1)
        if last or self._may_validate():
            figures = self.validate()
            line.update({f"val_{k}": v for k, v in figures.items() if isinstance(v, (int, float))})
            self._compare(figures)
        position.loss_sum, position.num_seen = 0.0, 0
        if self.fabric.is_global_zero:
            append_line(self.run.path, line)
            write_events(self.run.path, line)
        self._tell(line)
        self.save()

    def _mean_loss(self) -> float:
        sums = torch.tensor([self.position.loss_sum, float(self.position.num_seen)])
        if self.fabric.world_size > 1:
            sums = self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum").cpu()
        return float(sums[0] / max(float(sums[1]), 1))

    def _may_validate(self) -> bool:
        if not self.config.max_time_s:
            return True
        since = time.monotonic() - self._validated_at
        return bool(since * VALIDATION_SHARE >= self._validation_s)

    def validate(self) -> dict[str, Any]:
        """Score the averaged weights, or the plain ones where no average is kept."""
        begun = time.monotonic()
        fabric = self.fabric
        network = self.network if self.averaged is None else self.averaged.module
        store = self.stores.val
        outputs = run_network(
            network,
            EvalLoader(
                store,
                batch_size=max(64, self.config.batch_size),
                rank=fabric.global_rank,
                world=fabric.world_size,
                workers=max(self.run.config.machine.workers, 0),
            ),
            pre=store.pre,
            targets=self.task.targets(store.listing, self.classes),
            loss=lambda logits, wanted: self.task.loss(logits, wanted, self.classes, None, 0.0),
            device=fabric.device,
            autocast=fabric.autocast(),
        )
        metric = self.task.metric(self.classes)
        losses = []
        for part in self._gather(outputs):
            metric.update(part.logits, part.targets)
            losses.append(part.losses)
        self._validated_at = time.monotonic()
        self._validation_s = self._validated_at - begun
        return {**metric.compute(), "loss": float(torch.cat(losses).mean())}

    def _gather(self, outputs: Outputs) -> list[Outputs]:
        """Outputs of every process."""
        if self.fabric.world_size == 1:
            return [outputs]
        parts: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(parts, outputs)
        return parts

    def _compare(self, figures: dict[str, Any]) -> None:
        position = self.position
        _, value = self.task.goal(figures)
        if value <= position.best:
            position.stale += 1
            return
        position.best, position.best_epoch, position.stale = value, position.epoch, 0
        position.figures = figures
        if self.fabric.is_global_zero:
            network = self.network if self.averaged is None else self.averaged.module
            metadata = {"muntin": self.run.config.model_name, "task": self.task.name}
            write_weights(self.run.path / WEIGHTS, network.state_dict(), metadata)

    def _tell(self, line: dict[str, Any]) -> None:
        parts = [f"epoch {line['epoch']}/{self.config.epochs}", f"loss {line['train_loss']:.3f}"]
        goal, _ = self.task.goal(self.position.figures)
        if f"val_{goal}" in line:
            parts.append(f"val {goal} {line[f'val_{goal}']:.4f}")
            parts.append(f"val loss {line['val_loss']:.3f}")
        parts += [f"lr {line['learning_rate']:.1e}", f"{line['images_per_s']:.0f} img/s"]
        parts += [f"{line['memory_mib']} MiB", as_time(line["seconds"])]
        if self.position.best_epoch == line["epoch"]:
            parts.append("best")
        self.reporter.note("  ".join(parts))

    # Saving.

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs."""
        position = {name: getattr(self.position, name) for name in Position.__slots__}
        position["elapsed_s"] = self.elapsed()
        position["best"] = None if self.position.best == -math.inf else self.position.best
        return {
            "position": position,
            "network": self.network.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def save(self) -> None:
        """Write the checkpoint."""
        if self.fabric.is_global_zero:
            write_checkpoint(self.run.path, self.state())
        self.fabric.barrier()

    def load(self) -> None:
        """Take up the checkpoint of the run."""
        state = read_checkpoint(self.run.path)
        self.network.load_state_dict(state["network"])
        if self.averaged is not None and state["averaged"] is not None:
            self.averaged.load_state_dict(state["averaged"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        position = state["position"]
        position["best"] = -math.inf if position["best"] is None else position["best"]
        self.position = Position(**position)
        if self.fabric.is_global_zero:
            drop_lines_from(self.run.path, self.position.epoch + 1)

    def _ended(self, *, interrupted: bool) -> Fitted:
        return Fitted(
            figures=self.position.figures,
            epochs=self.position.epoch,
            seconds=self.elapsed(),
            interrupted=interrupted,
        )


def memory_mib() -> float:
    """Peak memory: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
