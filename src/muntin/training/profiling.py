# SPDX-License-Identifier: Apache-2.0
"""Measured memory and time of a few small training steps of a run."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from muntin.configs import replace as replace_fields
from muntin.data.batches import Batch
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader, Processes, TrainLoader
from muntin.nn.layers import DropPath
from muntin.objectives.teacher_answer import TeacherAnswer
from muntin.samples import Listing
from muntin.training.distillation import add_teacher, sample_answers
from muntin.training.machine import build_fabric
from muntin.training.memory_model import (
    LinearFit,
    MemoryModel,
    StepMemory,
    fit_line,
    fit_memory_model,
)
from muntin.training.memory_trace import record_spans
from muntin.training.recompute import recompute_layers
from muntin.training.request import PreparedRun
from muntin.training.run_objective import build_objective
from muntin.training.trainer import Trainer

REPEATS = 3
"""Number of timed runs; their median is used."""

FRAGMENTATION_SHARE = 0.55
"""Fragmentation of the CPU allocator, as a share of the tensor memory of a step.

Fitted to thirteen measured runs, glibc 2.36 (docs/adr/0022, `benchmarks/bench_plan.py`).
"""


class Timing(NamedTuple):
    """Seconds of a step without data loading, and of one image in loading and in validation.

    `measured` are the measured times by name.
    """

    step: LinearFit
    loading: float
    validation: float
    measured: tuple[tuple[str, float], ...]


class StepProfiler:
    """Runs a few small steps of a copy of the network, and measures their memory and time.

    Drop path is off, so that steps are comparable and memory is that of the largest step. The
    weights do not change, as the learning rate is 0.
    """

    def __init__(self, prepared: PreparedRun) -> None:
        config = prepared.run.config
        # Larger steps give steadier times, but should not exceed the batch of the run.
        batches = (1, 2) if config.train.batch_size <= 4 else (2, 4)
        self.batches: tuple[int, int] = batches
        # Compiling would take longer than the steps; workers would hide the time of loading. Each
        # has one thread.
        self.processes = Processes(threads=1 if config.machine.workers else 0)
        machine = replace_fields(config.machine, {"compile": "off", "workers": 0})
        # What is recomputed is chosen by what is measured here.
        train = replace(
            config.train, checkpointing=False, recomputed_layers=False, recomputed_blocks=0
        )
        self.run = replace(prepared.run, config=replace(config, machine=machine, train=train))
        self.network = copy.deepcopy(prepared.network).train()
        for part in self.network.modules():
            if isinstance(part, DropPath):
                part.eval()
        # Few images are read, and from all over the set: sizes often change along it.
        self.listing = _subset(prepared.train, 4 * batches[1])
        data = self.run.config.data_config
        self.store = ImageCache(self.listing, self.run.preprocessing, data, training=True)
        self.fabric = build_fabric(machine, devices=1)
        network = self.network
        answers, self.teacher_s = sample_answers(self.run, self.listing)
        objective = build_objective(self.run, self.listing, self.fabric.device, network)
        taught = add_teacher(objective, self.run, network.spec, self.fabric, answers)
        self.trainer = Trainer(self.fabric, self.run.config.train, self.network, taught)

    @property
    def device(self) -> torch.device:
        """Device of the steps."""
        return self.fabric.device

    def load_batch(self, count: int) -> Batch:
        """Read and augment `count` images."""
        config = self.run.config
        seed = config.train.seed
        loader = TrainLoader(
            self.store, config.augment, batch_size=count, seed=seed, processes=self.processes
        )
        return next(loader.batches(0, 0, self.run.preprocessing.img_size))

    def train_step(self, batch: Batch) -> None:
        """Run a training step with learning rate 0."""
        views = (batch,) * self.trainer.objective.views
        self.trainer.accumulate_gradients(views, 0, 0, share=1.0, last=True)
        self.trainer.update_weights(0.0)

    def validate(self, count: int) -> None:
        """Run inference on `count` images, as validation does."""
        run = self.run
        # Repeated where the subset is smaller than the batch.
        listing = self.listing.select(i % len(self.listing) for i in range(count))
        store = ImageCache(listing, run.preprocessing, run.config.data_config)
        loader = EvalLoader(store, batch_size=count, processes=self.processes)
        self.trainer.objective.evaluate(
            self.trainer.best_network, loader, self.device, self.fabric.autocast
        )

    def warmup(self) -> None:
        """Run a step and an inference, so that kernels are chosen and optimizer state exists."""
        self.train_step(self.load_batch(self.batches[1]))
        self.validate(self.batches[1])

    def measure_memory(self) -> StepMemory:
        """Measure the memory of steps; call `warmup` before."""
        plain = self._fit_memory()

        def measure_leaner() -> MemoryModel:
            return self._fit_memory() if recompute_layers(self.network) else plain

        return StepMemory(plain, measure_leaner)

    def _fit_memory(self) -> MemoryModel:
        return fit_memory_model(
            self.network,
            lambda count: self.train_step(self.load_batch(count)),
            sum(self.persistent_bytes().values()),
            self.device,
            self.batches,
            FRAGMENTATION_SHARE if self.device.type == "cpu" else 0.0,
        )

    def persistent_bytes(self) -> dict[str, int]:
        """Bytes that live from step to step: of teacher, parameters, optimizer and averages."""
        state = self.trainer.state()
        weights = [*self.network.parameters(), *self.network.buffers()]
        averaged = state["averaged"] or {}
        # Optimizers keep a dictionary for each parameter: moments, and a step count.
        moments = [
            value
            for optimizer in state["optimizers"]
            for row in optimizer["state"].values()
            for value in row.values()
        ]
        answer = getattr(self.trainer.objective, "answer", None)
        beside = answer.teacher.network if isinstance(answer, TeacherAnswer) else None
        return {
            "teacher": 0 if beside is None else _bytes(beside.state_dict().values()),
            "parameters": _bytes(weights),
            "optimizer": _bytes(moments),
            "averaged": _bytes(averaged.values()),
        }

    def measure_validation_memory(self) -> LinearFit:
        """Measure peak tensor memory of inference beyond the weights, in bytes."""
        peaks = []
        for count in self.batches:
            spans = record_spans(self.network, partial(self.validate, count), self.device)
            peaks.append(max(span.peak for span in spans))
        return fit_line(peaks[0], peaks[1], self.batches)

    def time_steps(self) -> Timing:
        """Measure the times of steps, data loading and inference."""
        steps, loading = [], 0.0
        for count in self.batches:
            batch = self.load_batch(count)
            reading = self._median(partial(self.load_batch, count)) / count
            loading = reading * self.trainer.objective.views
            steps.append(self._median(partial(self.train_step, batch)))
        # Noise may make the smaller step nearly free: an image costs at most its share of a step.
        each = min(fit_line(steps[0], steps[1], self.batches).each, steps[1] / self.batches[1])
        validation = self._median(partial(self.validate, self.batches[1])) / self.batches[1]
        named = [(f"step of {n}", seconds) for n, seconds in zip(self.batches, steps, strict=True)]
        named += [("answer of the teacher", self.teacher_s)] if self.teacher_s else []
        return Timing(
            step=LinearFit(steps[1] - each * self.batches[1], each),
            loading=loading,
            validation=validation,
            measured=(*named, ("reading an image", loading), ("validating an image", validation)),
        )

    def cached_bytes(self, *counts: int) -> int:
        """Bytes of cached decoded images: of this profiler, or of sets of so many images."""
        images = [self.store.load(i) for i in range(len(self.listing))]
        sizes = [0 if one is None else one.pixels.nbytes for one in images]
        if not counts:
            return sum(sizes) if self.store.in_memory else 0
        mean = sum(sizes) / len(sizes)
        limit = self.run.config.data_config.cache_mib * 2**20
        # A set that exceeds the limit is not cached at all.
        return sum(int(mean * count) for count in counts if mean * count <= limit)

    def _median(self, work: Callable[[], object]) -> float:
        # Kernels are asynchronous: otherwise only their launch would be timed.
        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        seconds = []
        for _ in range(REPEATS):
            wait()
            start = time.perf_counter()
            work()
            wait()
            seconds.append(time.perf_counter() - start)
        # The median ignores a run that another process has slowed down.
        return statistics.median(seconds)


def measure_step_memory(prepared: PreparedRun) -> StepMemory:
    """Measure the memory of a run's steps, and nothing else."""
    profiler = StepProfiler(prepared)
    profiler.warmup()
    return profiler.measure_memory()


def _subset(listing: Listing, size: int) -> Listing:
    """`size` images of a listing, spread evenly; repeated where the listing is smaller."""
    count = len(listing)
    if count < size:
        return listing.select(i % count for i in range(size))
    return listing.select(i * count // size for i in range(size))


def _bytes(tensors: Iterable[object]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
