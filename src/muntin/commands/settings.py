# SPDX-License-Identifier: Apache-2.0
"""``muntin settings TASK`` and ``muntin heads [TASK]``: what --set and --head take."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import JsonOption, print_table, to_json

_Task = Annotated[
    str, typer.Argument(help="classify, detect, instance, semantic, pose or pretrain.")
]


def settings(
    task: _Task,
    pattern: Annotated[str, typer.Argument(help="Glob pattern, such as '*rate*'.")] = "*",
    model: Annotated[str, typer.Option(help="Whose fields model.* are; default: swin_tiny.")] = "",
    head: Annotated[str, typer.Option(help="Whose fields head.* are (or objective).")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the fields that --set takes, with defaults and meanings."""
    from muntin.training.field_list import list_fields

    rows = list_fields(task, pattern, model=model, head=head)
    if as_json:
        typer.echo(to_json(rows))
        return
    names = ("name", "default", "meaning")
    print_table(("--set", "default", "meaning"), ([row[name] for name in names] for row in rows))
    typer.echo("The recipe of a run, and what is chosen by data and machine, change some defaults.")


def heads(
    task: Annotated[str, typer.Argument(help="detect, instance, semantic, pose or pretrain.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List the heads that --head takes, or the objectives of pretrain."""
    from muntin.training.field_list import list_heads

    rows = list_heads(task)
    if as_json:
        typer.echo(to_json(rows))
        return
    names = ("task", "name", "default", "what")
    titles = ("task", "head", "default for", "what it is")
    print_table(titles, ([row[name] for name in names] for row in rows))
