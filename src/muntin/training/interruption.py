# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C: the step at hand ends, the state is saved, nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from lightning_fabric import Fabric

__all__ = ["Interruption", "leave_to_others"]


@contextmanager
def leave_to_others() -> Iterator[list[int]]:
    """Let the processes that this one launched answer Ctrl-C, which reaches them too.

    Yields:
        Grows when Ctrl-C comes.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


class Interruption:
    """While it is entered, the first Ctrl-C only asks to stop; the second one is as ever.

    Args:
        stop_after: Ask by itself after so many steps; 0 = never.
    """

    def __init__(self, stop_after: int = 0) -> None:
        self._left = stop_after
        self._asked = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        """Listen for Ctrl-C and for a polite kill."""
        if threading.current_thread() is threading.main_thread():
            self._before = [
                (number, signal.signal(number, self._ask))
                for number in (signal.SIGINT, signal.SIGTERM)
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Hand the signals back."""
        for number, handler in self._before or ():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        for handled, handler in self._before:
            signal.signal(handled, handler)

    def wanted(self, fabric: Fabric) -> bool:
        """Whether to stop now, after the step that has just ended; all processes agree."""
        if self._left:
            self._left -= 1
            self._asked = self._asked or self._left == 0
        if fabric.world_size == 1:
            return self._asked
        return bool(fabric.strategy.reduce_boolean_decision(self._asked, all=False))
