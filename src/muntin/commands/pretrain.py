# SPDX-License-Identifier: Apache-2.0
"""``muntin pretrain IMAGES``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from muntin.commands import values
from muntin.errors import quote

_PROBE = (
    "Labelled images (as for train classify), with which the run ends in a verdict on what it "
    "has gained. Adds about a tenth of the time, and more to a short run."
)


def pretrain(
    images: Annotated[
        str,
        typer.Argument(help="Folder, archive, list (.txt, .csv) or data set; labels are not used."),
    ],
    model: values.ModelOption = "",
    objective: values.ObjectiveOption = "auto",
    probe: Annotated[str, typer.Option(help=_PROBE)] = "",
    weights: Annotated[
        str, typer.Option(help="To go on from: a file, a run or a hub id; default: random.")
    ] = "auto",
    part: values.PartOption = "",
    recipe: Annotated[str, typer.Option(help="auto, pretrain, pretrain-small ...")] = "auto",
    epochs: values.EpochsOption = None,
    max_time: values.MaxTimeOption = "",
    batch_size: values.BatchOption = "auto",
    img_size: values.SideOption = "",
    precision: values.PrecisionOption = "auto",
    device: values.DeviceOption = "auto",
    devices: values.DevicesOption = None,
    nodes: values.NodesOption = None,
    seed: values.SeedOption = None,
    out: values.RunFolderOption = "",
    resume: values.ResumeOption = False,
    settings: values.SettingsOption = None,
    config: values.ConfigOption = "",
    log: values.LogOption = "",
) -> int:
    """Learn from images without labels, for `train --weights RUN` to go on from."""
    # Before the libraries are imported, which takes seconds of the time limit.
    started = time.monotonic()
    from muntin.training.pretraining_session import pretrain as run_pretraining

    run = run_pretraining(
        images,
        precision=precision,
        device=device,
        devices=devices or 0,
        nodes=nodes or 0,
        seed=-1 if seed is None else seed,
        model=model,
        objective=objective,
        probe=probe,
        weights=values.with_part(weights, part),
        recipe=recipe,
        epochs=epochs or 0,
        max_time_s=values.parse_time(max_time),
        batch_size=values.parse_batch(batch_size),
        img_size=values.parse_size(img_size),
        out=out,
        resume=resume,
        settings=values.train_settings(settings, log=log),
        config=config or None,
        started=started,
    )
    if not (run.interrupted or run.rank):
        typer.echo(f"next: muntin train TASK DATA --weights {quote(run.path)}")
    return int(run.interrupted)
