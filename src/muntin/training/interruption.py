# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: the current step ends, the state is saved, nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from lightning_fabric import Fabric


@contextmanager
def _handle(handler: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Handle signals, in the main thread only: Python allows it nowhere else."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def defer_interrupts() -> Iterator[list[int]]:
    """Let the launched processes handle Ctrl-C; yield the signals received so far."""
    received: list[int] = []
    with _handle(lambda number, frame: received.append(number), signal.SIGINT):
        yield received


class Interruption(ExitStack):
    """Context in which the first Ctrl-C requests a stop, and the second one acts as usual.

    It also requests a stop after `stop_after` steps; 0 = never.
    """

    def __init__(self, stop_after: int = 0) -> None:
        super().__init__()
        self._left, self._requested = stop_after, False
        self.enter_context(_handle(self._request, signal.SIGINT, signal.SIGTERM))

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        # Restores the handlers, so that a second signal ends a step that hangs.
        self.close()

    def requested(self, fabric: Fabric) -> bool:
        """Whether to stop after the current step; the same answer in all processes."""
        if self._left:
            self._left -= 1
            self._requested = self._requested or self._left == 0
        if fabric.world_size == 1:
            return self._requested
        # Signals arrive at different times: if one process stops, all stop at that step.
        return bool(fabric.strategy.reduce_boolean_decision(self._requested, all=False))
