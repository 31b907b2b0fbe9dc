# SPDX-License-Identifier: Apache-2.0
"""``muntin embed RUN|MODEL IMAGE... --out F.npy``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from muntin.commands.values import DeviceOption, JsonOption, RunArgument, to_json
from muntin.errors import plural, quote

SECONDS = 5.0
"""Between two lines of progress."""


def embed(
    model: RunArgument,
    images: Annotated[list[str], typer.Argument(help="Images, folders or glob patterns.")],
    out: Annotated[str, typer.Option(help="A new .npy or .parquet file.")],
    pool: Annotated[str, typer.Option(help="vector (pooled), tokens or maps (the last).")] = (
        "vector"
    ),
    batch_size: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 32,
    device: DeviceOption = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Write features of images to a file; the same call goes on after an interruption."""
    from muntin.prediction.image_search import embed as run_embedding

    last = time.monotonic()

    def say(line: str) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS or " of " not in line:
            last = time.monotonic()
            typer.echo(line, err=True)

    try:
        table = run_embedding(
            model, images, out, pool=pool, batch_size=batch_size, device=device, force=force,
            say=say,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("muntin: interrupted; what is done is kept, the same call goes on.", err=True)
        return 1
    if as_json:
        facts = {"path": out, "shape": list(table.rows.shape), **table.record}
        typer.echo(to_json({**facts, "left_out": list(table.left_out)}))
        return int(bool(table.left_out))
    shape = " x ".join(map(str, table.rows.shape[1:]))
    typer.echo(f"written: {out} ({plural(len(table), 'image')}, {shape} float32)")
    if table.left_out:
        typer.echo(f"left out: {plural(len(table.left_out), 'image')} that cannot be read")
    if pool == "vector":
        typer.echo(f"next: muntin search {quote(out)} IMAGE, or --duplicates")
    return int(bool(table.left_out))
