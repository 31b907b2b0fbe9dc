# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Metrics of each epoch: ``journal.jsonl`` (one JSON object per line), TensorBoard events."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from muntin.errors import RunError
from muntin.runs import JOURNAL as FILE
from muntin.runs import read_journal, write_text
from muntin.system_errors import cannot_write, missing_extra

__all__ = ["append_line", "drop_lines_from", "read_journal", "write_events", "writes_events"]


def append_line(folder: Path, line: Mapping[str, Any]) -> None:
    """Append a line to the journal.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise RunError(cannot_write(folder / FILE, error)) from error


def drop_lines_from(folder: Path, epoch: int) -> None:
    """Remove the epochs from `epoch` (from 1) on, which a resumed run writes again.

    Raises:
        RunError: The file cannot be written; the journal is unchanged.
    """
    kept = [line for line in read_journal(folder) if line["epoch"] < epoch]
    write_text(folder / FILE, "".join(json.dumps(line) + "\n" for line in kept))


def writes_events(choice: Literal["auto", "on", "off"]) -> bool:
    """Whether TensorBoard events are written, given `machine.tensorboard`.

    Raises:
        MissingExtra: They are requested, and TensorBoard is not installed.
    """
    installed = importlib.util.find_spec("tensorboard") is not None
    if choice == "on" and not installed:
        library, extra = "TensorBoard", "log"
        raise missing_extra(library, extra, purpose="machine.tensorboard=on")
    return installed and choice != "off"


def write_events(folder: Path, line: Mapping[str, Any]) -> None:
    """Append the numbers of a line to the TensorBoard events of the run.

    Raises:
        RunError: The file cannot be written.
    """
    # Local, so that only runs that write events import TensorBoard.
    from torch.utils.tensorboard import SummaryWriter

    try:
        with SummaryWriter(str(folder / "events")) as writer:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "epoch":
                    writer.add_scalar(name, value, line["epoch"])
    except OSError as error:
        raise RunError(cannot_write(folder / "events", error)) from error
