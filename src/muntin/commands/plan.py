# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin plan TASK DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muntin.commands.showing import show_table
from muntin.commands.values import parse_batch, parse_settings, parse_size, to_json

if TYPE_CHECKING:
    from muntin.planning.forecast import Plan

__all__ = ["plan", "show_plan"]

_SETTINGS = (
    "As for train. train.memory_gib=4 is the room, in GiB, for what training adds to the process "
    "(which takes about 0.9 GiB more on a CPU); 0 is no limit."
)


def plan(
    task: Annotated[str, typer.Argument(help="classify, detect, instance, semantic, pose.")],
    data: Annotated[str, typer.Argument(help="As for train.")],
    val: Annotated[str, typer.Option(help="Validation images, if DATA has none.")] = "",
    model: Annotated[str, typer.Option(help="See: muntin models. Chosen when left out.")] = "",
    head: Annotated[str, typer.Option(help="As for train.")] = "",
    weights: Annotated[str, typer.Option(help="auto, none, a file, a run or a hub id.")] = "auto",
    recipe: Annotated[str, typer.Option(help="auto, small-data, finetune, imagenet ...")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images a step, or auto.")] = "auto",
    img_size: Annotated[str, typer.Option(help="Side in pixels, or HxW.")] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16, fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    settings: Annotated[list[str] | None, typer.Option("--set", help=_SETTINGS)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout: memory in MiB, time in s.")
    ] = False,
) -> int:
    """Predict memory and time of training before it starts; exit code 1 if it does not fit."""
    batch, side, fields = (
        parse_batch(batch_size),
        parse_size(img_size),
        parse_settings(settings or []),
    )
    typer.echo("measuring a few steps, which may take a minute ...", err=True)
    from muntin.planning.forecast import plan as draw_up

    found = draw_up(
        task,
        data,
        val=val,
        model=model,
        head=head,
        weights=weights,
        recipe=recipe,
        batch_size=batch,
        img_size=side,
        precision=precision,
        device=device,
        settings=fields,
    )
    if as_json:
        typer.echo(to_json(found.to_dict()))
    else:
        show_plan(found)
    return int(not found.fits)


def show_plan(plan: Plan) -> None:
    """Print a plan: what was chosen, memory by what it is for, and times."""
    for note in plan.notes:
        typer.echo(note)
    rows = [
        ("parameters", plan.parameters),
        ("gradients", plan.gradients),
        ("optimizer", plan.optimizer),
        ("averaged weights", plan.averaged),
        *((f"activations, {name}", value) for name, value in plan.activations),
        ("workspace", plan.workspace),
        ("holes between tensors", plan.holes),
        ("process", plan.process),
        ("training, peak", plan.peak),
        (f"validation, {plan.inference_batch} at a time", plan.inference),
        (f"there is{_word_room(plan)}", plan.room),
    ]
    if plan.num_blocks:
        typer.echo(f"blocks computed again: {plan.recomputed_blocks} of {plan.num_blocks}")
    typer.echo(f"the worst moment of a step is {plan.moment}; this is there then")
    show_table(
        ("memory, predicted", "MiB"), ((name, f"{value:.0f}") for name, value in rows if value)
    )
    times = [
        ("a step, predicted", plan.step_s),
        (f"an epoch of {plan.steps} steps and validation, predicted", plan.epoch_s),
        *((f"{name}, measured", value) for name, value in plan.measured),
    ]
    show_table(("time", "s"), ((name, f"{value:.4g}") for name, value in times))


def _word_room(plan: Plan) -> str:
    if not plan.memory_gib:
        return " (free now, and what the process has)" if plan.process else " (free on the GPU)"
    process = f"process {plan.process:.0f} + " if plan.process else ""
    return f" ({process}train.memory_gib {plan.memory_gib:g} GiB)"
