# SPDX-License-Identifier: Apache-2.0
"""``muntin pack TASK DATA OUT``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from muntin.commands.values import DataArgument, JsonOption, parse_settings, to_json
from muntin.errors import plural


def pack(
    task: Annotated[
        str, typer.Argument(help="classify, detect, instance, semantic, pose or pretrain.")
    ],
    data: DataArgument,
    out: Annotated[str, typer.Argument(help="A new folder.")],
    shard_size: Annotated[
        str, typer.Option("--shard-size", help="Largest size of a shard: 64MB, 1GB.")
    ] = "256MB",
    workers: Annotated[
        int, typer.Option(help="Shards written at the same time; 0 = one a core, at most 8.", min=0)
    ] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Same as for check: data.ignored=background.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a data set into tar shards with an index, which every command reads."""
    from muntin.tasks.packing import pack as run_packing

    packed = run_packing(
        task,
        data,
        out,
        shard_size=shard_size,
        workers=workers,
        settings=dict(parse_settings(settings)),
    )
    if as_json:
        typer.echo(to_json({**asdict(packed), "path": str(packed.path)}))
        return
    for note in packed.notes:
        typer.echo(note)
    sets = ", ".join(f"{part} {count}" for part, count in packed.sets.items())
    size = f"{packed.num_bytes / 2**20:.1f} MiB"
    typer.echo(f"{packed.path}: {sets}; {plural(packed.num_shards, 'shard')}, {size}")
