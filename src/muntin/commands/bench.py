# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from muntin.commands.showing import show_table
from muntin.commands.values import parse_size, to_json

__all__ = ["bench"]


def bench(
    what: Annotated[
        str, typer.Argument(help="inference, training, memory, data, attention, area")
    ] = "inference",
    model: Annotated[str, typer.Option(help="A name of: muntin models")] = "swin_tiny",
    peers: Annotated[
        str, typer.Option(help="Who else takes part, if installed; none for nobody.")
    ] = "timm,torchvision,transformers,onnxruntime,openvino",
    batch_size: Annotated[int, typer.Option(help="Images at a time; 1 for latency.")] = 8,
    img_size: Annotated[str, typer.Option(help="N or HxW; what the model is made for.")] = "",
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.")] = 9,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile too; takes minutes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure a model beside its peers: same weights, same inputs, in turns."""
    from muntin.benching.request import bench_by_name

    names = [] if peers == "none" else [name.strip() for name in peers.split(",") if name.strip()]
    found = bench_by_name(
        what,
        model,
        peers=names,
        batch_size=batch_size,
        size=parse_size(img_size) if img_size else None,
        rounds=rounds,
        compiled=compiled,
        say=lambda line: typer.echo(line, err=True),
    )
    if as_json:
        typer.echo(to_json(found))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from muntin.benching.showing import show_rows

    if "sides" in found:
        least, most = found["sides"][0], found["sides"][-1]
        shape = f"from {least}x{least} to {most}x{most}, equal pixels a batch"
    else:
        high, wide = found["img_size"]
        shape = f"at {high}x{wide}, batch {found['batch_size']}"
    typer.echo(f"{found['model']} {shape}, {found['threads']} threads")
    ceilings = found.get("ceilings", {})
    if ceilings:
        limits = ", ".join(
            f"{ceilings[p]:.0f} GFLOP/s {p}" for p in ("fp32", "bf16", "int8") if p in ceilings
        )
        typer.echo(
            f"this machine at best: {limits}, copies {ceilings['copy_gb_s']:.0f} GB/s; an image "
            f"costs {found['gmacs']:.2f} GMACs"
        )
    show_table(*show_rows(found))
