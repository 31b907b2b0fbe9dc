# SPDX-License-Identifier: Apache-2.0
"""``muntin models [PATTERN]``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from muntin.commands.values import JsonOption, print_table, to_json


def models(
    pattern: Annotated[str, typer.Argument(help="Glob pattern, such as 'swin*'.")] = "*",
    img_size: Annotated[
        int, typer.Option(help="Side in pixels for counting GMACs; default: that of each model.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """List models: size, cost, published accuracy, licence, tasks; whether weights are here."""
    from muntin.training.field_list import default_heads
    from muntin.zoo.costs import describe_models
    from muntin.zoo.model_building import find_model

    rows = describe_models(pattern, img_size)
    for row in rows:
        row["heads"] = default_heads(find_model(row["name"]).config)
    if as_json:
        typer.echo(to_json(rows))
        return
    titles = ("model", "alias", "params (M)", "GMACs", "size", "window", "top-1 (%)", "licence",
              "weights", "pretrain by")  # fmt: skip
    print_table(titles, map(_cells, rows))
    typer.echo(f"each model takes every task: {', '.join(rows[0]['heads'])}; see: muntin heads")
    typer.echo("GMACs: counted at this size; top-1: published, ImageNet-1k (sources: --json)")
    if not any(row["here"] for row in rows) and any(row["weights"] for row in rows):
        typer.echo("weights: none of these are here; a hub id is downloaded when it is used")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    number = {key: "-" if row[key] is None else f"{row[key] / 10**power:.2f}"
              for key, power in (("params", 6), ("macs", 9))}  # fmt: skip
    return (
        row["name"],
        row["alias"],
        number["params"],
        number["macs"],
        "x".join(map(str, row["img_size"])),
        row["window"],
        "-" if row["accuracy"] is None else f"{row['accuracy']:.1f}",
        row["license"] or "-",
        "here" if row["here"] else "hub" if row["weights"] else "-",
        row["heads"]["pretrain"],
    )
