# SPDX-License-Identifier: Apache-2.0
"""Interleaved timing on a GPU, where whoever fails is a row like the others."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved

Work = Callable[[], Any]
WARMUPS = 3
"""Calls before timing: the first compiles, the second records launches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Where and how thoroughly a section measures.

    Attributes:
        device: "cuda", or "cpu" to try the script.
        tiny: Toy sizes, nothing compiled.
    """

    device: str
    tiny: bool

    def pick(self, usual: Any, tiny: Any) -> Any:  # noqa: ANN401 (of any type)
        """Choose between the usual size and the toy one."""
        return tiny if self.tiny else usual

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def time_works(works: Mapping[str, Work], settings: Settings, calls: int) -> list[dict[str, Any]]:
    """Time each work in rounds of so many calls: A B C A B C.

    Args:
        works: By name; the first is ours.
        settings: Where.
        calls: Calls of a round.

    Returns:
        A row a work: ``ms`` of a call, ``peak_mib`` of a call above what was allocated before,
        and ``ours`` (how many times ours is as fast); or why it ``failed``.
    """
    rows = {name: _warm_up(name, work, settings) for name, work in works.items()}
    cases = [
        BenchmarkCase(owner=name, run=partial(_repeat, work, settings, calls))
        for name, work in works.items()
        if "failed" not in rows[name]
    ]
    for timing in time_interleaved(cases, rounds=settings.pick(9, 3)):
        milliseconds = [1000 * seconds / calls for seconds in timing.seconds]
        rows[timing.case.owner]["ms"] = summarize(milliseconds)
    ours = next(iter(rows.values()))
    for row in rows.values():
        if "ms" in row and "ms" in ours:
            row["ours"] = row["ms"]["median"] / ours["ms"]["median"]
    return list(rows.values())


def describe(row: dict[str, Any]) -> str:
    """One line of a row."""
    if "failed" in row:
        return f"{row['name']}: FAILED {row['failed']}"[:160]
    words = [f"{row['name']}: {row['ms']['median']:.4g} ms"]
    if "ours" in row:
        words.append(f"ours is {row['ours']:.2f}x")
    if "peak_mib" in row:
        words.append(f"{row['peak_mib']:.0f} MiB")
    if "error" in row:
        words.append(f"error {row['error']:.1e}")
    return ", ".join(words)


def _warm_up(name: str, work: Work, settings: Settings) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name}
    try:
        for _ in range(WARMUPS):
            work()
        settings.wait()
        if settings.device == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work()
            settings.wait()
            row["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    except Exception as error:  # one that fails must not hide the others
        row["failed"] = f"{type(error).__name__}: {error}"[:500]
        gc.collect()
        torch.cuda.empty_cache()
    return row


def _repeat(work: Work, settings: Settings, calls: int) -> NDArray[np.float32]:
    for _ in range(calls):
        work()
    settings.wait()
    return np.zeros(0, np.float32)
