# SPDX-License-Identifier: Apache-2.0
"""``muntin eval RUN DATA``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from muntin.commands.values import (
    DetectorOption,
    DeviceOption,
    JsonOption,
    OnOption,
    RunArgument,
    open_run_aloud,
    parse_settings,
    print_table,
    to_json,
)


def evaluate(
    run: RunArgument,
    data: Annotated[str, typer.Argument(help="Same as for train; the test split if present.")],
    as_json: JsonOption = False,
    batch_size: Annotated[int, typer.Option(help="Images per batch; 0: automatic.", min=0)] = 0,
    device: DeviceOption = "auto",
    detector: DetectorOption = "",
    tta: Annotated[
        bool, typer.Option("--tta", help="Test-time augmentation: average with mirrored images.")
    ] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Same as for train: data.ignored=background.")
    ] = None,
    on: OnOption = "",
) -> None:
    """Compute metrics of a run on a data set; plots go to RUN/pictures/eval."""
    from muntin.scoring.evaluation import evaluate as run_evaluation

    opened = open_run_aloud(run)
    figures = run_evaluation(
        opened,
        data,
        batch_size=batch_size,
        device=device,
        detector=detector,
        tta=tta,
        settings=parse_settings(settings),
        on=on,
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
    _print_per_class(figures, names)
    if "threshold" in figures:
        typer.echo(
            f"{figures['num_found']} of {figures['num_subjects']} instances were matched at score "
            f"threshold {figures['threshold']:.2f}; the others count as wrong in pck and have no "
            f"pixel error"
        )
    typer.echo(f"plots: {opened.folder / 'pictures' / 'eval'}")


def _print_per_class(figures: dict[str, Any], names: Sequence[str]) -> None:
    """Print a table of the figures that have one value for each class or keypoint."""
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
        print_table((kind, *per_class), zip(names, *columns, strict=True))
