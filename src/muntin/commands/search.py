# SPDX-License-Identifier: Apache-2.0
"""``muntin search FEATURES IMAGE`` and ``muntin search FEATURES --duplicates``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import DeviceOption, JsonOption, to_json
from muntin.errors import UsageError, plural


def search(
    features: Annotated[str, typer.Argument(help="What muntin embed wrote.")],
    image: Annotated[str, typer.Argument(help="An image; it need not be in FEATURES.")] = "",
    top: Annotated[int, typer.Option(help="Largest number of images.", min=1)] = 10,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="List near-duplicates in FEATURES instead.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least cosine of near-duplicates; default: 0.98.", min=0, max=1),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="RUN|MODEL", help="Where the model is now, if it moved.")
    ] = "",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Find the images that are most similar to one, or near-duplicates, by their features."""
    if bool(image) == duplicates or (threshold is not None and not duplicates):
        message = (
            "give an IMAGE to search for, or --duplicates, whose --threshold is the least cosine, "
            "got both or neither."
        )
        raise UsageError(message)
    from muntin.prediction.image_search import search as run_search
    from muntin.prediction.similarity_search import NEAR_DUPLICATE, find_duplicates

    if duplicates:
        least = NEAR_DUPLICATE if threshold is None else threshold
        groups = find_duplicates(features, least)
    else:
        groups = [run_search(features, image, top=top, model=model, device=device)]
    if as_json:
        found = [[match._asdict() for match in group] for group in groups]
        typer.echo(to_json(found if duplicates else found[0]))
        return
    for number, group in enumerate(groups):
        if number:
            typer.echo()
        for match in group:
            typer.echo(f"{match.similarity:.4f}  {match.path}")
    if duplicates:
        typer.echo(f"{plural(len(groups), 'group')} of near-duplicates (cosine >= {least:g})")
