# SPDX-License-Identifier: Apache-2.0
"""Training steps compared with peers: same weights, images and optimizer, interleaved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.benching.peers import BUILDERS, BenchRequest, build_peers, make_deterministic
from muntin.benching.result_rows import (
    OURS,
    BenchmarkCase,
    compare_rows,
    summarize,
    time_interleaved,
)
from muntin.devices import has_compiler
from muntin.zoo.model_building import create_model

LEARNING_RATE = 1e-4


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that every case uses."""
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)


def bench_training(
    request: BenchRequest,
    *,
    optimize: Callable[[nn.Module], torch.optim.Optimizer] = make_optimizer,
) -> dict[str, Any]:
    """Measure optimizer steps of a classifier on the CPU, for muntin and its peers.

    A step is forward, cross-entropy, backward and AdamW (`optimize`), in fp32 and under bf16
    autocast. Dropout and drop path are off, so losses are comparable: those of the first step
    (``max_error``, absolute) and of the second, which depends on the gradients
    (``second_error``), are checked against the same two steps in float64, which come first.
    """
    size, log = request.img_size, request.log
    chosen = request.select_peers([*BUILDERS])
    torch.manual_seed(0)
    network = create_model(request.model)
    images = torch.randn(request.batch_size, 3, *size)
    targets = torch.arange(request.batch_size) % 1000
    modules = {OURS: copy.deepcopy(network), **build_peers(request, chosen, network)}
    log("computing two reference steps in float64")
    doubled = make_deterministic(network.double())
    truth = TrainStep(doubled, doubled, optimize(doubled), images.double(), targets).take_first()
    steps = []
    for owner, module in modules.items():
        make_deterministic(module)
        optimizer = optimize(module)
        start = {key: value.clone() for key, value in module.state_dict().items()}
        for engine, runs in _engines(module, request):
            for bf16 in (False, True):
                step = TrainStep(module, runs, optimizer, images, targets, bf16, start)
                steps.append((owner, engine, step))
    cases = [
        BenchmarkCase(
            owner=owner, variant=engine, precision="bf16" if step.bf16 else "fp32", run=step
        )
        for owner, engine, step in steps
    ]
    log(f"timing {len(cases)} cases in {request.rounds} interleaved rounds")
    # The first call takes the two compared steps from the shared weights; the second is the first
    # ordinary step. Both are warm-up.
    timings = time_interleaved(cases, rounds=request.rounds, warmups=2)
    rows = []
    for timing, (_, _, step) in zip(timings, steps, strict=True):
        errors = np.abs(step.first - truth)
        rates = [request.batch_size / seconds for seconds in timing.seconds]
        rows.append(
            timing.to_row(
                images_per_s=summarize(rates),
                max_error=float(errors[0]),
                second_error=float(errors[1]),
            )
        )
    return request.describe("training", compare_rows(rows), optimizer="AdamW")


def _engines(
    module: nn.Module, request: BenchRequest
) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    yield "eager", module
    if request.compiled and has_compiler():
        yield "compile", torch.compile(module)
    elif request.compiled:
        request.log("skipped torch.compile: no C++ compiler found")


@dataclass(slots=True, eq=False)
class TrainStep:
    """A training step; the first call takes two of them from the initial weights.

    The precisions of one library share a module and its optimizer, which saves memory.
    """

    module: nn.Module
    runs: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    images: Tensor
    targets: Tensor
    bf16: bool = False
    start: dict[str, Tensor] | None = None
    first: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __call__(self) -> NDArray[np.float32]:
        """Take a step and return its loss."""
        losses = np.array([self._step()]) if len(self.first) else self.take_first()
        return losses.astype(np.float32)

    def take_first(self) -> NDArray[np.float64]:
        """Take two steps from the initial weights and return their losses."""
        if self.start is not None:
            self.module.load_state_dict(self.start)
            self.optimizer.state.clear()
        self.first = np.array([self._step(), self._step()])
        return self.first

    def _step(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.runs(self.images)
        loss = F.cross_entropy(logits.float() if self.bf16 else logits, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()
