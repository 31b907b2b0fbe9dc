# SPDX-License-Identifier: Apache-2.0
"""``muntin models [PATTERN]``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import JsonOption, print_table, to_json


def models(
    pattern: Annotated[str, typer.Argument(help="Glob pattern, such as 'swin*'.")] = "*",
    img_size: Annotated[
        int, typer.Option(help="Side in pixels for counting GMACs; default: that of each model.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """List models with parameters, GMACs and published accuracy."""
    from muntin.zoo.costs import describe_models

    rows = describe_models(pattern, img_size)
    if as_json:
        typer.echo(to_json(rows))
        return
    cells = (
        (
            row["name"],
            row["alias"],
            f"{row['params'] / 1e6:.2f}",
            f"{row['macs'] / 1e9:.2f}",
            "x".join(map(str, row["img_size"])),
            row["window"],
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1f}",
        )
        for row in rows
    )
    print_table(("model", "alias", "params (M)", "GMACs", "size", "window", "top-1 (%)"), cells)
    typer.echo("GMACs: counted at this size; top-1: published, ImageNet-1k (sources: --json)")
