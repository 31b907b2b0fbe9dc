# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin predict RUN IMAGE...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from muntin.commands.values import to_json

__all__ = ["predict"]


def predict(
    run: Annotated[str, typer.Argument(help="A run folder.")],
    images: Annotated[list[str], typer.Argument(help="Pictures, folders or patterns.")],
    out: Annotated[str, typer.Option(help="Folder for pictures with their results.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    threshold: Annotated[
        float, typer.Option(help="Leave out classes below this score.", min=0, max=1)
    ] = 0.0,
    tta: Annotated[bool, typer.Option("--tta", help="See the mirrored picture too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> int:
    """Classify pictures; exit code 1 if any could not be read."""
    from muntin.drawing.saving import save_picture
    from muntin.prediction import draw, find_pictures, load

    paths = find_pictures(images)
    found = load(run, device=device)(paths, tta=tta, strict=False)
    results = [result.above(threshold) for result in found]
    code = int(len(results) < len(paths))
    if out:
        for number, result in enumerate(results):
            path = Path(result.path)
            name = "_".join(filter(None, (f"{number:05}", path.parent.name[-40:], path.stem[-40:])))
            save_picture(draw(path, result), Path(out) / f"{name}.png")
    if as_json:
        typer.echo(to_json([result.to_dict() for result in results]))
        return code
    for result in results:
        best = zip(result.class_names[:3], result.scores[:3], strict=True)
        said = ", ".join(f"{name} {score:.2f}" for name, score in best)
        typer.echo(f"{result.path}: {said or f'nothing above {threshold}'}")
    if out:
        typer.echo(f"pictures: {out}")
    return code
