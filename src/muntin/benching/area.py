# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Cost per pixel as images grow, compared with a network with global attention.

Letters: B images, H and W sides in pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.benching.candidates import OURS, compare_rows, reject_compiled, summarize
from muntin.benching.interleaving import BenchmarkCase, time_interleaved
from muntin.benching.memory import measure_in_subprocess
from muntin.errors import ConfigError
from muntin.inference.inference_network import build_inference
from muntin.shapes import Size
from muntin.zoo.model_building import create_model

__all__ = ["SIDES", "bench_area"]

SIDES = (224, 448, 672, 896, 1344, 1792, 2048)
"""Sides in pixels; all but the last divide by patches of 4, windows of 7 and three mergings."""

BASELINE = "vit_small"
"""Global attention; about as many multiply-adds as Swin-T at 224 x 224."""


def bench_area(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = (),
    rounds: int = 3,
    compiled: bool = False,
    log: Callable[[str], None] = lambda line: None,
    sides: Sequence[int] = SIDES,
    baseline: str = BASELINE,
    measure_job: Callable[[dict[str, Any]], dict[str, float]] = measure_in_subprocess,
) -> dict[str, Any]:
    """Measure time and memory per megapixel for square images of growing size, in fp32.

    Every batch has about as many pixels as one image of the largest size. Networks are those
    that prediction runs (`muntin.inference`), in PyTorch. Memory is the peak of a separate
    process, without weights and imports.

    Args:
        model: Name in the zoo; its family must accept any size.
        batch_size: Not used: batches follow from the sides.
        size: Must be None: `sides` sets the sizes.
        peers: Not used: the model is compared with `baseline`.
        rounds: Timed rounds per case; memory is measured once.
        compiled: Must be False: every size would be compiled anew.
        log: Callback for progress messages.
        sides: Sides in pixels, increasing.
        baseline: Name of the model to compare with.
        measure_job: Measures the memory of a job in a separate process.

    Returns:
        The settings, one row per model and side with ``ms_per_mp`` and ``mib_per_mp``, and per
        model the largest relative deviation from the median over sides (``time_within``,
        ``memory_within``; 0.1 = 10 %).

    Raises:
        ConfigError: A model is unknown, or `size` or `compiled` is set.
    """
    reject_compiled(compiled, "area", "every size would be compiled anew")
    if size is not None:
        message = f"size must be None for the benchmark 'area', got {size}. Use sides instead."
        raise ConfigError(message)
    names = list(dict.fromkeys([model, baseline]))
    pixels = sides[-1] ** 2
    jobs = [(name, side, max(1, round(pixels / side**2))) for side in sides for name in names]
    cases = []
    for name, side, count in jobs:
        log(f"building {name} for {count} images of {side} x {side}")
        cases.append(_make_case(name, side, count, ours=name == model))
    log(f"timing {len(cases)} cases in {rounds} interleaved rounds")
    timings = time_interleaved(cases, rounds=rounds)
    del cases
    rows: list[dict[str, Any]] = []
    for (name, side, count), timing in zip(jobs, timings, strict=True):
        millions = count * side * side / 1e6
        log(f"measuring memory of {name} at {side} x {side} in its own process")
        answer = measure_job(
            {
                "owner": OURS,
                "work": "inference",
                "model": name,
                "batch_size": count,
                "size": [side, side],
                "threads": torch.get_num_threads(),
            }
        )
        rows.append(
            {
                "name": name,
                "map": [side, side],
                "pictures": count,
                "precision": "fp32",
                "rival": name != model,
                "ms_per_mp": summarize([1e3 * seconds / millions for seconds in timing.seconds]),
                "mib_per_mp": (answer["peak_mib"] - answer["weights_mib"]) / millions,
            }
        )
    compare_rows(rows, "ms_per_mp", better="less")
    return {
        "kind": "area",
        "model": model,
        "beside": baseline,
        "sides": list(sides),
        "threads": torch.get_num_threads(),
        "contestants": rows,
        "time_within": {
            name: _within([row["ms_per_mp"]["median"] for row in rows if row["name"] == name])
            for name in names
        },
        "memory_within": {
            name: _within([row["mib_per_mp"] for row in rows if row["name"] == name])
            for name in names
        },
    }


def _make_case(name: str, side: int, count: int, *, ours: bool) -> BenchmarkCase:
    torch.manual_seed(0)
    network = build_inference(create_model(name).eval(), (side, side))
    images = torch.randn(1, 3, side, side).expand(count, -1, -1, -1)

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(images).numpy()

    return BenchmarkCase(name=name, precision="fp32", rival=not ours, run=run)


def _within(values: Sequence[float]) -> float:
    """Largest relative deviation from the median."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)
