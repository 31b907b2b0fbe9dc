# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Training steps compared with peers: same weights, images and optimizer, interleaved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.benching.candidates import (
    OURS,
    Implementation,
    build_peers,
    compare_rows,
    make_deterministic,
    select_peers,
    summarize,
)
from muntin.benching.interleaving import BenchmarkCase, time_interleaved
from muntin.devices import has_compiler
from muntin.shapes import Size
from muntin.zoo.model_building import create_model, find_model

__all__ = ["bench_training"]

TRAINERS = ("timm", "torchvision", "transformers")
LEARNING_RATE = 1e-4


def bench_training(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = TRAINERS,
    rounds: int = 5,
    compiled: bool = False,
    log: Callable[[str], None] = lambda line: None,
    optimize: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> dict[str, Any]:
    """Measure optimizer steps of a classifier on the CPU, for muntin and its peers.

    A step is forward, cross-entropy, backward and AdamW, in fp32 and under bf16 autocast. Dropout
    and drop path are off, so losses are comparable: those of the first step and of the second,
    which depends on the gradients, are checked against the same two steps in float64.

    Args:
        model: Name in the zoo; weights are random.
        batch_size: Images per step.
        size: (height, width) in pixels; default: the model's own.
        peers: Libraries to compare with; those that do not support the model are skipped.
        rounds: Timed rounds per case.
        compiled: Whether to measure torch.compile too; compilation takes minutes.
        log: Callback for progress messages.
        optimize: Builds the optimizer of a module (first called for the float64 steps);
            default: AdamW.

    Returns:
        The settings and one row per case, with ``images_per_s``, ``max_error`` (absolute error
        of the first step's loss) and ``second_error`` (of the second step's).

    Raises:
        ConfigError: The model or a peer is unknown.
    """
    optimize = optimize or make_optimizer
    chosen = select_peers(peers, TRAINERS, log)
    high, wide = size or find_model(model).config.img_size
    torch.manual_seed(0)
    network = create_model(model)
    images = torch.randn(batch_size, 3, high, wide)
    targets = torch.arange(batch_size) % 1000
    implementations = [
        Implementation(name=OURS, rival=False, module=copy.deepcopy(network)),
        *build_peers(chosen, model, network, (high, wide), log),
    ]
    log("computing two reference steps in float64")
    doubled = make_deterministic(network.double())
    optimizer = optimize(doubled)
    truth = _TrainStep(doubled, doubled, images.double(), targets, optimizer).take_first()
    cases = []
    for implementation in implementations:
        cases += _make_cases(
            implementation,
            images,
            targets,
            optimize(implementation.module),
            compiled=compiled,
            log=log,
        )
    log(f"timing {len(cases)} cases in {rounds} interleaved rounds")
    # The first call takes the two compared steps from the shared weights; the second is the first
    # ordinary step. Both are warm-up.
    timings = time_interleaved(cases, rounds=rounds, warmups=2)
    rows = []
    for timing, stepper in zip(timings, [one.run for one in cases], strict=True):
        assert isinstance(stepper, _TrainStep), "as made above"
        errors = np.abs(stepper.first - truth)
        rows.append(
            {
                "name": timing.case.name,
                "precision": timing.case.precision,
                "rival": timing.case.rival,
                "images_per_s": summarize([batch_size / seconds for seconds in timing.seconds]),
                "max_error": float(errors[0]),
                "second_error": float(errors[1]),
            }
        )
    compare_rows(rows, "images_per_s", better="more")
    return {
        "kind": "training",
        "model": model,
        "img_size": [high, wide],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "optimizer": "AdamW",
        "contestants": rows,
    }


class _TrainStep:
    """A training step; the first call takes two of them from the initial weights.

    The precisions of one library share a module and its optimizer, which saves memory.
    """

    def __init__(
        self,
        module: nn.Module,
        runs: nn.Module | Callable[[Tensor], Tensor],
        images: Tensor,
        targets: Tensor,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str = "fp32",
        start: dict[str, Tensor] | None = None,
    ) -> None:
        self.module = module
        self.runs = runs
        self.images = images
        self.targets = targets
        self.bf16 = precision == "bf16"
        self.start = start
        self.optimizer = optimizer
        self.first: NDArray[np.float64] = np.zeros(0)

    def __call__(self) -> NDArray[np.float32]:
        """Take a step and return its loss."""
        if not len(self.first):
            return self.take_first().astype(np.float32)
        return np.array([self.step()], np.float32)

    def take_first(self) -> NDArray[np.float64]:
        """Take two steps from the initial weights and return their losses."""
        if self.start is not None:
            self.module.load_state_dict(self.start)
            self.optimizer.state.clear()
        self.first = np.array([self.step(), self.step()])
        return self.first

    def step(self) -> float:
        """Forward, loss, backward and optimizer step; return the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.runs(self.images)
        loss = F.cross_entropy(logits.float() if self.bf16 else logits, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that every case uses."""
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)


def _make_cases(
    implementation: Implementation,
    images: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    compiled: bool,
    log: Callable[[str], None],
) -> list[BenchmarkCase]:
    module = make_deterministic(implementation.module)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    runs: dict[str, Callable[[Tensor], Tensor]] = {"eager": module}
    if compiled and has_compiler():
        runs["compile"] = torch.compile(module)
    elif compiled:
        log("skipped torch.compile: no C++ compiler found")
    return [
        BenchmarkCase(
            name=f"{implementation.name} {engine}",
            precision=precision,
            rival=implementation.rival,
            run=_TrainStep(
                module,
                run,
                images,
                targets,
                optimizer,
                precision=precision,
                start=start,
            ),
        )
        for engine, run in runs.items()
        for precision in ("fp32", "bf16")
    ]
