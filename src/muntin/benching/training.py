# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Training steps beside the peers: same weights, same images, same optimiser, in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muntin.benching.competitors import (
    OURS,
    Entrant,
    choose_peers,
    compare_rows,
    enter_peers,
    make_deterministic,
    spread,
)
from muntin.benching.interleaving import Contestant, take_turns
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
    say: Callable[[str], None] = lambda line: None,
    optimize: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
) -> dict[str, Any]:
    """Measure optimiser steps of a classifier on the CPU, ours and theirs.

    A step is forward, cross-entropy, backward and AdamW, in fp32 and under bf16 autocast. Nothing
    is dropped at random, so that losses can be compared: those of the first step, and of the
    second, which depends on the gradients, with the same two steps in float64.

    Args:
        model: In the zoo; with fresh weights.
        batch_size: Images a step.
        size: (height, width) in pixels; what the model is made for when left out.
        peers: Who else takes part; those that cannot are left out with a word.
        rounds: Turns of each.
        compiled: Whether torch.compile takes part, which takes minutes to start.
        say: Told what goes on.
        optimize: Gives the optimiser of a module, first that of the float64 steps; AdamW's when
            left out.

    Returns:
        The set-up and a row a contestant, with ``images_per_s``, ``max_error`` (of the loss of
        the first step, absolute) and ``second_error`` (the same of the second).

    Raises:
        ConfigError: There is no such model or peer.
    """
    optimize = optimize or make_optimizer
    chosen = choose_peers(peers, TRAINERS, say)
    high, wide = size or find_model(model).config.img_size
    torch.manual_seed(0)
    network = create_model(model)
    images = torch.randn(batch_size, 3, high, wide)
    targets = torch.arange(batch_size) % 1000
    entrants = [
        Entrant(name=OURS, rival=False, module=copy.deepcopy(network)),
        *enter_peers(chosen, model, network, (high, wide), say),
    ]
    say("taking two steps in float64")
    doubled = make_deterministic(network.double())
    optimizer = optimize(doubled)
    truth = _Stepper(doubled, doubled, images.double(), targets, optimizer).take_first()
    contestants = []
    for entrant in entrants:
        contestants += _contestants(
            entrant, images, targets, optimize(entrant.module), compiled=compiled, say=say
        )
    say(f"taking turns: {len(contestants)} contestants, {rounds} rounds")
    # The first turn starts from the common weights, the second is the first usual one.
    timings = take_turns(contestants, rounds=rounds, warmups=2)
    rows = []
    for timing, stepper in zip(timings, [one.run for one in contestants], strict=True):
        assert isinstance(stepper, _Stepper), "as made above"
        errors = np.abs(stepper.first - truth)
        rows.append(
            {
                "name": timing.contestant.name,
                "precision": timing.contestant.precision,
                "rival": timing.contestant.rival,
                "images_per_s": spread([batch_size / seconds for seconds in timing.seconds]),
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


class _Stepper:
    """Takes optimiser steps; the first call starts from the weights that were there at the start.

    Precisions of one owner share a module and its optimiser, which saves memory.
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
        """Take a step and give its loss."""
        if not len(self.first):
            return self.take_first().astype(np.float32)
        return np.array([self.step()], np.float32)

    def take_first(self) -> NDArray[np.float64]:
        """Take two steps from the start and give their losses."""
        if self.start is not None:
            self.module.load_state_dict(self.start)
            self.optimizer.state.clear()
        self.first = np.array([self.step(), self.step()])
        return self.first

    def step(self) -> float:
        """Forward, loss, backward and a change of the weights; gives the loss before it."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.runs(self.images)
        loss = F.cross_entropy(logits.float() if self.bf16 else logits, self.targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Give the optimiser of every contestant."""
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE, fused=True)


def _contestants(
    entrant: Entrant,
    images: Tensor,
    targets: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    compiled: bool,
    say: Callable[[str], None],
) -> list[Contestant]:
    module = make_deterministic(entrant.module)
    start = {key: value.clone() for key, value in module.state_dict().items()}
    runs: dict[str, Callable[[Tensor], Tensor]] = {"eager": module}
    if compiled and has_compiler():
        runs["compile"] = torch.compile(module)
    elif compiled:
        say("left out: torch.compile, as no C++ compiler is found")
    return [
        Contestant(
            name=f"{entrant.name} {engine}",
            precision=precision,
            rival=entrant.rival,
            run=_Stepper(
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
