# SPDX-License-Identifier: Apache-2.0
"""``muntin check TASK DATA``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from muntin.commands.values import DataArgument, JsonOption, TaskArgument, parse_settings, to_json
from muntin.errors import plural

if TYPE_CHECKING:
    from muntin.data.checking import Report
    from muntin.samples import Problem

MAX_ALIKE = 10
"""Problems of one kind that are printed on the terminal."""


def check(
    task: TaskArgument,
    data: DataArgument,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Same as for train: data.colors=road:#6EC1E4.")
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Validate a data set and list every faulty file; exit code 1 on errors."""
    from muntin.data.data_config import DataConfig, change_reading
    from muntin.tasks.task_table import find_any_task

    reading = change_reading(DataConfig(), parse_settings(settings))
    report = find_any_task(task).check_data(data, reading)
    if as_json:
        typer.echo(to_json(report.to_dict()))
        return int(not report.ok)
    for line in report.lines:
        typer.echo(line)
    for line in _shorten(report.problems):
        typer.echo(line)
    typer.echo(_judge(report))
    return int(not report.ok)


def _judge(report: Report) -> str:
    if not report.ok:
        return "cannot be used for training: see the errors above"
    warned = len(report.problems)
    return f"ok, {plural(warned, 'warning')} (see above)" if warned else "ok"


def _shorten(problems: Iterable[Problem]) -> Iterator[str]:
    """One line per problem; only the first few of those that differ in names and numbers."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kind = re.sub(r"'[^']*'|-?\d[\d.]*", "#", problem.what)
        kinds.setdefault((problem.severity, kind), []).append(problem)
    for (severity, _), alike in kinds.items():
        for problem in alike[:MAX_ALIKE]:
            yield f"{severity}: {problem.file}: {problem.what}"
        if len(alike) > MAX_ALIKE:
            yield f"{severity}: {len(alike) - MAX_ALIKE} more like these (--json lists all)"
