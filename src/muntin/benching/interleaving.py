# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing (A B C A B C ...), so that a drifting clock speed biases no competitor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["BenchmarkCase", "Timing", "time_interleaved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkCase:
    """One implementation of the measured work.

    Attributes:
        name: For the report, such as "timm openvino".
        precision: "fp32", "bf16" or "int8".
        rival: Whether it is a peer's rather than muntin's.
        aside: Whether it is reported but excluded from comparison with the best peer.
        run: Does the work once and returns its output.
    """

    name: str
    precision: str
    rival: bool
    run: Callable[[], NDArray[np.float32]]
    aside: bool = False


@dataclass(kw_only=True, slots=True)
class Timing:
    """Measurements of one case.

    Attributes:
        case: The case.
        seconds: Duration of every round after warm-up.
        error: Largest absolute difference from the reference output.
        agreement: Share of rows with the same argmax as the reference output.
    """

    case: BenchmarkCase
    seconds: list[float] = field(default_factory=list)
    error: float = float("nan")
    agreement: float = float("nan")

    @property
    def median(self) -> float:
        """Median seconds per round."""
        return statistics.median(self.seconds)


def time_interleaved(
    cases: Sequence[BenchmarkCase],
    *,
    rounds: int,
    truth: NDArray[np.float64] | None = None,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time the cases in interleaved rounds: A B C A B C.

    Args:
        cases: The cases.
        rounds: Timed rounds per case.
        truth: Reference output, compared with the output of the first round.
        warmups: Rounds per case before timing starts.
        clock: Returns seconds.

    Returns:
        One timing per case, in order.
    """
    timings = [Timing(case=case) for case in cases]
    for turn in range(warmups + rounds):
        for timing in timings:
            begun = clock()
            answer = timing.case.run()
            seconds = clock() - begun
            if turn >= warmups:
                timing.seconds.append(seconds)
            if turn == 0 and truth is not None:
                timing.error = float(np.abs(answer.astype(np.float64) - truth).max())
                same = answer.argmax(axis=-1) == truth.argmax(axis=-1)
                timing.agreement = float(same.mean())
    return timings
