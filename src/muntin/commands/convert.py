# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin convert IN OUT``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import parse_settings

__all__ = ["convert"]


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="File, folder, run or hub id.")],
    target: Annotated[str, typer.Argument(metavar="OUT", help=".safetensors, .pth or .npz.")],
    model: Annotated[str, typer.Option(help="See: muntin models.")],
    to: Annotated[
        str,
        typer.Option(
            help="timm, torchvision, transformers, microsoft, openmmlab, detectron2, google."
        ),
    ],
    from_: Annotated[str, typer.Option("--from", help="The same; auto recognises it.")] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="How it was built: img_size=96.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write weights under the names of another ecosystem, and check that no bit changed."""
    from muntin.zoo.converting import convert_weights

    done = convert_weights(
        source,
        target,
        name=model,
        to=to,
        dialect=from_,
        settings=parse_settings(settings or []).items(),
        force=force,
    )
    typer.echo(f"read: {done.report.summary()}")
    head = f"{done.num_classes} classes" if done.num_classes else "no classifier"
    typer.echo(
        f"written: {done.path} ({to}, {done.num_tensors} tensors, {head}); read again: equal"
    )
    if done.report.license:
        typer.echo(f"licence: {done.report.license}")
