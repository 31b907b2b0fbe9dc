# SPDX-License-Identifier: Apache-2.0
"""``muntin train TASK DATA``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from muntin.commands import values
from muntin.errors import quote


def train(
    task: values.TaskArgument,
    data: Annotated[
        str, typer.Argument(help="Class folders, CSV, COCO, VOC, YOLO, masks, DeepLabCut; .zip.")
    ],
    val: values.ValOption = "",
    model: values.ModelOption = "",
    head: values.HeadOption = "",
    weights: values.WeightsOption = "auto",
    part: values.PartOption = "",
    recipe: values.RecipeOption = "auto",
    adapt: values.AdaptOption = "",
    freeze: values.FreezeOption = None,
    epochs: values.EpochsOption = None,
    max_time: values.MaxTimeOption = "",
    batch_size: values.BatchOption = "auto",
    img_size: values.SideOption = "",
    precision: values.PrecisionOption = "auto",
    device: values.DeviceOption = "auto",
    devices: values.DevicesOption = None,
    nodes: values.NodesOption = None,
    on: values.OnOption = "",
    seed: values.SeedOption = None,
    out: values.RunFolderOption = "",
    resume: values.ResumeOption = False,
    settings: values.SettingsOption = None,
    config: values.ConfigOption = "",
    teacher: values.TeacherOption = "",
    teacher_cache: values.TeacherCacheOption = "",
    log: values.LogOption = "",
    check_first: values.CheckFirstOption = False,
    extend: values.ExtendOption = "",
    folds: values.FoldsOption = 0,
) -> int:
    """Train a model on your images."""
    started = time.monotonic()  # before libraries are imported, which takes seconds of a time limit
    from muntin.training.session import train as run_training

    run = run_training(
        task,
        data,
        val=val, model=model, head=head, weights=values.with_part(weights, part), recipe=recipe,
        epochs=epochs or 0, max_time_s=values.parse_time(max_time),
        batch_size=values.parse_batch(batch_size), img_size=values.parse_size(img_size),
        precision=precision, device=device, on=on,
        devices=devices or 0, nodes=nodes or 0,
        seed=-1 if seed is None else seed, out=out, resume=resume,
        settings=values.train_settings(
            settings, adapt, freeze, teacher_cache, log=log, check=check_first
        ),
        config=config or None, started=started, teacher=teacher, extend=extend, folds=folds,
    )  # fmt: skip
    if not (run.interrupted or run.rank or folds):
        typer.echo(f"next: muntin predict {quote(run.path)} IMAGE...")
    return int(run.interrupted)
