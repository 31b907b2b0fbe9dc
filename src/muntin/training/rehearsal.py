# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Steps as a run would take them, on a few of its images: what a plan is drawn from."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from lightning_fabric import Fabric

from muntin.configs import replace as replace_fields
from muntin.data.batches import Batch
from muntin.data.cache import ImageCache
from muntin.data.loading import EvalLoader, TrainLoader
from muntin.nn.drop_path import DropPath
from muntin.samples import Listing
from muntin.training.choices import PRECISIONS
from muntin.training.footprint import Footprint, Line, measure_footprint
from muntin.training.preparation import Prepared
from muntin.training.supervision import build_objective
from muntin.training.timeline import record_spans
from muntin.training.trainer import Trainer

__all__ = ["Rehearsal", "Timing"]

REPEATS = 3
"""Timed steps of a batch; the median counts."""

HOLE_SHARE = 0.55
"""Memory of a step that the C library cannot give again, as a share of what tensors of it hold.

A line through thirteen measured runs, glibc 2.36 (docs/adr/0022, `benchmarks/bench_plan.py`).
"""


class Timing(NamedTuple):
    """Seconds that were measured.

    Attributes:
        step: Of a step without reading, by its batch.
        reading: To read and change an image.
        looking: To look at one in validation.
        batches: Images of the two steps that were taken.
        taken: Of these steps.
    """

    step: Line
    reading: float
    looking: float
    batches: tuple[int, int]
    taken: tuple[float, float]

    @property
    def measured(self) -> tuple[tuple[str, float], ...]:
        """What was measured, by name."""
        steps = [(f"step of {n}", s) for n, s in zip(self.batches, self.taken, strict=True)]
        return (*steps, ("reading an image", self.reading), ("looking at one", self.looking))


class Rehearsal:
    """Small steps of a run.

    Nothing is left out at random, so that steps can be compared and memory is what the worst
    step needs.

    Args:
        prepared: The run; its network is changed.
    """

    def __init__(self, prepared: Prepared) -> None:
        batches = (1, 2) if prepared.run.config.train.batch_size <= 4 else (2, 4)
        self.batches: tuple[int, int] = batches
        machine = replace_fields(prepared.run.config.machine, {"compile": "off", "workers": 0})
        self.run = replace(prepared.run, config=replace(prepared.run.config, machine=machine))
        self.network = prepared.network.train()
        for part in self.network.modules():
            if isinstance(part, DropPath):
                part.eval()
        self.listing = _choose(prepared.train, 4 * batches[1])
        reading = self.run.config.data_config
        self.store = ImageCache(self.listing, self.run.preprocessing, reading, approximate=True)
        with _quiet_fabric():
            self.fabric = Fabric(
                accelerator=machine.device,
                devices=1,
                precision=PRECISIONS[machine.precision],  # type: ignore[arg-type]
            )
        objective = build_objective(self.run, self.listing, self.fabric.device)
        self.trainer = Trainer(self.fabric, self.run.config.train, self.network, objective)

    @property
    def device(self) -> torch.device:
        """Where steps are taken."""
        return self.fabric.device

    def load(self, count: int) -> Batch:
        """Read and change so many images."""
        config = self.run.config
        loader = TrainLoader(
            self.store, config.augment, batch_size=count, seed=config.train.seed, workers=0
        )
        return next(loader.batches(0, 0, self.run.preprocessing.img_size))

    def learn(self, batch: Batch) -> None:
        """Take a step that does not change the weights."""
        self.trainer.accumulate_gradients((batch,), 0, 0, share=1.0, last=True)
        self.trainer.change_weights(0.0)

    def look(self, count: int) -> None:
        """Say what is in so many images, as validation does."""
        run = self.run
        listing = self.listing.select(i % len(self.listing) for i in range(count))
        store = ImageCache(listing, run.preprocessing, run.config.data_config, full_labels=True)
        loader = EvalLoader(store, batch_size=count)
        self.trainer.objective.evaluate(
            self.trainer.best_network, loader, self.device, self.fabric.autocast
        )

    def warm_up(self) -> None:
        """Do everything once: libraries choose kernels, the optimiser makes its moments."""
        self.learn(self.load(self.batches[1]))
        self.look(self.batches[1])

    def weigh(self) -> Footprint:
        """Measure the memory of steps, after others."""
        found = measure_footprint(
            self.network,
            lambda count: self.learn(self.load(count)),
            sum(self.held().values()),
            self.device,
            self.batches,
        )
        return replace(found, hole_share=HOLE_SHARE if self.device.type == "cpu" else 0.0)

    def held(self) -> dict[str, int]:
        """Bytes that stay from step to step, by what they are."""
        state = self.trainer.state()
        weights = [*self.network.parameters(), *self.network.buffers()]
        averaged = state["averaged"] or {}
        moments = [
            value
            for optimizer in state["optimizers"]
            for row in optimizer["state"].values()
            for value in row.values()
        ]
        return {
            "parameters": _bytes(weights),
            "optimizer": _bytes(moments),
            "averaged": _bytes(averaged.values()),
        }

    def weigh_looking(self) -> Line:
        """Measure what tensors hold at most while nothing is learnt, beyond the weights."""
        peaks = []
        for count in self.batches:
            spans = record_spans(self.network, partial(self.look, count), self.device)
            peaks.append(max(span.most for span in spans))
        each = max(0.0, (peaks[1] - peaks[0]) / (self.batches[1] - self.batches[0]))
        return Line(peaks[1] - each * self.batches[1], each)

    def time_steps(self) -> Timing:
        """Measure seconds of small steps."""
        taken, reading = [], 0.0
        for count in self.batches:
            batch = self.load(count)
            reading = self._median(partial(self.load, count)) / count
            taken.append(self._median(partial(self.learn, batch)))
        low, high = taken
        each = max(0.0, (high - low) / (self.batches[1] - self.batches[0]))
        each = min(each, high / self.batches[1])
        return Timing(
            step=Line(high - each * self.batches[1], each),
            reading=reading,
            looking=self._median(partial(self.look, self.batches[1])) / self.batches[1],
            batches=self.batches,
            taken=(low, high),
        )

    def kept_bytes(self, *counts: int) -> int:
        """Bytes of decoded images that stay in memory: its own, or of sets of so many."""
        images = [self.store.load(i) for i in range(len(self.listing))]
        sizes = [0 if one is None else one.pixels.nbytes for one in images]
        if not counts:
            return sum(sizes) if self.store.in_memory else 0
        mean = sum(sizes) / len(sizes)
        most = self.run.config.data_config.cache_mib * 2**20
        return sum(int(mean * count) for count in counts if mean * count <= most)

    def _median(self, work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(REPEATS):
            self._wait()
            begun = time.perf_counter()
            work()
            self._wait()
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


@contextmanager
def _quiet_fabric() -> Iterator[None]:
    """Keep Fabric from telling its precision: the run itself says it."""
    log = logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _choose(listing: Listing, most: int) -> Listing:
    """Some images of a listing, evenly, and again from the start where there are too few."""
    count = len(listing)
    if count < most:
        return listing.select(i % count for i in range(most))
    return listing.select(i * count // most for i in range(most))


def _bytes(tensors: Iterable[object]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
