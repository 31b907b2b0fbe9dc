# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing (A B C A B C ...), so that a drifting clock speed biases no competitor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

OURS = "muntin"


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkCase:
    """One implementation of the measured work.

    The owner is `OURS` or a peer; the variant, such as the engine, is added to its name in the
    report. A case `aside` is reported, but excluded from comparison with the best peer.
    """

    owner: str
    run: Callable[[], NDArray[np.float32]]
    variant: str = ""
    precision: str = "fp32"
    aside: bool = False


@dataclass(kw_only=True, slots=True)
class Timing:
    """Duration of every round after warm-up, and differences from the reference output.

    The error is the largest absolute one; `agreement` is the share of rows with the same argmax.
    """

    case: BenchmarkCase
    seconds: list[float] = field(default_factory=list)
    error: float = float("nan")
    agreement: float = float("nan")

    def to_row(self, **fields: object) -> dict[str, Any]:
        """Name, precision and owner as a row of a result, with more fields."""
        case = self.case
        return {
            "name": f"{case.owner} {case.variant}".strip(),
            "precision": case.precision,
            "rival": case.owner != OURS,
            **fields,
        }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, maximum and count of repeated measurements."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def time_interleaved(
    cases: Sequence[BenchmarkCase],
    *,
    rounds: int,
    truth: NDArray[np.float64] | None = None,
    warmups: int = 1,
) -> list[Timing]:
    """Time the cases in interleaved rounds, after `warmups` rounds that do not count.

    The output of the first round is compared with `truth`.
    """
    timings = [Timing(case=case) for case in cases]
    for turn in range(warmups + rounds):
        for timing in timings:
            begun = time.perf_counter()
            answer = timing.case.run()
            seconds = time.perf_counter() - begun
            if turn >= warmups:
                timing.seconds.append(seconds)
            if turn == 0 and truth is not None:
                timing.error = float(np.abs(answer.astype(np.float64) - truth).max())
                same = answer.argmax(axis=-1) == truth.argmax(axis=-1)
                timing.agreement = float(same.mean())
    return timings
