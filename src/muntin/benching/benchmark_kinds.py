# SPDX-License-Identifier: Apache-2.0
"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from muntin.benching.attention import bench_attention
from muntin.benching.data import bench_data
from muntin.benching.inference import bench_inference
from muntin.benching.peers import BenchRequest
from muntin.benching.predictions import bench_predictions
from muntin.benching.training import bench_memory, bench_training
from muntin.errors import ConfigError, unknown_name

KINDS: dict[str, Callable[[BenchRequest], dict[str, Any]]] = {
    "inference": bench_inference,
    "training": bench_training,
    "memory": bench_memory,
    "data": bench_data,
    "attention": bench_attention,
}

UNCOMPILED = {
    "memory": "the compiler's own memory would be counted",
    "data": "data loading cannot be compiled",
    "attention": "peers run without their projections",
}
"""Benchmarks that cannot use torch.compile, and why."""

ELSEWHERE = {"area": "benchmarks/bench_area.py"}
"""Benchmarks that compare muntin only with itself: scripts of the repository."""


def run_benchmark(what: str, request: BenchRequest) -> dict[str, Any]:
    """Run one of `KINDS` and return its result."""
    if what in ELSEWHERE:
        message = (
            f"benchmark must be one of {', '.join(KINDS)}, got {what!r}, which is a script of the "
            f"repository. Run: python {ELSEWHERE[what]}"
        )
        raise ConfigError(message)
    if what not in KINDS:
        raise ConfigError(unknown_name("benchmark", what, KINDS))
    if request.compiled and what in UNCOMPILED:
        message = (
            f"compiled must be False for the benchmark {what!r}, got True: {UNCOMPILED[what]}. "
            f"Remove --compile."
        )
        raise ConfigError(message)
    if not request.run:
        return KINDS[what](request)
    if what != "inference" or request.compiled:
        message = (
            f"a run is for the benchmark inference without --compile, got {request.run!r} for "
            f"{what!r}. Name a model (--model) instead of it."
        )
        raise ConfigError(message)
    return bench_predictions(request)
