# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, epochs, validation, checkpoints, on one device or several.

Everything random depends on (seed, epoch, step or image) alone, so a run that is stopped at any
step and resumed has the same bits as one that never stopped (one device, no time limit).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric

from muntin.data.batches import evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader, TrainLoader
from muntin.devices import memory_mib
from muntin.heads.network import Network
from muntin.objectives.objective import Objective
from muntin.runs import WEIGHTS, Run, write_results
from muntin.scoring.outputs import Outputs, Scored
from muntin.shapes import Size
from muntin.training.checkpoint import read_checkpoint, write_checkpoint
from muntin.training.interruption import Interruption
from muntin.training.journal import append_line, drop_lines_from, write_events
from muntin.training.progress import Reporter, as_time
from muntin.training.schedule import rate_factor, size_at
from muntin.training.supervision import balanced_shares
from muntin.training.trainer import Trainer
from muntin.weights.files import write_weights

__all__ = ["Fitted", "Stores", "fit"]

VALIDATION_SHARE = 0.04
"""Under a time limit, validation takes at most about this part of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stores:
    """Images to learn from and to validate with."""

    train: ImageCache
    val: ImageCache


@dataclass(kw_only=True, slots=True)
class Position:
    """Where a run stands; saved with it.

    Attributes:
        epoch: Epochs that have ended.
        step: Steps of the present epoch that have ended.
        elapsed_s: Seconds trained in earlier sittings.
        loss_sum: Loss summed over the images of the present epoch.
        num_seen: Images of the present epoch.
        best: Best value of the goal so far; None before the first validation.
        best_epoch: Epoch that had it, counted from 1.
        stale: Epochs validated since then.
        figures: Of the best epoch.
    """

    epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    num_seen: int = 0
    best: float | None = None
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
        best: What the figures were computed from; None when no epoch was the best since the run
            was resumed, and in processes beside the first.
    """

    figures: dict[str, Any]
    epochs: int
    seconds: float
    interrupted: bool
    best: Scored | None = None


def fit(
    fabric: Fabric,
    run: Run,
    network: Network,
    stores: Stores,
    reporter: Reporter,
    objective: Objective[Any],
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
        stores: The images.
        reporter: Shows progress.
        objective: What is learnt.
        started: `time.monotonic` when the command began; a time limit counts from there.
        resume: Go on from the run's checkpoint.
        stop_after: End after so many steps as if interrupted; 0 = never.

    Returns:
        The figures of the best epoch.

    Raises:
        TrainingError: The loss is not a number.
        RunError: The run folder cannot be written, or there is nothing to resume.
    """
    loop = _Loop(fabric, run, network, stores, reporter, objective, started)
    if resume:
        loop.load()
    with Interruption(stop_after) as interruption:
        return loop.run_all(interruption)


class _Loop:
    """Where a run stands and what it needs to go on."""

    def __init__(
        self,
        fabric: Fabric,
        run: Run,
        network: Network,
        stores: Stores,
        reporter: Reporter,
        objective: Objective[Any],
        started: float,
    ) -> None:
        self.fabric, self.run, self.stores, self.reporter = fabric, run, stores, reporter
        self.config, self.started = run.config.train, started
        self.position = Position()
        self.objective = objective
        compiled = run.config.machine.compile == "on"
        self.trainer = Trainer(fabric, self.config, network, objective, compiled=compiled)
        balanced = run.config.data_config.sampler == "balanced"
        self.loader = TrainLoader(
            stores.train,
            run.config.augment,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            shares=balanced_shares(stores.train.listing) if balanced else None,
            rank=fabric.global_rank,
            world=fabric.world_size,
            workers=max(run.config.machine.workers, 0),
        )
        self.stride = network.spec.strides[-1]
        self._validation_s, self._validated_at = 0.0, started
        self._images_per_s = 0.0
        self._best: Scored | None = None

    def elapsed(self) -> float:
        """Seconds since the command began, sittings before a resume included."""
        return self.position.elapsed_s + time.monotonic() - self.started

    def progress(self) -> float:
        """Part of the training that is done, by steps or by the clock, whichever is further."""
        steps = self.position.epoch * len(self.loader) + self.position.step
        done = steps / (self.config.epochs * len(self.loader))
        limit = self.config.max_time_s
        if limit:
            # What comes after the last step takes time too.
            reserve = 5 + 0.01 * limit + 1.5 * self._validation_s
            done = max(done, self.elapsed() / max(limit - reserve, 1e-9))
            if self.fabric.world_size > 1:
                done = float(self.fabric.broadcast(done))
        return min(done, 1.0)

    def run_all(self, interruption: Interruption) -> Fitted:
        """Train until the epochs or the time are over, or somebody stops it."""
        position, config = self.position, self.config
        # However short the time is, there is one step and one validation.
        over = position.epoch >= config.epochs or (self.progress() >= 1 and position.best_epoch)
        if over:
            self.reporter.note("Nothing is left to train: the run was finished.")
        while not over:
            if not self.train_epoch(interruption):
                self.save()
                return self._ended(interrupted=True)
            over = self.end_epoch()
            if config.early_stop and position.stale >= config.early_stop:
                self.reporter.note(
                    f"Stopped: {position.stale} epochs without a better result than epoch "
                    f"{position.best_epoch}."
                )
                break
        return self._ended(interrupted=False)

    def train_epoch(self, interruption: Interruption) -> bool:
        """Go through the rest of the present epoch; False if somebody stopped it."""
        size: Size | None = self._size()
        while size:
            done, size = self._train_at(size, interruption)
            if not done:
                return False
        return True

    def _train_at(self, size: Size, interruption: Interruption) -> tuple[bool, Size | None]:
        """Train at one size of images; give whether to go on, and the next size in this epoch."""
        position, accumulate = self.position, self.config.accumulate
        total, progress = len(self.loader), self.progress()
        since, images = time.monotonic(), 0
        for batch in self.loader.batches(position.epoch, position.step, size):
            first = position.step - position.step % accumulate
            last = position.step + 1 == min(first + accumulate, total)
            share = 1 / (min(first + accumulate, total) - first)
            value = self.trainer.accumulate_gradients(
                (batch,), position.epoch, position.step, share=share, last=last
            )
            if last:
                self.trainer.change_weights(rate_factor(self.config, progress))
            position.step += 1
            position.loss_sum += value
            position.num_seen += int(batch.weights.sum())
            images += batch.num_real
            self._images_per_s = images / (time.monotonic() - since)
            progress = self.progress()
            self._show(size, progress)
            # Gradients that wait for their weight change are not part of a checkpoint.
            if interruption.wanted(self.fabric) and last:
                return False, None
            if progress >= 1:
                return True, None
            now = self._size(progress)
            if now != size:
                return True, now
        return True, None

    def _size(self, progress: float | None = None) -> Size:
        done = self.progress() if progress is None else progress
        return size_at(self.config, self.run.preprocessing.img_size, self.stride, done)

    def _show(self, size: Size, done: float) -> None:
        position = self.position
        facts = {
            "loss": f"{position.loss_sum / max(position.num_seen, 1):.3f}",
            "lr": f"{self.trainer.learning_rate:.1e}",
            "img/s": f"{self._images_per_s:.0f}",
            "mem": f"{memory_mib():.0f}M",
            "left": as_time(self.elapsed() * (1 - done) / done) if done > 0.01 else "?",
        }
        if size != self.run.preprocessing.img_size:
            facts["size"] = f"{size[0]}x{size[1]}"
        if position.best_epoch:
            name, value = self.objective.goal(position.figures)
            facts["best"] = f"{name} {value:.3f}"
        self.reporter.step(self._title(), done, facts)

    def _title(self, ended: bool = False) -> str:
        number = self.position.epoch + (0 if ended else 1)
        return f"epoch {number}" + ("" if self.config.max_time_s else f"/{self.config.epochs}")

    def end_epoch(self) -> bool:
        """Validate, keep the best weights, write journal and checkpoint; True after the last."""
        position = self.position
        if position.epoch == 0 and position.step < len(self.loader):
            text = f"The time is over after {position.step} of {len(self.loader)} steps of epoch 1."
            self.reporter.note(text)
        position.epoch, position.step = position.epoch + 1, 0
        last = position.epoch == self.config.epochs or self.progress() >= 1
        line: dict[str, Any] = {
            "epoch": position.epoch,
            "train_loss": self._mean_loss(),
            "learning_rate": self.trainer.learning_rate,
            "images_per_s": round(self._images_per_s, 1),
            "memory_mib": round(memory_mib()),
        }
        position.loss_sum, position.num_seen = 0.0, 0
        if last or self._may_validate():
            scored = self.validate()
            numbers = {k: v for k, v in scored.figures.items() if isinstance(v, (int, float))}
            line.update({f"val_{name}": value for name, value in numbers.items()})
            self._compare(scored)
        line["seconds"] = round(self.elapsed(), 1)
        if self.fabric.is_global_zero:
            append_line(self.run.path, line)
            write_events(self.run.path, line)
        self._tell(line)
        self.save()
        return last

    def _mean_loss(self) -> float:
        sums = torch.tensor([self.position.loss_sum, float(self.position.num_seen)])
        if self.fabric.world_size > 1:
            gathered: Any = self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum")
            sums = gathered.cpu()
        return float(sums[0] / max(float(sums[1]), 1))

    def _may_validate(self) -> bool:
        since = time.monotonic() - self._validated_at
        wanted = not self.config.max_time_s or since * VALIDATION_SHARE >= self._validation_s
        return bool(self.fabric.broadcast(wanted)) if self.fabric.world_size > 1 else wanted

    def validate(self) -> Scored:
        """Score the weights that would be kept."""
        begun = time.monotonic()
        fabric, run, store = self.fabric, self.run, self.stores.val
        loader = EvalLoader(
            store,
            batch_size=evaluation_batch(store.pre, self.config.validation_batch),
            rank=fabric.global_rank,
            world=fabric.world_size,
            workers=max(run.config.machine.workers, 0),
        )
        outputs = self.objective.evaluate(
            self.trainer.best_network, loader, fabric.device, fabric.autocast
        )
        scored = self.objective.score(self._gather(outputs), store.listing)
        self._validated_at = time.monotonic()
        self._validation_s = self._validated_at - begun
        return scored

    def _gather(self, outputs: Outputs) -> list[Outputs]:
        """Outputs of every process."""
        if self.fabric.world_size == 1:
            return [outputs]
        parts: list[Any] = [None] * self.fabric.world_size
        torch.distributed.all_gather_object(parts, outputs)
        return parts

    def _compare(self, scored: Scored) -> None:
        """Keep the weights if they are the best so far."""
        position = self.position
        _, value = self.objective.goal(scored.figures)
        if position.best is not None and value <= position.best:
            position.stale += 1
            return
        position.best, position.best_epoch, position.stale = value, position.epoch, 0
        position.figures = scored.figures
        if self.fabric.is_global_zero:
            self._best = scored
            metadata = {
                "dialect": "muntin",
                "model": self.run.config.model_name,
                "task": self.run.task.name,
                "class_names": json.dumps(self.run.classes.names),
                "license": self.run.config.license,
            }
            state = self.trainer.best_network.state_dict()
            write_weights(self.run.path / WEIGHTS, state, metadata)
            write_results(self.run.path, position.epoch, scored.figures)

    def _tell(self, line: dict[str, Any]) -> None:
        parts = [self._title(ended=True), f"loss {line['train_loss']:.3f}"]
        goal, _ = self.objective.goal(self.position.figures)
        if f"val_{goal}" in line:
            parts.append(f"val {goal} {line[f'val_{goal}']:.4f}")
        if "val_loss" in line:
            parts.append(f"val loss {line['val_loss']:.3f}")
        parts += [f"lr {line['learning_rate']:.1e}", f"{line['images_per_s']:.0f} img/s"]
        parts += [f"{line['memory_mib']} MiB", as_time(line["seconds"])]
        if self.position.best_epoch == line["epoch"]:
            parts.append("best")
        self.reporter.note("  ".join(parts))

    def save(self) -> None:
        """Write everything that resuming needs."""
        if self.fabric.is_global_zero:
            position = {name: getattr(self.position, name) for name in Position.__slots__}
            position["elapsed_s"] = self.elapsed()
            write_checkpoint(self.run.path, {"position": position, **self.trainer.state()})
        self.fabric.barrier()

    def load(self) -> None:
        """Take up the checkpoint of the run."""
        state = read_checkpoint(self.run.path)
        self.trainer.load_state(state)
        self.position = Position(**state["position"])
        if self.fabric.is_global_zero:
            drop_lines_from(self.run.path, self.position.epoch + 1)

    def _ended(self, *, interrupted: bool) -> Fitted:
        return Fitted(
            figures=self.position.figures,
            epochs=self.position.epoch,
            seconds=self.elapsed(),
            interrupted=interrupted,
            best=self._best,
        )
