# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin plan TASK DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muntin.commands.console_table import print_table
from muntin.commands.values import parse_batch, parse_settings, parse_size, to_json

if TYPE_CHECKING:
    from muntin.planning.estimate import Plan

__all__ = ["plan", "show_plan"]

_SETTINGS = (
    "Same as for train. train.memory_gib=4 is the memory budget in GiB of training, on top of the "
    "process itself (about 0.9 GiB on a CPU); 0: no limit."
)


def plan(
    task: Annotated[str, typer.Argument(help="classify, detect, instance, semantic or pose.")],
    data: Annotated[str, typer.Argument(help="Same as for train.")],
    val: Annotated[str, typer.Option(help="Validation data, if DATA has none.")] = "",
    model: Annotated[
        str, typer.Option(help="Model name (see: muntin models); default: automatic.")
    ] = "",
    head: Annotated[str, typer.Option(help="Same as for train.")] = "",
    weights: Annotated[str, typer.Option(help="auto, none, a file, a run or a hub id.")] = "auto",
    recipe: Annotated[str, typer.Option(help="auto, small-data, finetune, imagenet ...")] = "auto",
    batch_size: Annotated[str, typer.Option(help="Images per step, or auto.")] = "auto",
    img_size: Annotated[str, typer.Option(help="Side in pixels, or HxW.")] = "",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    settings: Annotated[list[str] | None, typer.Option("--set", help=_SETTINGS)] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout; MiB and seconds.")
    ] = False,
) -> int:
    """Predict memory and time of training; exit code 1 if it does not fit."""
    batch, side, fields = (
        parse_batch(batch_size),
        parse_size(img_size),
        parse_settings(settings or []),
    )
    typer.echo("measuring a few steps; this may take a minute ...", err=True)
    from muntin.planning.estimate import plan as make_plan

    found = make_plan(
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
    """Print a plan: choices, memory by part, and times."""
    for note in plan.notes:
        typer.echo(note)
    rows = [
        ("parameters", plan.parameters),
        ("gradients", plan.gradients),
        ("optimizer", plan.optimizer),
        ("averaged weights", plan.averaged),
        *((f"activations, {name}", value) for name, value in plan.activations),
        ("workspace", plan.workspace),
        ("fragmentation", plan.holes),
        ("process", plan.process),
        ("training, peak", plan.peak),
        (f"validation, batch {plan.inference_batch}", plan.inference),
        (f"available{_describe_budget(plan)}", plan.room),
    ]
    if plan.num_blocks:
        typer.echo(
            f"{'recomputed' if plan.recomputed_layers else 'plain'} layers, activation "
            f"checkpointing: {plan.recomputed_blocks} of {plan.num_blocks} blocks"
        )
    typer.echo(f"memory peaks {plan.moment}; at that point:")
    print_table(
        ("predicted memory", "MiB"), ((name, f"{value:.0f}") for name, value in rows if value)
    )
    times = [
        ("step, predicted", plan.step_s),
        (f"epoch of {plan.steps} steps with validation, predicted", plan.epoch_s),
        *((f"{name}, measured", value) for name, value in plan.measured),
    ]
    print_table(("time", "s"), ((name, f"{value:.4g}") for name, value in times))


def _describe_budget(plan: Plan) -> str:
    if not plan.memory_gib:
        return (
            " (free now + already held by this process)" if plan.process else " (free on the GPU)"
        )
    process = f"process {plan.process:.0f} + " if plan.process else ""
    return f" ({process}train.memory_gib {plan.memory_gib:g} GiB)"
