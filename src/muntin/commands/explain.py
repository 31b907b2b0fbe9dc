# SPDX-License-Identifier: Apache-2.0
"""``muntin explain RUN|MODEL IMAGE...``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import (
    PartOption,
    SizeOption,
    ZooWeightsOption,
    parse_names,
    parse_point,
    parse_size,
    with_part,
)
from muntin.errors import UsageError
from muntin.explaining import SECTIONS, check_sections


def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL", help="A run folder, an exported file, or a model name."
        ),
    ],
    images: Annotated[list[str], typer.Argument(help="Images, folders or glob patterns.")],
    out: Annotated[str, typer.Option(help="Folder for the page and its files.")] = "explain/",
    point: Annotated[
        str, typer.Option(help="X,Y in [0, 1]: show attention from and to this point.")
    ] = "",
    target: Annotated[
        str, typer.Option(help="Class or keypoint (name or number), or number of a box.")
    ] = "",
    compare: Annotated[
        str,
        typer.Option(metavar="RUN|MODEL", help="Compare with another model on the same images."),
    ] = "",
    folder: Annotated[str, typer.Option(help="Images to search for nearest neighbours.")] = "",
    sections: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=f"Comma-separated subset of {', '.join(SECTIONS)}."),
    ] = None,
    language: Annotated[str, typer.Option(help="Of the page: en or zh (Chinese).")] = "en",
    weights: ZooWeightsOption = "",
    part: PartOption = "",
    force: Annotated[bool, typer.Option("--force", help="Replace files in --out.")] = False,
    img_size: SizeOption = "",
) -> int:
    """Explain predictions of a model on one offline HTML page."""
    at, size, names = parse_point(point), parse_size(img_size), _parse_sections(sections)
    try:
        from muntin.explaining.explanation import explain as show
        from muntin.prediction.batch import find_images

        page = show(
            model,
            find_images(images),
            out,
            point=at,
            target=target or None,
            compare=compare or None,
            folder=folder,
            sections=names,
            language=language,
            weights=with_part(weights, part) or None,
            img_size=size if img_size else None,
            force=force,
            say=lambda line: typer.echo(line, err=True),
        )
    except KeyboardInterrupt:
        typer.echo(f"muntin: interrupted; {out} is unchanged.", err=True)
        return 130
    for missing in page.missing:
        typer.echo(f"not shown: {missing.title}. {missing.reason}")
    typer.echo(f"page: {page.path}")
    return int(bool(page.left_out) or not page.files)


def _parse_sections(text: str | None) -> tuple[str, ...]:
    """Parse comma-separated names; no names mean all sections."""
    if text is None:
        return ()
    names = parse_names(text)
    if not names:
        message = (
            f"--sections must name some of {', '.join(SECTIONS)}, got {text!r}. Omit it for all."
        )
        raise UsageError(message)
    return check_sections(names)
