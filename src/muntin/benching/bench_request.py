# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from muntin.benching.area import bench_area
from muntin.benching.attention import bench_attention
from muntin.benching.data import bench_data
from muntin.benching.inference import bench_inference
from muntin.benching.memory import bench_memory
from muntin.benching.training import bench_training
from muntin.configs import check_range
from muntin.errors import ConfigError, unknown_name

__all__ = ["KINDS", "bench_by_name"]

KINDS: dict[str, Callable[..., dict[str, Any]]] = {
    "inference": bench_inference,
    "training": bench_training,
    "memory": bench_memory,
    "data": bench_data,
    "attention": bench_attention,
    "area": bench_area,
}


def bench_by_name(what: str, model: str, **options: Any) -> dict[str, Any]:
    """Run one benchmark.

    Args:
        what: A name in `KINDS`.
        model: Name in the zoo.
        options: Arguments of the benchmark.

    Raises:
        ConfigError: The benchmark is unknown, or a number is below 1.
    """
    kind = KINDS.get(what)
    if kind is None:
        raise ConfigError(unknown_name("benchmark", what, KINDS))
    for name in ("batch_size", "rounds"):
        check_range(name, options.get(name, 1), 1, 10**6)
    return kind(model, **options)
