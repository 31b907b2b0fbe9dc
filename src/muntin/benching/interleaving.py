# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Contestants that take turns, so that a machine whose speed drifts favours nobody."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Contestant", "Timing", "take_turns"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: Who, such as "timm in OpenVINO".
        precision: "fp32", "bf16" or "int8".
        rival: Whether it is somebody else's.
        aside: Whether it is only shown: neither ours nor as the rival is used.
        run: Does the work once, and gives what comes out.
    """

    name: str
    precision: str
    rival: bool
    run: Callable[[], NDArray[np.float32]]
    aside: bool = False


@dataclass(kw_only=True, slots=True)
class Timing:
    """How a contestant did.

    Attributes:
        contestant: Who.
        seconds: Of every turn but the first ones.
        error: Largest difference from the truth.
        agreement: Part of the rows whose largest value is at the same place as the truth's.
    """

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    error: float = float("nan")
    agreement: float = float("nan")

    @property
    def median(self) -> float:
        """Seconds of a turn."""
        return statistics.median(self.seconds)


def take_turns(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    truth: NDArray[np.float64] | None = None,
    warmups: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Measure contestants A B C A B C.

    Args:
        contestants: Who takes part.
        rounds: Turns of each that count.
        truth: What should come out, to compare the answers of the first turn with.
        warmups: Turns of each that do not count.
        clock: Gives seconds.

    Returns:
        One row a contestant, in order.
    """
    timings = [Timing(contestant=contestant) for contestant in contestants]
    for turn in range(warmups + rounds):
        for timing in timings:
            begun = clock()
            answer = timing.contestant.run()
            seconds = clock() - begun
            if turn >= warmups:
                timing.seconds.append(seconds)
            if turn == 0 and truth is not None:
                timing.error = float(np.abs(answer.astype(np.float64) - truth).max())
                same = answer.argmax(axis=-1) == truth.argmax(axis=-1)
                timing.agreement = float(same.mean())
    return timings
