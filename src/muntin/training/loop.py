# SPDX-License-Identifier: Apache-2.0
"""The training loop: steps, epochs, validation, checkpoints, on one device or several.

All random numbers depend only on (seed, epoch, step or image), so a run that is interrupted and
resumed is bit-equal to one that was not (on one device, without a time limit).
"""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning_fabric import Fabric

from muntin.collectives import add_numbers
from muntin.data.batches import Batch
from muntin.data.cache import ImageCache
from muntin.data.loading import Processes, TrainLoader, describe_failure
from muntin.devices import memory_mib
from muntin.errors import ConfigError, MuntinWarning, RunError, TrainingError
from muntin.objectives.objective import Objective
from muntin.run_files import write_best
from muntin.scoring.evaluator import Scored
from muntin.shapes import Size
from muntin.training.checkpoint import (
    FOLDER,
    Interruption,
    Stopped,
    read_checkpoint,
    write_checkpoint,
)
from muntin.training.global_batch import pad_alike, see_whole_batch
from muntin.training.low_rank import merged_state
from muntin.training.optimization import img_size_at, lr_factor
from muntin.training.position import Phase, Position, read_position
from muntin.training.processes import note_progress
from muntin.training.progress import Reporter, format_duration
from muntin.training.request import PreparedRun
from muntin.training.run_logs import Records
from muntin.training.time_limit import Clock, TimeLimit
from muntin.training.trainer import Trainer, class_balanced_shares
from muntin.training.validation import Validation
from muntin.untrusted import reading
from muntin.weights.weight_files import write_weights


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


class Loop:
    """Trains the network of a prepared run in place, and writes the run folder."""

    def __init__(
        self,
        fabric: Fabric,
        prepared: PreparedRun,
        objective: Objective[Any],
        reporter: Reporter,
        clock: Clock = time.monotonic,
    ) -> None:
        run, network = prepared.run, prepared.network
        self.fabric, self.run, self.reporter = fabric, run, reporter
        self.records = Records(run, active=fabric.is_global_zero)
        self.config, data = run.config.train, run.config.data_config
        self.train = ImageCache(prepared.train, run.preprocessing, data, training=True, shared=True)
        self.val = ImageCache(prepared.val, run.preprocessing, data, shared=True)
        self.state = Position()
        self.objective = objective
        see_whole_batch(network)
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
        self.clock, self.time_limit = clock, TimeLimit(limit_s=self.config.max_time_s)
        self.time_limit.expect_saving(sum(p.numel() for p in network.parameters()))
        self.validation = Validation(
            self.trainer, self.val, self._processes(), time_limit=self.time_limit, clock=clock
        )
        self.started = self._stepped_at = clock()
        self._images_per_s = 0.0
        self._safe = self.state
        self._best: Scored | None = None

    def fit(self, *, started: float, resume: bool = False, stop_after: int = 0) -> FitResult:
        """Train until the last epoch, the time limit, early stopping or an interruption.

        A time limit counts from `started`, a time of the clock. `stop_after` stops after that many
        steps as if interrupted; 0 = never.
        """
        self.started = self.validation.ended = started
        if resume:
            self._load()
        with Interruption(stop_after) as self.interruption:
            try:
                interrupted = self._run_all()
            except Stopped:
                self.state = self._safe
                interrupted = self._stop()
            except RuntimeError as error:
                if failure := describe_failure(error):
                    raise TrainingError(failure) from error
                raise
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
        return self.state.elapsed_s + self.clock() - self.started

    def _progress(self) -> float:
        """Finished part of the training in [0, 1], by steps or by time, whichever is larger."""
        steps = self.state.epoch * len(self.loader) + self.state.step
        done = steps / (self.config.epochs * len(self.loader))
        if self.config.max_time_s:
            done = max(done, self.time_limit.progress(self._elapsed()))
            # Clocks differ: all processes must stop at the same step.
            if self.fabric.world_size > 1:
                done = float(self.fabric.broadcast(done))
        return min(done, 1.0)

    def _run_all(self) -> bool:
        """Train until the end; return whether it was interrupted."""
        state, config = self.state, self.config
        # Even the shortest time limit allows one step and one validation. An epoch that was
        # interrupted after its last step still needs its validation.
        ended = state.best_epoch and not state.step and self._progress() >= 1
        over = state.epoch >= config.epochs or ended
        if over:
            self.reporter.note("The run has already finished: nothing to train.")
        elif config.max_time_s and not self.time_limit.validation_s:  # known in a resumed run
            self.validation.estimate(self.interruption)
        while not over:
            if not self._train_epoch():
                return self._stop()
            over = self._end_epoch()
            if config.early_stop and state.stale >= config.early_stop:
                self.reporter.note(
                    f"Early stopping: no improvement in {state.stale} validations; the best epoch "
                    f"is {state.best_epoch}."
                )
                break
        return False

    def _stop(self) -> bool:
        """Save the run to be resumed."""
        self.trainer.require_finite()
        self._save()
        return True

    def _train_epoch(self) -> bool:
        """Train the rest of the current epoch; False if interrupted."""
        self._stepped_at = self.clock()
        done, phase = self._train_at(self._phase(self._progress()))
        while done and phase:
            done, phase = self._train_at(phase)
        return done

    def _train_at(self, phase: Phase) -> tuple[bool, Phase | None]:
        """Train in one phase; return whether to continue, and the next phase."""
        state, accumulate, progress = self.state, self.config.accumulate, self._progress()
        since, images = self.clock(), 0
        self._safe = replace(state)
        # Another phase needs other batches: the loaders continue at the current step.
        for views in self._batches(phase):
            batch = views[0]
            note_progress(f"epoch {state.epoch + 1}, step {state.step + 1}")
            # Counted from the start of the epoch, so that a resumed run groups its steps as before.
            first = state.step - state.step % accumulate
            end = min(first + accumulate, len(self.loader))  # the last group may have fewer steps
            share, last = 1 / (end - first), state.step + 1 == end
            factor = lr_factor(self.config, progress) if last else None
            value = self._learn(views, share, factor)
            state.step += 1
            if value is not None:
                state.loss_sum += value
                state.num_seen += int(batch.weights.sum())
            images += batch.num_real
            before, self._stepped_at = self._stepped_at, self.clock()
            self.time_limit.add_step(self._stepped_at - before)
            self._images_per_s = images / max(self._stepped_at - since, 1e-9)
            progress = self._progress()
            self._report_step(phase.size, progress)
            # Accumulated gradients are not part of a checkpoint: stop only after a weight update.
            if last:
                self._safe = replace(state)
            if self.interruption.requested(self.fabric) and last:
                return False, None
            if progress >= 1:
                return True, None
            if (next_phase := self._phase(progress)) != phase:
                return True, next_phase
        return True, None

    def _learn(self, views: tuple[Batch, ...], share: float, factor: float | None) -> float | None:
        """Learn from a batch; with `factor`, update the weights. None if the step is left out.

        A step that fails in half precision is left out, and all that follow are made in fp32.
        """
        state, trainer = self.state, self.trainer
        last = factor is not None
        try:
            value = trainer.accumulate_gradients(
                views, state.epoch, state.step, share=share, last=last
            )
        except TrainingError as error:
            if not trainer.leave_half_precision():
                raise
            text = f"{str(error).partition('. ')[0]}: left out. Training goes on in fp32"
            warnings.warn(text, MuntinWarning, stacklevel=2)
            return None
        if factor is not None:
            trainer.update_weights(factor)
        return value

    def _batches(self, phase: Phase) -> Iterator[tuple[Batch, ...]]:
        """Batches of the rest of the epoch, one for each view."""
        epoch, step = self.state.epoch, self.state.step
        with ExitStack() as stack:  # worker processes of all views end with the loop
            views = [
                stack.enter_context(
                    closing(loader.batches(epoch, step, phase.size, mixed=phase.mixed))
                )
                for loader in (self.loader, *self.more_views)
            ]
            together = zip(*views, strict=True)
            while True:
                with self.interruption.waiting(self.fabric):
                    batches = next(together, None)
                if batches is None:
                    return
                yield pad_alike(batches, self.run.preprocessing)

    def _phase(self, progress: float) -> Phase:
        size = img_size_at(self.config, self.run.preprocessing.img_size, self.stride, progress)
        return Phase(size, progress < self.run.config.augment.mixed_part)

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
            name, _ = self.objective.goal(state.figures)  # its value may be negated
            facts["best"] = f"{name} {state.figures.get(name, 0):.3f}"
        self.reporter.step(self._title(), done, facts)

    def _title(self, ended: bool = False) -> str:
        number = self.state.epoch + (0 if ended else 1)
        return f"epoch {number}" + ("" if self.config.max_time_s else f"/{self.config.epochs}")

    def _end_epoch(self) -> bool:
        """Validate and save; return whether the training is over."""
        state, steps = self.state, self.state.step
        self.trainer.require_finite()
        self.time_limit.closing_s = self.clock() - self._stepped_at
        last = state.epoch + 1 == self.config.epochs or self._progress() >= 1
        due = last or self.validation.is_due(first=not state.best_epoch)
        note_progress(f"epoch {state.epoch + 1}, validation")
        scored = self.validation.score(self.interruption) if due else None
        state.epoch, state.step = state.epoch + 1, 0
        # Sums: processes may have seen different numbers of images.
        loss, num_seen = add_numbers(state.loss_sum, state.num_seen)
        line: dict[str, Any] = {
            "epoch": state.epoch,
            "steps": steps,
            "train_loss": loss / max(num_seen, 1),
            "learning_rate": self.trainer.learning_rate,
            "images_per_s": round(self._images_per_s, 1),
            "memory_mib": round(memory_mib()),
        }
        state.loss_sum, state.num_seen = 0.0, 0
        saving = self.clock()
        if scored is not None:
            numbers = {k: v for k, v in scored.figures.items() if isinstance(v, (int, float))}
            line.update({f"val_{name}": value for name, value in numbers.items()})
            self._update_best(scored)
        line["seconds"] = round(self._elapsed(), 1)
        # Before the checkpoint: if writing that fails, resuming removes the lines after it.
        self.records.add(line)
        self._report_epoch(line)
        self._save()
        self.time_limit.saving_s = self.clock() - saving
        # What was only estimated may have left time for more; the last weights are validated.
        over = state.epoch == self.config.epochs or (due and self._progress() >= 1)
        if over and state.epoch == 1 and steps < len(self.loader):
            part = f"{steps} of {len(self.loader)} steps"
            self.reporter.note(f"Time limit reached after {part} of epoch 1.")
        return over

    def _update_best(self, scored: Scored) -> None:
        state = self.state
        rank = self._rank(scored.figures)
        best = None if state.best is None else self._rank(state.figures)
        state.stale = 0 if best is None or rank > best else state.stale + 1
        # Of equals the later one is kept, which learnt more, as where nothing has been found yet.
        if best is not None and rank < best:
            return
        state.best, state.best_epoch, state.figures = rank[0], state.epoch, scored.figures
        if self.fabric.is_global_zero:
            self._best = scored
            metadata = {
                "dialect": "muntin",
                "model": self.run.config.model_name,
                "task": self.run.task.name,
                "class_names": json.dumps(self.run.classes.names),
                "license": self.run.config.license,
            }
            weights = merged_state(self.trainer.best_network)
            write = partial(write_weights, tensors=weights, metadata=metadata)
            write_best(self.run.path, write, state.epoch, scored.figures)

    def _rank(self, figures: dict[str, Any]) -> tuple[float, float]:
        """What an epoch is compared by: the goal, then the loss in validation, if there is one."""
        loss = figures.get("loss")
        known = isinstance(loss, float) and math.isfinite(loss)
        return self.objective.goal(figures)[1], -float(loss or 0.0) if known else -math.inf

    def _report_epoch(self, line: dict[str, Any]) -> None:
        parts = [self._title(ended=True), f"loss {line['train_loss']:.3f}"]
        goal = self.objective.goal(self.state.figures)[0] if self.state.best_epoch else ""
        for name, digits in {goal: 4, "loss": 3}.items():
            if f"val_{name}" in line:
                parts.append(f"val {name} {line[f'val_{name}']:.{digits}f}")
        parts += [f"lr {line['learning_rate']:.1e}", f"{line['images_per_s']:.0f} img/s"]
        parts += [f"{line['memory_mib']} MiB", format_duration(line["seconds"])]
        if self.state.best_epoch == line["epoch"]:
            parts.append("best")
        self.reporter.note("  ".join(parts))

    def _save(self) -> None:
        loss, num_seen = add_numbers(self.state.loss_sum, self.state.num_seen)
        if self.fabric.is_global_zero or self.trainer.sharded:
            position = {name: getattr(self.state, name) for name in Position.__slots__}
            position |= {"elapsed_s": self._elapsed(), "loss_sum": loss, "num_seen": int(num_seen)}
            saved = {"position": position, "timing": self.time_limit.measured()}
            write_checkpoint(self.run.path, {**saved, **self.trainer.state()}, self.trainer.sharded)
        # No process may continue before the checkpoint is complete.
        self.fabric.barrier()

    def _load(self) -> None:
        saved = read_checkpoint(self.run.path)
        advice = "Restore it, or start a new run in another folder."
        with reading(str(self.run.path / FOLDER), advice, RunError):
            try:
                self.state = read_position(saved["position"], len(self.loader))
                if not self.fabric.is_global_zero:  # sums over all processes
                    self.state = replace(self.state, loss_sum=0.0, num_seen=0)
            except ConfigError as error:
                raise ValueError(str(error)) from error  # without the name of the checkpoint
            self.trainer.load_state(saved)
            self.time_limit.restore(saved.get("timing", {}))
        self.records.drop_from(self.state.epoch + 1)
