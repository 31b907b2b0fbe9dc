# SPDX-License-Identifier: Apache-2.0
"""``muntin doctor``, ``muntin doctor RUN``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muntin.commands.values import DeviceOption, JsonOption, to_json
from muntin.errors import UsageError, plural

if TYPE_CHECKING:
    from muntin.diagnosing.run_diagnosis import Diagnosis

_SHOWN = 10


def doctor(
    run: Annotated[str, typer.Argument(help="A run to diagnose; empty = this machine.")] = "",
    data: Annotated[str, typer.Option(help="Data of the run, if they have moved.")] = "",
    out: Annotated[str, typer.Option(help="Folder for suspects: images, CSV and JSON.")] = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> int:
    """Report whether muntin works on this machine; or why a run is bad, and suspect labels.

    Exit code 1 if it does not work, or the run has an error or finds nothing; warnings are 0.
    """
    if run:
        return _diagnose_run(run, data, out, device, as_json=as_json)
    if data or out:
        message = "--data and --out belong to a run, got no RUN. Pass its folder: muntin doctor RUN"
        raise UsageError(message)
    from muntin.environment import diagnose

    facts = diagnose()
    if as_json:
        typer.echo(to_json(facts))
    else:
        for name, value in facts.items():
            typer.echo(f"{name:22} {value}")
    return int(facts["works"] != "yes")


def _diagnose_run(run: str, data: str, out: str, device: str, *, as_json: bool) -> int:
    from muntin.diagnosing.run_diagnosis import diagnose_run, write_suspects

    found = diagnose_run(run, data, device=device)
    written = write_suspects(found.suspects, Path(out)) if out else []
    if as_json:
        typer.echo(to_json(found.to_dict()))
    else:
        _show(found, written, out)
    return int(not found.ok)


def _show(found: Diagnosis, written: Sequence[Path], out: str) -> None:
    for line in (*found.notes, *map(str, found.findings)):
        typer.echo(line)
    for one in found.suspects[:_SHOWN]:
        typer.echo(f"look at {one.part}: {one.path}: {one.what} {one.other}".rstrip())
    if len(found.suspects) > _SHOWN and not out:
        more = len(found.suspects) - _SHOWN
        typer.echo(f"{more} more to look at: --json lists them, --out DIR shows them")
    for path in written:
        typer.echo(f"wrote {path}")
    if found.findings:
        typer.echo("see the faults above, the likeliest first")
    elif found.suspects:
        count = plural(len(found.suspects), "image")
        typer.echo(f"no fault in settings and figures; look at {count}, whose labels may be wrong")
    else:
        typer.echo("no fault found")
