# SPDX-License-Identifier: Apache-2.0
"""``muntin demo [TASK]``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import TaskArgument


def demo(
    task: TaskArgument = "classify",
    out: Annotated[str, typer.Option(help="Folder for data and run; default: demo-TASK.")] = "",
) -> None:
    """Generate images, train on them for a few minutes, and show the results."""
    from muntin.demo_run import demo as run_demo

    run_demo(task, out=out)
