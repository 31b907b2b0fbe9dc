# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, epochs, validation, checkpoints, on one device or several.

All random numbers depend only on (seed, epoch, step or image), so a run that is interrupted and
resumed is bit-equal to one that was not (on one device, without a time limit).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric

from muntin.data.batches import Batch, evaluation_batch
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader, Processes, TrainLoader
from muntin.devices import memory_mib
from muntin.objectives.objective import Objective
from muntin.runs import WEIGHTS, append_journal, drop_epochs_from, write_results
from muntin.scoring.evaluator import Outputs, Scored
from muntin.shapes import Size
from muntin.training.checkpoint import Interruption, read_checkpoint, write_checkpoint
from muntin.training.optimization import img_size_at, lr_factor
from muntin.training.progress import Reporter, format_duration, write_events, writes_events
from muntin.training.request import PreparedRun
from muntin.training.trainer import Trainer, class_balanced_shares
from muntin.weights.weight_files import write_weights

VALIDATION_SHARE = 0.04
"""Under a time limit, at most about this share of the time is spent on validation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """Result of a training; `figures` are the metrics of the best epoch.

    `best` has the scored outputs of that epoch; None if no epoch since the last resume was the
    best, and in all processes but the first.
    """

    figures: dict[str, Any]
    epochs: int
    seconds: float
    interrupted: bool
    best: Scored | None = None


@dataclass(kw_only=True, slots=True)
class _State:
    """Progress of a run; part of the checkpoint.

    `step` and `loss_sum` (over `num_seen` images) are of the current epoch, `elapsed_s` of the time
    before the last resume; `best_epoch` counts from 1, and `stale` the validations since then.
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


class Loop:
    """Trains the network of a prepared run in place, and writes the run folder."""

    def __init__(
        self, fabric: Fabric, prepared: PreparedRun, objective: Objective[Any], reporter: Reporter
    ) -> None:
        run, network = prepared.run, prepared.network
        self.fabric, self.run, self.reporter = fabric, run, reporter
        self.config, data = run.config.train, run.config.data_config
        self.train = ImageCache(prepared.train, run.preprocessing, data, training=True)
        self.val = ImageCache(prepared.val, run.preprocessing, data)
        self.state = _State()
        self.objective = objective
        compiled = run.config.machine.compile == "on"
        self.trainer = Trainer(fabric, self.config, network, objective, compiled=compiled)
        balanced = data.sampler == "balanced"
        # One loader for each view: the same images in the same order, augmented differently.
        self.loader, *self.more_views = (
            TrainLoader(
                self.train,
                run.config.augment,
                batch_size=self.config.batch_size,
                seed=self.config.seed,
                shares=class_balanced_shares(prepared.train) if balanced else None,
                processes=self._processes(),
                view=view,
            )
            for view in range(objective.views)
        )
        # Sizes that are multiples of the coarsest stride need no padding.
        self.stride = network.spec.strides[-1]
        self.started = self._validated_at = time.monotonic()
        self._validation_s = self._images_per_s = 0.0
        self._best: Scored | None = None

    def fit(self, *, started: float, resume: bool = False, stop_after: int = 0) -> FitResult:
        """Train until the last epoch, the time limit, early stopping or an interruption.

        A time limit counts from `started`, a `time.monotonic`. `stop_after` stops after that many
        steps as if interrupted; 0 = never.
        """
        self.started = self._validated_at = started
        if resume:
            self._load()
        with Interruption(stop_after) as interruption:
            interrupted = self._run_all(interruption)
        return FitResult(
            figures=self.state.figures,
            epochs=self.state.epoch,
            seconds=self._elapsed(),
            interrupted=interrupted,
            best=self._best,
        )

    def _processes(self) -> Processes:
        workers = max(self.run.config.machine.workers, 0)
        return Processes(self.fabric.global_rank, self.fabric.world_size, workers)

    def _elapsed(self) -> float:
        """Seconds of training, those before a resume included."""
        return self.state.elapsed_s + time.monotonic() - self.started

    def _progress(self) -> float:
        """Finished part of the training in [0, 1], by steps or by time, whichever is larger."""
        steps = self.state.epoch * len(self.loader) + self.state.step
        done = steps / (self.config.epochs * len(self.loader))
        limit = self.config.max_time_s
        if limit:
            # Time for what follows the last step: validation, saving, images.
            reserve = 5 + 0.01 * limit + 1.5 * self._validation_s
            done = max(done, self._elapsed() / max(limit - reserve, 1e-9))
            # Clocks differ: all processes must stop at the same step.
            if self.fabric.world_size > 1:
                done = float(self.fabric.broadcast(done))
        return min(done, 1.0)

    def _run_all(self, interruption: Interruption) -> bool:
        """Train until the end; return whether it was interrupted."""
        state, config = self.state, self.config
        # Even the shortest time limit allows one step and one validation.
        over = state.epoch >= config.epochs or (self._progress() >= 1 and state.best_epoch)
        if over:
            self.reporter.note("The run has already finished: nothing to train.")
        while not over:
            if not self._train_epoch(interruption):
                self._save()
                return True
            over = self._end_epoch()
            if config.early_stop and state.stale >= config.early_stop:
                self.reporter.note(
                    f"Early stopping: no improvement in the {state.stale} epochs since epoch "
                    f"{state.best_epoch}."
                )
                break
        return False

    def _train_epoch(self, interruption: Interruption) -> bool:
        """Train the rest of the current epoch; False if interrupted."""
        done, size = self._train_at(self._size(self._progress()), interruption)
        while done and size:
            done, size = self._train_at(size, interruption)
        return done

    def _train_at(self, size: Size, interruption: Interruption) -> tuple[bool, Size | None]:
        """Train with one image size; return whether to continue, and the next size."""
        state, accumulate, progress = self.state, self.config.accumulate, self._progress()
        since, images = time.monotonic(), 0
        # Another image size needs other batches: the loaders continue at the current step.
        for views in self._batches(size):
            batch = views[0]
            # Counted from the start of the epoch, so that a resumed run groups its steps as before.
            first = state.step - state.step % accumulate
            end = min(first + accumulate, len(self.loader))  # the last group may have fewer steps
            share, last = 1 / (end - first), state.step + 1 == end
            value = self.trainer.accumulate_gradients(
                views, state.epoch, state.step, share=share, last=last
            )
            if last:
                self.trainer.update_weights(lr_factor(self.config, progress))
            state.step += 1
            state.loss_sum += value
            state.num_seen += int(batch.weights.sum())
            images += batch.num_real
            self._images_per_s = images / (time.monotonic() - since)
            progress = self._progress()
            self._report_step(size, progress)
            # Accumulated gradients are not part of a checkpoint: stop only after a weight update.
            if interruption.requested(self.fabric) and last:
                return False, None
            if progress >= 1:
                return True, None
            if (next_size := self._size(progress)) != size:
                return True, next_size
        return True, None

    def _batches(self, size: Size) -> Iterator[tuple[Batch, ...]]:
        """Batches of the rest of the epoch, one for each view."""
        epoch, step = self.state.epoch, self.state.step
        with ExitStack() as stack:  # worker processes of all views end with the loop
            views = [
                stack.enter_context(closing(loader.batches(epoch, step, size)))
                for loader in (self.loader, *self.more_views)
            ]
            yield from zip(*views, strict=True)

    def _size(self, progress: float) -> Size:
        return img_size_at(self.config, self.run.preprocessing.img_size, self.stride, progress)

    def _report_step(self, size: Size, done: float) -> None:
        state = self.state
        facts = {
            "loss": f"{state.loss_sum / max(state.num_seen, 1):.3f}",
            "lr": f"{self.trainer.learning_rate:.1e}",
            "img/s": f"{self._images_per_s:.0f}",
            "mem": f"{memory_mib():.0f}M",
            "left": format_duration(self._elapsed() * (1 - done) / done) if done > 0.01 else "?",
        }
        if size != self.run.preprocessing.img_size:
            facts["size"] = f"{size[0]}x{size[1]}"
        if state.best_epoch:
            name, value = self.objective.goal(state.figures)
            facts["best"] = f"{name} {value:.3f}"
        self.reporter.step(self._title(), done, facts)

    def _title(self, ended: bool = False) -> str:
        number = self.state.epoch + (0 if ended else 1)
        return f"epoch {number}" + ("" if self.config.max_time_s else f"/{self.config.epochs}")

    def _end_epoch(self) -> bool:
        """Validate and save; return whether the training is over."""
        state = self.state
        if state.epoch == 0 and state.step < len(self.loader):
            steps = f"{state.step} of {len(self.loader)} steps"
            self.reporter.note(f"Time limit reached after {steps} of epoch 1.")
        state.epoch, state.step = state.epoch + 1, 0
        last = state.epoch == self.config.epochs or self._progress() >= 1
        line: dict[str, Any] = {
            "epoch": state.epoch,
            "train_loss": self._mean_loss(),
            "learning_rate": self.trainer.learning_rate,
            "images_per_s": round(self._images_per_s, 1),
            "memory_mib": round(memory_mib()),
        }
        state.loss_sum, state.num_seen = 0.0, 0
        if last or self._should_validate():
            scored = self._validate()
            numbers = {k: v for k, v in scored.figures.items() if isinstance(v, (int, float))}
            line.update({f"val_{name}": value for name, value in numbers.items()})
            self._update_best(scored)
        line["seconds"] = round(self._elapsed(), 1)
        # Before the checkpoint: if writing that fails, resuming removes the lines after it.
        if self.fabric.is_global_zero:
            append_journal(self.run.path, line)
            if writes_events(self.run.config.machine.tensorboard):
                write_events(self.run.path, line)
        self._report_epoch(line)
        self._save()
        return last

    def _mean_loss(self) -> float:
        # Sums: processes may have seen different numbers of images.
        sums = torch.tensor([self.state.loss_sum, float(self.state.num_seen)])
        if self.fabric.world_size > 1:
            gathered: Any = self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum")
            sums = gathered.cpu()
        return float(sums[0] / max(float(sums[1]), 1))

    def _should_validate(self) -> bool:
        # Clocks differ: a process that validated alone would wait for the others forever.
        since = time.monotonic() - self._validated_at
        due = not self.config.max_time_s or since * VALIDATION_SHARE >= self._validation_s
        return bool(self.fabric.broadcast(due)) if self.fabric.world_size > 1 else due

    def _validate(self) -> Scored:
        """Evaluate the weights that would be saved."""
        start, fabric, cache = time.monotonic(), self.fabric, self.val
        loader = EvalLoader(
            cache,
            batch_size=evaluation_batch(cache.pre, self.config.validation_batch),
            processes=self._processes(),
        )
        outputs = self.objective.evaluate(
            self.trainer.best_network, loader, fabric.device, fabric.autocast
        )
        scored = self.objective.score(self._gather(outputs), cache.listing)
        self._validated_at = time.monotonic()
        self._validation_s = self._validated_at - start
        return scored

    def _gather(self, outputs: Outputs) -> list[Outputs]:
        parts: list[Any] = [outputs] * self.fabric.world_size
        if len(parts) > 1:
            # As objects: outputs of detectors differ in length from image to image.
            torch.distributed.all_gather_object(parts, outputs)
        return parts

    def _update_best(self, scored: Scored) -> None:
        state = self.state
        _, value = self.objective.goal(scored.figures)
        if state.best is not None and value <= state.best:
            state.stale += 1
            return
        state.best, state.best_epoch, state.stale = value, state.epoch, 0
        state.figures = scored.figures
        if self.fabric.is_global_zero:
            self._best = scored
            metadata = {
                "dialect": "muntin",
                "model": self.run.config.model_name,
                "task": self.run.task.name,
                "class_names": json.dumps(self.run.classes.names),
                "license": self.run.config.license,
            }
            weights = self.trainer.best_network.state_dict()
            write_weights(self.run.path / WEIGHTS, weights, metadata)
            write_results(self.run.path, state.epoch, scored.figures)

    def _report_epoch(self, line: dict[str, Any]) -> None:
        parts = [self._title(ended=True), f"loss {line['train_loss']:.3f}"]
        goal, _ = self.objective.goal(self.state.figures)
        for name, digits in ((goal, 4), ("loss", 3)):
            if f"val_{name}" in line:
                parts.append(f"val {name} {line[f'val_{name}']:.{digits}f}")
        parts += [f"lr {line['learning_rate']:.1e}", f"{line['images_per_s']:.0f} img/s"]
        parts += [f"{line['memory_mib']} MiB", format_duration(line["seconds"])]
        if self.state.best_epoch == line["epoch"]:
            parts.append("best")
        self.reporter.note("  ".join(parts))

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            position = {name: getattr(self.state, name) for name in _State.__slots__}
            position["elapsed_s"] = self._elapsed()
            write_checkpoint(self.run.path, {"position": position, **self.trainer.state()})
        # No process may continue before the checkpoint is complete.
        self.fabric.barrier()

    def _load(self) -> None:
        saved = read_checkpoint(self.run.path)
        self.trainer.load_state(saved)
        self.state = _State(**saved["position"])
        if self.fabric.is_global_zero:
            drop_epochs_from(self.run.path, self.state.epoch + 1)
