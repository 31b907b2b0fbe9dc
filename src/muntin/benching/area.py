# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a pixel costs as images grow, beside a network whose every patch sees every other.

Letters: B images, H and W sides in pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.benching.competitors import OURS, compare_rows, refuse_compiled, spread
from muntin.benching.interleaving import Contestant, take_turns
from muntin.benching.memory import measure_in_a_process
from muntin.errors import ConfigError
from muntin.inference.building import build_inference
from muntin.shapes import Size
from muntin.zoo.model_building import create_model

__all__ = ["SIDES", "bench_area"]

SIDES = (224, 448, 672, 896, 1344, 1792, 2048)
"""Sides in pixels; all but the last are cut by patches of 4, windows of 7 and three mergings."""

BESIDE = "vit_small"
"""Attends globally, at about the multiply-adds of Swin-T at 224 x 224."""


def bench_area(
    model: str,
    *,
    batch_size: int = 8,
    size: Size | None = None,
    peers: Sequence[str] = (),
    rounds: int = 3,
    compiled: bool = False,
    say: Callable[[str], None] = lambda line: None,
    sides: Sequence[int] = SIDES,
    beside: str = BESIDE,
    weigh: Callable[[dict[str, Any]], dict[str, float]] = measure_in_a_process,
) -> dict[str, Any]:
    """Measure time and memory of a million pixels, of square images of growing size, in fp32.

    Every batch has about as many pixels as one image of the largest size. Networks are those
    that prediction runs (`muntin.inference`), in PyTorch. Memory is the most that a process of
    its own holds, without weights and imports.

    Args:
        model: In the zoo, of a family that takes any size.
        batch_size: Not used: batches follow from the sides.
        size: Refused: the sides say it.
        peers: Not used: the other contestant is `beside`.
        rounds: Turns of each; memory is measured once.
        compiled: Refused.
        say: Told what goes on.
        sides: In pixels, growing.
        beside: Another model of the zoo.
        weigh: Measures the memory of a job, in a process of its own.

    Returns:
        The set-up, a row a model and side with ``ms_per_mp`` and ``mib_per_mp``, and for each
        model how far the sides are from their median (``time_within``, ``memory_within``; 0.1 =
        10 %).

    Raises:
        ConfigError: There is no such model, or `size` or `compiled` is set.
    """
    refuse_compiled(compiled, "area", "where every size would be compiled anew")
    if size is not None:
        message = f"size must be left out to bench area, which has sides of its own, got {size}."
        raise ConfigError(message)
    names = list(dict.fromkeys([model, beside]))
    pixels = sides[-1] ** 2
    jobs = [(name, side, max(1, round(pixels / side**2))) for side in sides for name in names]
    contestants = []
    for name, side, count in jobs:
        say(f"building {name} for {count} of {side} x {side}")
        contestants.append(_enter(name, side, count, ours=name == model))
    say(f"taking turns: {len(contestants)} contestants, {rounds} rounds")
    timings = take_turns(contestants, rounds=rounds)
    del contestants
    rows: list[dict[str, Any]] = []
    for (name, side, count), timing in zip(jobs, timings, strict=True):
        millions = count * side * side / 1e6
        say(f"memory of {name} at {side} x {side}: a process of its own")
        answer = weigh(
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
                "ms_per_mp": spread([1e3 * seconds / millions for seconds in timing.seconds]),
                "mib_per_mp": (answer["peak_mib"] - answer["weights_mib"]) / millions,
            }
        )
    compare_rows(rows, "ms_per_mp", better="less")
    return {
        "kind": "area",
        "model": model,
        "beside": beside,
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


def _enter(name: str, side: int, count: int, *, ours: bool) -> Contestant:
    torch.manual_seed(0)
    network = build_inference(create_model(name).eval(), (side, side))
    images = torch.randn(1, 3, side, side).expand(count, -1, -1, -1)

    def run() -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(images).numpy()

    return Contestant(name=name, precision="fp32", rival=not ours, run=run)


def _within(values: Sequence[float]) -> float:
    """Largest distance from the median, as a part of it."""
    middle = statistics.median(values)
    return max(abs(value / middle - 1) for value in values)
