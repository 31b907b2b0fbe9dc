# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: the current step ends, the state is saved, nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from lightning_fabric import Fabric

__all__ = ["Interruption", "defer_interrupts"]


@contextmanager
def defer_interrupts() -> Iterator[list[int]]:
    """Let the launched processes handle Ctrl-C, which they receive too.

    Yields:
        Signal numbers received so far.
    """
    received: list[int] = []
    # Only the main thread may set handlers; elsewhere Ctrl-C acts as usual.
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


class Interruption:
    """Context in which the first Ctrl-C requests a stop, and the second one acts as usual.

    Args:
        stop_after: Request a stop after this many steps; 0 = never.
    """

    def __init__(self, stop_after: int = 0) -> None:
        self._left = stop_after
        self._requested = False
        self._previous: Any = None

    def __enter__(self) -> Interruption:
        """Handle SIGINT and SIGTERM (main thread only: Python allows it nowhere else)."""
        if threading.current_thread() is threading.main_thread():
            self._previous = [
                (number, signal.signal(number, self._request))
                for number in (signal.SIGINT, signal.SIGTERM)
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the signal handlers."""
        # None outside the main thread, where no handler was set.
        for number, handler in self._previous or ():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # The first signal restores the handlers, so that a second one ends a step that hangs.
        self._requested = True
        for handled, handler in self._previous:
            signal.signal(handled, handler)

    def requested(self, fabric: Fabric) -> bool:
        """Whether to stop after the current step; the same answer in all processes."""
        if self._left:
            self._left -= 1
            self._requested = self._requested or self._left == 0
        if fabric.world_size == 1:
            return self._requested
        # Signals arrive at different times: if one process stops, all stop at that step.
        return bool(fabric.strategy.reduce_boolean_decision(self._requested, all=False))
