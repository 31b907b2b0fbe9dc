# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Shifted window attention alone, on feature maps of a model's stages, compared with peers.

Measured from the output of the qkv projection to the input of the output projection: roll, window
partition, relative position bias, mask, softmax and the backward pass.

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

from muntin.benching.attention_peers import ATTENTIONS, AttentionPass, AttentionProblem
from muntin.benching.candidates import OURS, compare_rows, reject_compiled, select_peers, summarize
from muntin.benching.interleaving import BenchmarkCase, Timing, time_interleaved
from muntin.errors import ConfigError
from muntin.models.swin import SwinConfig
from muntin.ops.positions import expand_relative_position_bias
from muntin.ops.size_rules import SIZE_RULES
from muntin.ops.window_attention import BackendName, window_attention
from muntin.ops.windows import lay_out
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
    log: Callable[[str], None] = lambda line: None,
    round_seconds: float = 0.05,
    device: str = "cpu",
    shifted: bool = True,
    precisions: Sequence[str] = ("fp32", "bf16"),
    others: Mapping[str, Callable[[AttentionProblem], AttentionPass]] | None = None,
) -> dict[str, Any]:
    """Measure the window attention of Swin blocks, for muntin and its peers.

    Forward without gradients ("inference"), and forward and backward ("training"), in fp32 and
    under bf16 autocast. The peers run their own code with projections that return precomputed
    tensors, so rolling and partitioning still move as many channels as in the peer.

    Args:
        model: Name of a Swin (V1) in the zoo.
        batch_size: Images per batch.
        size: (height, width) in pixels; default: the model's own.
        peers: Libraries to compare with; those without window attention are skipped.
        rounds: Timed rounds per case.
        compiled: Must be False: peers run with replaced projections, which cannot be compiled.
        log: Callback for progress messages.
        round_seconds: Target duration of a round; sets how many passes it has.
        device: "cpu" or "cuda".
        shifted: Whether windows are shifted.
        precisions: Any of "fp32" and "bf16".
        others: More implementations by name.

    Returns:
        The settings and one row per implementation, stage (from 1), work and precision, with
        ``ms`` per pass, ``map`` (height, width in tokens), ``num_heads`` and ``max_error`` against
        float64: of the output, and in training also of the gradients of qkv and bias table.

    Raises:
        ConfigError: The model or a peer is unknown, the model has no shifted windows, or
            `compiled` is set.
    """
    reject_compiled(compiled, "attention", "peers run without their projections")
    chosen = select_peers(peers, tuple(ATTENTIONS), log)
    config = find_model(model).config
    if type(config) is not SwinConfig:
        message = (
            f"model must be a Swin (V1) for the benchmark 'attention', got {model!r}. "
            f"Use swin_tiny, for example."
        )
        raise ConfigError(message)
    high, wide = size or config.img_size
    rows: list[dict[str, Any]] = []
    problems = _problems(config, (high, wide), batch_size, shifted, device)
    for stage, problem in enumerate(problems, start=1):
        passes: dict[str, AttentionPass] = {OURS: _Ours(problem, "auto")}
        for peer in chosen:
            built = ATTENTIONS[peer](problem)
            if not built:
                log(f"skipped {peer} at stage {stage}: it partitions the map differently")
            passes |= built
        passes |= {name: build(problem) for name, build in (others or {}).items()}
        for work in ("inference", "training"):
            for precision in precisions:
                log(f"stage {stage} {work} {precision}")
                group = _CaseGroup(problem, work, precision, passes, round_seconds)
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
) -> Iterator[AttentionProblem]:
    """Generate the inputs of one block per stage, distributed as in a fresh model."""
    generator = torch.Generator().manual_seed(0)
    patch = config.patch_size
    grid, built = (-(-size[0] // patch), -(-size[1] // patch)), config.grid
    for stage in range(config.out_indices[-1] + 1):
        window, heads, dim = config.windows[stage], config.num_heads[stage], config.dim(stage)
        rule = SIZE_RULES[config.size_rule]
        table = torch.randn((2 * window - 1) ** 2, heads, generator=generator).to(device)
        yield AttentionProblem(
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
    """Muntin's function, called as a block does."""

    problem: AttentionProblem
    backend: BackendName

    def start(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
        """As in `AttentionPass`."""
        problem, layout = self.problem, self.problem.layout
        qkv = problem.qkv.to(dtype, copy=True).requires_grad_()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        table = problem.table.to(wide, copy=True).requires_grad_()
        window = (problem.window, problem.window)

        def forward() -> Tensor:
            bias = expand_relative_position_bias(table, table_window=window, window=layout.window)
            return window_attention(qkv, bias, layout, scale=problem.scale, backend=self.backend)

        return forward, [qkv, table]

    def to_map(self, gradient: Tensor) -> Tensor:
        """As in `AttentionPass`."""
        return gradient


@dataclass(frozen=True, slots=True)
class _CaseGroup:
    """Cases of equal work, timed in interleaved rounds."""

    problem: AttentionProblem
    work: str
    precision: str
    passes: dict[str, AttentionPass]
    round_seconds: float

    def measure(self, rounds: int) -> list[dict[str, Any]]:
        """Return one row per implementation."""
        truth = self._compute(_Ours(self.problem, "reference"), torch.float64)
        errors = [self._error(one, truth) for one in self.passes.values()]
        works = [self._make_pass(one) for one in self.passes.values()]
        count = self._count_passes(works[0])
        cases = [
            BenchmarkCase(
                name=name,
                precision=self.precision,
                rival=name != OURS,
                run=_repeat(work, count, self._wait),
            )
            for name, work in zip(self.passes, works, strict=True)
        ]
        timings = time_interleaved(cases, rounds=rounds)
        return [
            self._row(timing, count, error) for timing, error in zip(timings, errors, strict=True)
        ]

    def _row(self, timing: Timing, count: int, error: float) -> dict[str, Any]:
        return {
            "name": timing.case.name,
            "work": self.work,
            "precision": self.precision,
            "rival": timing.case.rival,
            "map": list(self.problem.layout.size),
            "num_heads": self.problem.num_heads,
            "shift": list(self.problem.layout.shift),
            "ms": summarize([seconds / count * 1e3 for seconds in timing.seconds]),
            "max_error": error,
        }

    def _make_pass(self, one: AttentionPass) -> Callable[[], list[Tensor]]:
        """Make a function that computes the output and, in training, the gradients."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return self._bind(one, dtype)

    def _bind(self, one: AttentionPass, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
        forward, leaves = one.start(dtype)
        learns = self.work == "training"
        # The qkv projection outputs bf16 under autocast, and so is the gradient from the output
        # projection.
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

    def _compute(self, one: AttentionPass, dtype: torch.dtype) -> list[Tensor]:
        """Output and gradients of qkv and bias table, converted to float64."""
        out, *gradients = self._bind(one, dtype)()
        found = [out]
        if gradients:
            found += [one.to_map(gradients[0]), gradients[1]]
        return [part.detach().double() for part in found]

    def _error(self, one: AttentionPass, truth: list[Tensor]) -> float:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        found = self._compute(one, dtype)
        # The table's gradient sums over all windows, so each tensor is scaled by its own maximum.
        return max(
            ((part - right).abs().max() / right.abs().max()).item()
            for part, right in zip(found, truth, strict=True)
        )

    @property
    def _wait(self) -> Callable[[], object] | None:
        """Function that waits for an asynchronous device."""
        return torch.cuda.synchronize if self.problem.qkv.is_cuda else None

    def _count_passes(self, work: Callable[[], object]) -> int:
        once = _repeat(work, 1, self._wait)
        once()
        begun = time.perf_counter()
        once()
        return max(1, round(self.round_seconds / (time.perf_counter() - begun)))


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
