# SPDX-License-Identifier: Apache-2.0
"""Shifted window attention alone, on feature maps of a model's stages.

Measured from the output of the qkv projection to the input of the output projection: roll, window
partition, relative position bias, mask, softmax and the backward pass.

Letters: B images, H and W sides of the map in tokens, C channels, h heads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.benching.peers import BenchRequest
from muntin.benching.result_rows import (
    OURS,
    BenchmarkCase,
    compare_rows,
    summarize,
    time_interleaved,
)
from muntin.errors import ConfigError
from muntin.models.swin import SwinConfig
from muntin.ops.positions import SIZE_RULES, expand_relative_position_bias
from muntin.ops.window_attention import BackendName, window_attention
from muntin.ops.windows import WindowLayout, lay_out
from muntin.shapes import Float
from muntin.zoo.model_building import find_model


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AttentionProblem:
    """Inputs of the attention of one block; `window` is the configured side, in tokens."""

    layout: WindowLayout
    window: int
    num_heads: int
    qkv: Float[Tensor, "B H W C3"]
    table: Float[Tensor, "positions h"]
    grad: Float[Tensor, "B H W C"]


Started = tuple[Callable[[], Tensor], list[Tensor]]
"""A forward function, to (B, H, W, C), and the tensors whose gradients are computed: qkv, the
bias table, and possibly more."""

Attention = Callable[[AttentionProblem, torch.dtype], Started | None]
"""Starts an implementation with qkv of a dtype; the table is float32, or float64 if qkv is. None if
it partitions the map differently."""


def bench_attention(
    request: BenchRequest,
    others: Mapping[str, Attention] | None = None,
    *,
    round_seconds: float = 0.05,
) -> dict[str, Any]:
    """Measure the window attention of Swin (V1) blocks.

    Forward without gradients ("inference"), and forward and backward ("training"), in fp32 and
    under bf16 autocast. Peers (`others`) are compared by benchmarks/bench_peers.py. A round takes
    about `round_seconds`.

    One row per implementation, stage (from 1), work and precision, with ``ms`` per pass, ``map``
    (height, width in tokens), ``num_heads`` and ``max_error`` against float64: of the output, and
    in training also of the gradient of the bias table.
    """
    if type(find_model(request.model).config) is not SwinConfig:
        message = (
            f"model must be a Swin (V1) for the benchmark 'attention', got {request.model!r}. "
            f"Use swin_tiny, for example."
        )
        raise ConfigError(message)
    request.select_peers(())
    rows: list[dict[str, Any]] = []
    starts = {OURS: start_ours, **(others or {})}
    for stage, problem in enumerate(_problems(request), start=1):
        for work, precision in itertools.product(("inference", "training"), ("fp32", "bf16")):
            request.log(f"stage {stage} {work} {precision}")
            found = _measure(problem, starts, work, precision, request, round_seconds)
            rows += [{"stage": stage, **row} for row in found]
    return request.describe("attention", compare_rows(rows))


def _problems(request: BenchRequest) -> Iterator[AttentionProblem]:
    """Generate the inputs of one shifted block per stage, distributed as in a fresh model."""
    config: Any = find_model(request.model).config
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    patch = config.patch_size
    grid = (-(-request.img_size[0] // patch), -(-request.img_size[1] // patch))
    built, rule = config.grid, SIZE_RULES[config.size_rule]
    for stage in range(config.out_indices[-1] + 1):
        window, heads, dim = config.windows[stage], config.num_heads[stage], config.dim(stage)
        layout = lay_out(grid, (window, window), True, rule, built_size=built)
        table = draw((2 * window - 1) ** 2, heads)
        qkv, grad = draw(request.batch_size, *grid, 3 * dim), draw(request.batch_size, *grid, dim)
        yield AttentionProblem(
            layout=layout, window=window, num_heads=heads, qkv=qkv, table=table, grad=grad
        )
        grid, built = (-(-grid[0] // 2), -(-grid[1] // 2)), (-(-built[0] // 2), -(-built[1] // 2))


def start_ours(
    problem: AttentionProblem, dtype: torch.dtype, backend: BackendName = "auto"
) -> Started:
    """Start muntin's function, called as a block does."""
    layout, window = problem.layout, (problem.window, problem.window)
    scale = (problem.grad.shape[3] // problem.num_heads) ** -0.5
    qkv = problem.qkv.to(dtype, copy=True).requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    table = problem.table.to(wide, copy=True).requires_grad_()

    def forward() -> Tensor:
        bias = expand_relative_position_bias(table, table_window=window, window=layout.window)
        return window_attention(qkv, bias, layout, scale=scale, backend=backend)

    return forward, [qkv, table]


def _measure(
    problem: AttentionProblem,
    starts: Mapping[str, Attention],
    work: str,
    precision: str,
    request: BenchRequest,
    round_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Generate one row per implementation of equal work, timed in interleaved rounds."""
    training, dtype = work == "training", torch.bfloat16 if precision == "bf16" else torch.float32
    works = {}
    for name, start in starts.items():
        started = start(problem, dtype)
        if started is None:
            request.log(f"skipped {name}: it partitions the map differently")
        else:
            works[name] = _bind(problem, started, training)
    truth = _bind(problem, start_ours(problem, torch.float64, "reference"), training)()
    errors = [_error(run(), truth) for run in works.values()]
    begun = time.perf_counter()
    works[OURS]()
    count = max(1, round(round_seconds / (time.perf_counter() - begun)))
    cases = [
        BenchmarkCase(owner=name, precision=precision, run=_repeat(run, count))
        for name, run in works.items()
    ]
    timings = time_interleaved(cases, rounds=request.rounds)
    for timing, error in zip(timings, errors, strict=True):
        yield timing.to_row(
            work=work,
            map=list(problem.layout.size),
            num_heads=problem.num_heads,
            shift=list(problem.layout.shift),
            ms=summarize([seconds / count * 1e3 for seconds in timing.seconds]),
            max_error=error,
        )


def _bind(
    problem: AttentionProblem, started: Started, training: bool
) -> Callable[[], list[Tensor]]:
    """Make a function that computes the output and, in training, the gradients."""
    forward, leaves = started
    dtype = leaves[0].dtype
    # The qkv projection outputs bf16 under autocast, and so is the gradient from the output
    # projection.
    grad = problem.grad.to(dtype)

    def run() -> list[Tensor]:
        with (
            torch.set_grad_enabled(training),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            out = forward()
        if not training:
            return [out]
        return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]

    return run


def _repeat(run: Callable[[], object], count: int) -> Callable[[], NDArray[np.float32]]:
    def repeated() -> NDArray[np.float32]:
        for _ in range(count):
            run()
        return np.zeros(0, np.float32)

    return repeated


def _error(found: list[Tensor], truth: list[Tensor]) -> float:
    """Largest error of the output and the table's gradient, each relative to its maximum.

    The gradient of qkv is in the order of the windows in some libraries, and not compared.
    """
    pairs = zip(found[::2], truth[::2], strict=True)
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in pairs)
