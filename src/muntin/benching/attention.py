# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Shifted window attention alone, at the maps of a model's stages, beside the peers.

What is measured begins where the projection to queries, keys and values ends, and ends where the
output projection begins: roll, cut, position bias, mask, softmax and the backward pass.

Letters: B images, H and W sides of the map in tokens, C channels, M window side, N = M*M tokens of
a window, nW windows of an image, h heads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.benching.attention_peers import ATTENTIONS, Pass, Problem
from muntin.benching.competitors import OURS, choose_peers, compare_rows, refuse_compiled, spread
from muntin.benching.interleaving import Contestant, Timing, take_turns
from muntin.errors import ConfigError
from muntin.models.swin import SwinConfig
from muntin.ops.positions import spread_bias
from muntin.ops.window_attention import BackendName, window_attention
from muntin.ops.windows import SIZE_RULES, lay_out
from muntin.shapes import Size
from muntin.zoo.model_building import find_model

__all__ = ["bench_attention"]


def bench_attention(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = tuple(ATTENTIONS),
    rounds: int = 5,
    compiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
    turn_seconds: float = 0.05,
    device: str = "cpu",
    shifted: bool = True,
    precisions: Sequence[str] = ("fp32", "bf16"),
    others: Mapping[str, Callable[[Problem], Pass]] | None = None,
) -> dict[str, Any]:
    """Measure the window attention of a Swin's blocks, ours and theirs.

    Forward alone without gradients ("inference"), and forward and backward ("training"), in fp32
    and under bf16 autocast. The projections are left out of the peers' own code: theirs give what
    was computed beforehand, so that roll and cut still move as many channels as the peer moves.

    Args:
        model: In the zoo; a Swin (V1).
        batch_size: Images at a time.
        size: (height, width) in pixels; what the model is made for when left out.
        peers: Who else takes part; those without such a function are left out with a word.
        rounds: Turns of each.
        compiled: Refused: peers whose projections are left out cannot be compiled as they are.
        say: Told what goes on.
        turn_seconds: A turn is as many passes as ours takes about so long for.
        device: "cpu" or "cuda".
        shifted: Whether the windows are.
        precisions: Which of "fp32" and "bf16".
        others: More rivals by name.

    Returns:
        The set-up and a row a contestant, stage (from 1), work and precision, with ``ms`` of a
        pass, ``map`` (height, width in tokens), ``num_heads`` and ``max_error`` from float64: of
        the output, and in training also of the gradients of queries, keys, values and bias table.

    Raises:
        ConfigError: There is no such model or peer, the model has no shifted windows, or
            `compiled` is set.
    """
    refuse_compiled(compiled, "attention", "where peers run without their projections")
    chosen = choose_peers(peers, tuple(ATTENTIONS), say)
    config = find_model(model).config
    if type(config) is not SwinConfig:
        message = (
            f"model must be a Swin (V1) to bench its window attention, got {model!r}. "
            f"Take swin_tiny, say."
        )
        raise ConfigError(message)
    high, wide = size or config.img_size
    rows: list[dict[str, Any]] = []
    problems = _problems(config, (high, wide), batch_size, shifted, device)
    for stage, problem in enumerate(problems, start=1):
        passes: dict[str, Pass] = {OURS: _Ours(problem, "auto")}
        for peer in chosen:
            built = ATTENTIONS[peer](problem)
            if not built:
                say(f"left out: {peer} at stage {stage}, where it cuts the map otherwise")
            passes |= built
        passes |= {name: build(problem) for name, build in (others or {}).items()}
        for work in ("inference", "training"):
            for precision in precisions:
                say(f"stage {stage} {work} {precision}")
                group = _Group(problem, work, precision, passes, turn_seconds)
                rows += [{"stage": stage, **row} for row in group.measure(rounds)]
    compare_rows(rows, "ms", better="less")
    return {
        "kind": "attention",
        "model": model,
        "img_size": [high, wide],
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "contestants": rows,
    }


def _problems(
    config: SwinConfig, size: Size, batch_size: int, shifted: bool, device: str
) -> Iterator[Problem]:
    """What the blocks of every stage have to do, with values as a fresh model has."""
    generator = torch.Generator().manual_seed(0)
    patch = config.patch_size
    grid, built = (-(-size[0] // patch), -(-size[1] // patch)), config.grid
    for stage in range(config.out_indices[-1] + 1):
        window, heads, dim = config.windows[stage], config.num_heads[stage], config.dim(stage)
        rule = SIZE_RULES[config.size_rule]
        table = torch.randn((2 * window - 1) ** 2, heads, generator=generator).to(device)
        yield Problem(
            layout=lay_out(grid, (window, window), shifted, rule, built_size=built),
            window=window,
            num_heads=heads,
            qkv=torch.randn(batch_size, *grid, 3 * dim, generator=generator).to(device),
            table=table,
            grad=torch.randn(batch_size, *grid, dim, generator=generator).to(device),
        )
        grid, built = (-(-grid[0] // 2), -(-grid[1] // 2)), (-(-built[0] // 2), -(-built[1] // 2))


@dataclass(frozen=True, slots=True)
class _Ours:
    """Our function, as a block calls it."""

    problem: Problem
    backend: BackendName

    def start(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """As in `Pass`."""
        problem, layout = self.problem, self.problem.layout
        qkv = problem.qkv.to(dtype, copy=True).requires_grad_()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        table = problem.table.to(wide, copy=True).requires_grad_()
        window = (problem.window, problem.window)

        def forward() -> Tensor:
            bias = spread_bias(table, table_window=window, window=layout.window)
            return window_attention(qkv, bias, layout, scale=problem.scale, backend=self.backend)

        return forward, [qkv, table]

    def to_map(self, gradient: Tensor) -> Tensor:
        """As in `Pass`."""
        return gradient


@dataclass(frozen=True, slots=True)
class _Group:
    """Contestants that do the same and take turns."""

    problem: Problem
    work: str
    precision: str
    passes: dict[str, Pass]
    turn_seconds: float

    def measure(self, rounds: int) -> list[dict[str, Any]]:
        """Give a row a contestant."""
        truth = self._answer(_Ours(self.problem, "reference"), torch.float64)
        errors = [self._error(one, truth) for one in self.passes.values()]
        works = [self._work(one) for one in self.passes.values()]
        count = self._count_passes(works[0])
        contestants = [
            Contestant(
                name=name,
                precision=self.precision,
                rival=name != OURS,
                run=_repeat(work, count, self._wait),
            )
            for name, work in zip(self.passes, works, strict=True)
        ]
        timings = take_turns(contestants, rounds=rounds)
        return [
            self._row(timing, count, error) for timing, error in zip(timings, errors, strict=True)
        ]

    def _row(self, timing: Timing, count: int, error: float) -> dict[str, Any]:
        return {
            "name": timing.contestant.name,
            "work": self.work,
            "precision": self.precision,
            "rival": timing.contestant.rival,
            "map": list(self.problem.layout.size),
            "num_heads": self.problem.num_heads,
            "shift": list(self.problem.layout.shift),
            "ms": spread([seconds / count * 1e3 for seconds in timing.seconds]),
            "max_error": error,
        }

    def _work(self, one: Pass) -> Callable[[], list[Tensor]]:
        """A pass: the output, and in training the gradients."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return self._bind(one, dtype)

    def _bind(self, one: Pass, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        forward, leaves = one.start(dtype)
        learns = self.work == "training"
        # Behind the projection, what is computed in bf16 is bf16, and so is its gradient.
        grad = self.problem.grad.to(dtype)

        def work() -> list[Tensor]:
            with (
                torch.set_grad_enabled(learns),
                torch.autocast(grad.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
            ):
                out = forward()
            if not learns:
                return [out]
            return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

        return work

    def _answer(self, one: Pass, dtype: torch.dtype) -> list[Tensor]:
        """Output and gradients of map and table in float64, without what a peer adds."""
        out, *gradients = self._bind(one, dtype)()
        found = [out]
        if gradients:
            found += [one.to_map(gradients[0]), gradients[1]]
        return [part.detach().double() for part in found]

    def _error(self, one: Pass, truth: list[Tensor]) -> float:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        found = self._answer(one, dtype)
        # The table's gradient is a sum over all windows, so each part has its own size.
        return max(
            ((part - right).abs().max() / right.abs().max()).item()
            for part, right in zip(found, truth, strict=True)
        )

    @property
    def _wait(self) -> Callable[[], object] | None:
        """What waits for a device that works beside the program."""
        return torch.cuda.synchronize if self.problem.qkv.is_cuda else None

    def _count_passes(self, work: Callable[[], object]) -> int:
        once = _repeat(work, 1, self._wait)
        once()
        begun = time.perf_counter()
        once()
        return max(1, round(self.turn_seconds / (time.perf_counter() - begun)))


def _repeat(
    work: Callable[[], object], count: int, wait: Callable[[], object] | None
) -> Callable[[], NDArray[np.float32]]:
    def run() -> NDArray[np.float32]:
        for _ in range(count):
            work()
        if wait is not None:
            wait()
        return np.zeros(0, np.float32)

    return run
