# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Progress of a training: a live bar in a terminal, a line every half minute elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

__all__ = ["Reporter", "format_duration"]

LINE_EVERY_S = 30.0


def format_duration(seconds: float) -> str:
    """Format a duration in seconds.

    Example:
        >>> format_duration(9), format_duration(75), format_duration(3700)
        ('9s', '1m15s', '1h01m')
    """
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


class Reporter(ExitStack):
    """Reports progress: a bar in a terminal, a line every half minute elsewhere.

    Args:
        console: Output; None = silent (all processes but the first).
        line_every_s: Seconds between two lines outside a terminal.
    """

    def __init__(self, console: Console | None, line_every_s: float = LINE_EVERY_S) -> None:
        super().__init__()
        self._console, self._line_every_s = console, line_every_s
        self._bar: Progress | None = None
        self._row: TaskID | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> Reporter:
        """Start the bar."""
        if self._console is not None and self._console.is_terminal:
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}", markup=False),
                console=self._console,
                transient=True,
                refresh_per_second=4,
            )
            self._bar = self.enter_context(bar)
            self._row = bar.add_task("starting", total=1.0, facts="")
        return self

    def note(self, text: str, *, style: str | None = None) -> None:
        """Print a line, above the bar if it is active."""
        if self._console is not None:
            # No markup: file names may contain brackets.
            self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def step(self, title: str, done: float, facts: Mapping[str, str]) -> None:
        """Report the progress after a step.

        `done` is the finished part of the training, in [0, 1]; `facts` are formatted metrics.
        """
        if self._console is None:
            return
        text = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, description=title, completed=done, facts=text)
        # In a log file each redrawn bar would be a line.
        elif time.monotonic() - self._last_line > self._line_every_s:
            self._last_line = time.monotonic()
            self.note(f"{title}  {done:.0%}  {text}")
