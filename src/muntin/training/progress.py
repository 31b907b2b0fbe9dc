# SPDX-License-Identifier: Apache-2.0
"""Progress of a training: a live bar in a terminal, lines elsewhere, TensorBoard events."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from muntin.errors import RunError, cannot_write, missing_extra

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
    """Reports progress: a bar in a terminal, a line every `line_every_s` elsewhere.

    Without a console it is silent, as in all processes but the first.
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
        """Report the progress after a step: the finished part, in [0, 1], and formatted metrics."""
        if self._console is None:
            return
        text = "  ".join(f"{name} {value}" for name, value in facts.items())
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, description=title, completed=done, facts=text)
        # In a log file each redrawn bar would be a line.
        elif time.monotonic() - self._last_line > self._line_every_s:
            self._last_line = time.monotonic()
            self.note(f"{title}  {done:.0%}  {text}")


def writes_events(choice: Literal["auto", "on", "off"]) -> bool:
    """Whether TensorBoard events are written; refuses "on" if TensorBoard is not installed."""
    installed = importlib.util.find_spec("tensorboard") is not None
    if choice == "on" and not installed:
        library, extra = "TensorBoard", "log"
        raise missing_extra(library, extra, purpose="machine.tensorboard=on")
    return installed and choice != "off"


def write_events(folder: Path, line: Mapping[str, Any]) -> None:
    """Append the numbers of a line to the TensorBoard events of the run."""
    # Local, so that only runs that write events import TensorBoard.
    from torch.utils.tensorboard import SummaryWriter

    try:
        with SummaryWriter(str(folder / "events")) as writer:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    writer.add_scalar(name, value, line["epoch"])
    except OSError as error:
        raise RunError(cannot_write(folder / "events", error)) from error
