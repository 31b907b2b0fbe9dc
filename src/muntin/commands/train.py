# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin train TASK DATA``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import parse_batch, parse_settings, parse_size, parse_time

__all__ = ["train"]


def train(
    task: Annotated[str, typer.Argument(help="classify, detect, instance, semantic or pose.")],
    data: Annotated[
        str, typer.Argument(help="Class folders, CSV, COCO, VOC, YOLO, masks, DeepLabCut; .zip.")
    ],
    val: Annotated[str, typer.Option(help="Validation data, if DATA has none.")] = "",
    model: Annotated[
        str, typer.Option(help="Model name (see: muntin models); default: automatic.")
    ] = "",
    head: Annotated[str, typer.Option(help="fcos, upernet, vitpose ...; default: automatic.")] = "",
    weights: Annotated[str, typer.Option(help="auto, none, a file, a run or a hub id.")] = "auto",
    recipe: Annotated[str, typer.Option(help="auto, small-data, finetune, imagenet ...")] = "auto",
    epochs: Annotated[int | None, typer.Option(help="Number of epochs.", min=1)] = None,
    max_time: Annotated[str, typer.Option(help="Limit of total wall time: 90s, 15m, 2h.")] = "",
    batch_size: Annotated[str, typer.Option(help="Images per step, or auto.")] = "auto",
    img_size: Annotated[str, typer.Option(help="Side in pixels, or HxW.")] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    devices: Annotated[int, typer.Option(help="Number of devices (one process each).", min=1)] = 1,
    seed: Annotated[int | None, typer.Option(help="Random seed.", min=0)] = None,
    out: Annotated[str, typer.Option(help="Run folder; default: runs/NAME.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Any config field: train.learning_rate=1e-4.")
    ] = None,
    config: Annotated[str, typer.Option(help="Repeat a run from its config.json.")] = "",
) -> int:
    """Train a model on your images."""
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
