# SPDX-License-Identifier: Apache-2.0
"""A short look before a long training: at the data, and whether a few images can be learnt.

A copy of the network learns eight images, without augmentation and with the optimizer and the
learning rate of the run. If the loss does not fall, other rates tell whether the rate was the
cause. The network of the run, and all random numbers, stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from muntin.configs import replace as replace_fields
from muntin.data.batches import Batch
from muntin.data.loading import EvalLoader, TrainLoader
from muntin.diagnosing.data_faults import find_data_faults
from muntin.diagnosing.findings import Finding
from muntin.diagnosing.run_faults import find_setting_faults
from muntin.errors import TrainingError
from muntin.training.optimization import scaled_learning_rate
from muntin.training.progress import Reporter, format_duration
from muntin.training.request import PreparedRun

if TYPE_CHECKING:
    from muntin.training.profiling import StepProfiler

LONG_S = 600.0
"""Seconds of training from which it is checked first."""

NUM_IMAGES = 8

_LIMIT_S, _SHARE = 60.0, 0.04  # of the check, and of a time limit
# Loss, relative to that at the start; that it burst is clear after any number of steps.
_LEARNT, _MOVED, _ROSE, _BURST = 0.3, 0.9, 1.1, 10.0
_FEWEST, _ENOUGH, _MOST = 15, 40, 100  # steps
_KNOWN = 0.5  # of the main figure
_WARMUP = 5  # steps
_USUAL_RATE = 1e-3  # of adamw, at which any network moves
_FLOPS = {"cuda": 1e14, "cpu": 2e11}  # a second, more than there are: a bound of the time
_OFF = (
    "flip flip_vertical jitter erase mixup cutmix crop turn shift rotation rotate half_body occlude"
)
_PLAIN: dict[str, object] = {
    **dict.fromkeys(_OFF.split(), 0.0), "auto": "none", "crop_scale": 1.0, "crop_ratio": 1.0,
    "window": 1.0, "dominant": 1.0, "short_sides": (),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _LossCurve:
    """How the loss went: at the start, at the end, and the steps between."""

    start: float
    end: float
    steps: int

    @property
    def ratio(self) -> float:
        """The loss at the end, relative to that at the start."""
        return self.end / max(self.start, 1e-9)

    @property
    def is_unclear(self) -> bool:
        """Whether there were too few steps to tell anything."""
        return self.steps < _FEWEST and self.ratio < _BURST


def check_first(
    prepared: PreparedRun,
    start_steps: Callable[[PreparedRun], StepProfiler],
    reporter: Reporter,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Check a long training before it starts, as `train.overfit_check` says; report what is found.

    `start_steps` copies a network to try steps. Of k folds the first is checked: the others have
    its settings and nearly its images.

    Raises:
        TrainingError: It would be wasted; the message has every finding.
    """
    run, config = prepared.run, prepared.run.config.train
    unwanted = config.overfit_check == "off" or run.task.kind == "pretraining"
    unwanted |= run.config.data_config.fold > 1
    if unwanted or (config.overfit_check == "auto" and not _may_be_long(prepared)):
        return
    with torch.random.fork_rng():
        check = _OverfitCheck(prepared, start_steps, clock)
        if config.overfit_check == "auto" and not config.max_time_s and not check.is_long():
            return
        sets = {"train": prepared.train, "val": prepared.val}
        found = [*find_data_faults(sets, pre=run.preprocessing), *find_setting_faults(run.config)]
        if not any(one.is_error for one in found):
            found += check.run(reporter)
    for one in found:
        reporter.note(str(one))
    if any(one.is_error for one in found):
        causes = " ".join(str(one) for one in found)
        message = f"a training must be able to learn, but: {causes} To train all the same: --set "
        message += "train.overfit_check=off"
        raise TrainingError(message)


def _may_be_long(prepared: PreparedRun) -> bool:
    """Whether a training may take `LONG_S`, on a faster machine than there is."""
    config = prepared.run.config
    if config.train.max_time_s:
        return config.train.max_time_s > LONG_S
    weights = sum(parameter.numel() for parameter in prepared.network.parameters())
    tokens = math.prod(prepared.run.preprocessing.img_size) / 4**2  # at the finest map
    flops = 6 * weights * tokens * len(prepared.train) * config.train.epochs
    return flops / _FLOPS.get(config.machine.device, 1e14) > LONG_S


class _OverfitCheck:
    """Steps of copies of a network on the same few images."""

    def __init__(
        self,
        prepared: PreparedRun,
        start_steps: Callable[[PreparedRun], StepProfiler],
        clock: Callable[[], float],
    ) -> None:
        run, config = prepared.run, prepared.run.config
        names = {field.name for field in fields(config.augment)}
        plain = {name: value for name, value in _PLAIN.items() if name in names}
        if "scale" in names:
            scale = getattr(config.augment, "scale", 0.0)
            plain["scale"] = 0.0 if isinstance(scale, float) else (1.0, 1.0)
        augment = replace_fields(config.augment, plain)
        listing = prepared.train
        labelled = [n for n, one in enumerate(listing.entries) if one.class_ids or one.mask]
        chosen = labelled or [*range(len(listing))]
        few = listing.select(chosen[:: -(-len(chosen) // NUM_IMAGES)])
        few_run = replace(run, config=replace(config, augment=augment))
        self.prepared = replace(prepared, run=few_run, train=few)
        self.whole, self.clock = prepared, clock
        self.deadline = clock() + min(_LIMIT_S, _SHARE * config.train.max_time_s or _LIMIT_S)
        self.start_steps = start_steps
        self.profiler = start_steps(self.prepared)

    def is_long(self) -> bool:
        """Whether training takes `LONG_S`, by the time of a step."""
        self.profiler.warmup()
        batch = self.profiler.load_batch(self.profiler.batches[1])
        start = self.clock()
        self.profiler.train_step(batch)
        each = (self.clock() - start) / self.profiler.batches[1]
        return each * len(self.whole.train) * self.whole.run.config.train.epochs > LONG_S

    def run(self, reporter: Reporter) -> list[Finding]:
        """Learn the images, and judge how that went."""
        start, rate = self.clock(), scaled_learning_rate(self.prepared.run.config.train)
        course = self._learn(1.0, 0.5)
        loss = f"loss {course.start:.3g} -> {course.end:.3g} in {course.steps} steps at {rate:.2g}"
        code = "" if course.ratio < _MOVED or course.is_unclear else self._find_cause(course, rate)
        if code:
            where = "train.learning_rate" if code.startswith("rate") else "the first steps"
            return [Finding(code=code, where=where, detail=loss)]
        name, value = self._score()
        few = course.steps < _FEWEST
        slow = ": too few steps to tell" if few else ": no fault found, but slow"
        hint = "" if course.ratio < _MOVED else slow
        reporter.note(
            f"check first: {len(self.prepared.train)} images, {loss}{hint}, {name} {value:.2f} on "
            f"them, {format_duration(self.clock() - start)}"
        )
        return []

    def _find_cause(self, course: _LossCurve, rate: float) -> str:
        """The code of the fault of a loss that did not fall; "" if there may be none."""
        if not rate:
            return "rate-low"
        high = rate > _USUAL_RATE or not course.ratio <= _ROSE
        # One that is too high by little is right after a longer warmup than here.
        factors = (0.3, min(0.01, 0.1 * _USUAL_RATE / rate)) if high else (_USUAL_RATE / rate,)
        for number, factor in enumerate(factors):
            other = self._learn(factor, 1 / (len(factors) - number))
            if other.ratio < _MOVED:
                if high:
                    return "rate-high" if number else ""
                # One that is low for a minute may be right for days.
                config = self.whole.run.config.train
                steps = config.epochs * len(self.whole.train) / config.batch_size
                return "rate-low" if rate * steps < _USUAL_RATE else ""
            if other.is_unclear:
                return "rate-high" if number and not course.ratio < _BURST else ""
        self.profiler = self.start_steps(self.prepared)
        if self._score()[1] > _KNOWN:  # weights that have learnt this already
            return ""
        sizes = [(p.numel(), p.requires_grad) for p in self.profiler.network.parameters()]
        trained = sum(size for size, wanted in sizes if wanted)
        return "frozen" if trained < sum(size for size, _ in sizes) / 50 else "no-progress"

    def _learn(self, factor: float, share: float) -> _LossCurve:
        """Train a fresh copy on the images at `factor` times the rate of the run."""
        self.profiler = profiler = self.start_steps(self.prepared)
        until = self.clock() + share * max(self.deadline - self.clock(), 0.0)
        parts = list(self._batches())
        losses: list[float] = []
        for step in count():
            try:
                loss = self._step(profiler, parts)
                losses.append(loss)
                end = sum(losses[-3:]) / len(losses[-3:])
                stuck = step >= _ENOUGH and not end < _MOVED * losses[0]
                if end < _LEARNT * losses[0] or stuck or step >= _MOST or self.clock() > until:
                    break
                profiler.trainer.update_weights(factor * min(1.0, (step + 1) / _WARMUP))
                profiler.trainer.require_finite()
            except TrainingError:
                end = math.inf
                break
        return _LossCurve(start=losses[0] if losses else math.inf, end=end, steps=len(losses))

    def _batches(self) -> Iterator[Batch]:
        """Each image once, in batches as small as those that are measured."""
        store, config = self.profiler.store, self.prepared.run.config
        loader = TrainLoader(store, config.augment, batch_size=len(store), seed=config.train.seed)
        (batch,) = loader.batches(0, 0, self.prepared.run.preprocessing.img_size)
        num_distinct, size = len(self.prepared.train), self.profiler.batches[1]
        places = {int(number) % num_distinct: row for row, number in enumerate(batch.indices)}
        rows = torch.tensor([*places.values()])
        for part in rows.split(size):
            yield replace(batch.select(part), num_real=len(part))

    def _step(self, profiler: StepProfiler, parts: list[Batch]) -> float:
        """Accumulate the gradients of all images; give their mean loss."""
        total = sum(len(part.indices) for part in parts)
        loss = 0.0
        for number, part in enumerate(parts):
            views = (part,) * profiler.trainer.objective.views
            share, last = len(part.indices) / total, number + 1 == len(parts)
            loss += profiler.trainer.accumulate_gradients(views, 0, 0, share=share, last=last)
        return loss / total

    def _score(self) -> tuple[str, float]:
        """Name and value of the main figure on the images."""
        profiler = self.profiler
        objective, loader = profiler.trainer.objective, EvalLoader(profiler.store, batch_size=2)
        outputs = objective.evaluate(
            profiler.network, loader, profiler.device, profiler.fabric.autocast
        )
        return objective.goal(objective.score([outputs], profiler.listing).figures)
