# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin check TASK DATA``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import to_json

__all__ = ["check"]


def check(
    task: Annotated[str, typer.Argument(help="classify, detect, instance.")],
    data: Annotated[str, typer.Argument(help="As for train.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> int:
    """Read a data set and name every faulty file; exit code 1 if any would break training."""
    from muntin.tasks import find_task

    report = find_task(task).check_data(data)
    if as_json:
        typer.echo(to_json(report.to_dict()))
        return int(not report.ok)
    for line in report.lines:
        typer.echo(line)
    for problem in report.problems:
        typer.echo(f"{problem.severity}: {problem.file}: {problem.what}")
    typer.echo("fine" if report.ok else "not fit for training as it is: see the errors above")
    return int(not report.ok)
