# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin train TASK DATA``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import parse_batch, parse_settings, parse_size, parse_time

__all__ = ["train"]


def train(
    task: Annotated[str, typer.Argument(help="classify, detect, instance, semantic, pose.")],
    data: Annotated[
        str, typer.Argument(help="Class folders, CSV; COCO, VOC, YOLO; masks; DeepLabCut; .zip.")
    ],
    val: Annotated[str, typer.Option(help="Validation images, if DATA has none.")] = "",
    model: Annotated[str, typer.Option(help="See: muntin models. Chosen when left out.")] = "",
    head: Annotated[
        str, typer.Option(help="fcos, upernet, vitpose ... Chosen when left out.")
    ] = "",
    weights: Annotated[str, typer.Option(help="auto, none, a file, a run or a hub id.")] = "auto",
    recipe: Annotated[str, typer.Option(help="auto, small-data, finetune, imagenet ...")] = "auto",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", min=1)] = None,
    max_time: Annotated[str, typer.Option(help="Wall time for everything: 90s, 15m, 2h.")] = "",
    batch_size: Annotated[str, typer.Option(help="Images a step, or auto.")] = "auto",
    img_size: Annotated[str, typer.Option(help="Side in pixels, or HxW.")] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes, one a device.", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", min=0)] = None,
    out: Annotated[str, typer.Option(help="The run folder; runs/NAME when left out.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any field: train.learning_rate=1e-4.")
    ] = None,
    config: Annotated[str, typer.Option(help="config.json of a run to repeat.")] = "",
) -> int:
    """Train a model on your own images."""
    from muntin.training.session import train as run_training

    run = run_training(
        task,
        data,
        val=val,
        model=model,
        head=head,
        weights=weights,
        recipe=recipe,
        epochs=epochs or 0,
        max_time_s=parse_time(max_time),
        batch_size=parse_batch(batch_size),
        img_size=parse_size(img_size),
        precision=precision,
        device=device,
        devices=devices,
        seed=-1 if seed is None else seed,
        out=out,
        resume=resume,
        settings=parse_settings(settings or []),
        config=config or None,
    )
    if not run.interrupted:
        typer.echo(f"next: muntin predict {run.path} IMAGE...")
    return int(run.interrupted)
