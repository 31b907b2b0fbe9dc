# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin demo [TASK]``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    task: Annotated[str, typer.Argument(help="A task, as for train.")] = "classify",
    out: Annotated[
        str, typer.Option(help="Folder for data and run; demo-TASK when left out.")
    ] = "",
) -> None:
    """Generate images, train on them for minutes, and show what came out."""
    from muntin.demonstration import demo as run_demo

    run_demo(task, out=out)
