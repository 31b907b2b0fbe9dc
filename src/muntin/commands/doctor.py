# SPDX-License-Identifier: Apache-2.0
"""``muntin doctor``."""

from __future__ import annotations

import typer

from muntin.commands.values import JsonOption, to_json


def doctor(as_json: JsonOption = False) -> int:
    """Report hardware, library versions, and whether muntin works on this machine."""
    from muntin.environment import diagnose

    facts = diagnose()
    if as_json:
        typer.echo(to_json(facts))
    else:
        for name, value in facts.items():
            typer.echo(f"{name:22} {value}")
    return int(facts["works"] != "yes")
