# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin eval RUN DATA``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.showing import show_table
from muntin.commands.values import parse_settings, to_json

__all__ = ["evaluate"]


def evaluate(
    run: Annotated[str, typer.Argument(help="A run folder or exported file.")],
    data: Annotated[str, typer.Argument(help="As for train; its test part if it has one.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    batch_size: Annotated[int, typer.Option(help="Images at a time; 0 chooses.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    detector: Annotated[
        str, typer.Option(help="For keypoints: a run that finds the subjects.")
    ] = "",
    tta: Annotated[bool, typer.Option("--tta", help="See mirrored images too.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="As for train: data.ignored=background.")
    ] = None,
) -> None:
    """Score a run on a data set; images go into the run's pictures/eval."""
    from muntin.runs import Run
    from muntin.scoring.evaluation import evaluate as run_evaluation

    opened = Run.open(run)
    figures = run_evaluation(
        opened,
        data,
        batch_size=batch_size,
        device=device,
        detector=detector,
        tta=tta,
        settings=parse_settings(settings or []),
    )
    if as_json:
        typer.echo(to_json({**figures, "class_names": list(opened.classes.names)}))
        return
    names = figures.get("keypoint_names", opened.classes.names)
    for name, value in figures.items():
        if isinstance(value, list):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{at}: {share:.4f}" for at, share in value.items() if share)
        typer.echo(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    per_class = {
        name: value
        for name, value in figures.items()
        if isinstance(value, list) and name not in ("class_names", "keypoint_names")
    }
    if per_class and len(names) <= 50:
        columns = [
            ["n/a" if value is None else f"{value:.3f}" for value in values]
            for values in per_class.values()
        ]
        kind = "keypoint" if "keypoint_names" in figures else "class"
        show_table((kind, *per_class), zip(names, *columns, strict=True))
    if "threshold" in figures:
        typer.echo(
            f"{figures['num_found']} of {figures['num_subjects']} subjects were found with a score "
            f"of {figures['threshold']:.2f} or more; the others are wrong in pck and have no pixel "
            f"errors"
        )
    typer.echo(f"images: {opened.folder / 'pictures' / 'eval'}")
