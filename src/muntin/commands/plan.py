# SPDX-License-Identifier: Apache-2.0
"""``muntin plan TASK DATA``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from muntin.commands import values

if TYPE_CHECKING:
    from muntin.planning.estimate import Plan

_SETTINGS = (
    "Same as for train. train.memory_gib=4 is the memory budget in GiB of training, on top of the "
    "process itself (about 0.9 GiB on a CPU); 0: no limit."
)


def plan(
    task: values.TaskArgument,
    data: values.DataArgument,
    val: values.ValOption = "",
    model: values.ModelOption = "",
    head: values.HeadOption = "",
    objective: values.ObjectiveOption = "auto",
    weights: values.WeightsOption = "auto",
    part: values.PartOption = "",
    recipe: values.RecipeOption = "auto",
    adapt: values.AdaptOption = "",
    freeze: values.FreezeOption = None,
    epochs: values.EpochsOption = None,
    batch_size: values.BatchOption = "auto",
    img_size: values.SideOption = "",
    precision: values.PrecisionOption = "auto",
    device: values.DeviceOption = "auto",
    settings: Annotated[list[str] | None, typer.Option("--set", help=_SETTINGS)] = None,
    as_json: values.JsonOption = False,
    teacher: values.TeacherOption = "",
    teacher_cache: values.TeacherCacheOption = "",
) -> int:
    """Predict memory and time of training, or of `pretrain`; exit code 1 if it does not fit."""
    head = head or ("" if objective == "auto" else objective)
    parsed: dict[str, Any] = {
        "batch_size": values.parse_batch(batch_size),
        "img_size": values.parse_size(img_size),
        "settings": values.train_settings(settings, adapt, freeze, teacher_cache, epochs),
    }
    typer.echo("measuring a few steps; this may take a minute ...", err=True)
    from muntin.planning.estimate import plan as make_plan

    found = make_plan(
        task,
        data,
        val=val,
        model=model,
        head=head,
        weights=values.with_part(weights, part),
        recipe=recipe,
        precision=precision,
        device=device,
        teacher=teacher,
        **parsed,
    )
    if as_json:
        typer.echo(values.to_json(found.to_dict()))
    else:
        show_plan(found)
    return int(not found.fits)


def show_plan(plan: Plan) -> None:
    """Print a plan: choices, memory by part, and times."""
    for note in plan.notes:
        typer.echo(note)
    rows = [
        ("teacher", plan.teacher),
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
    values.print_table(
        ("predicted memory", "MiB"), ((name, f"{value:.0f}") for name, value in rows if value)
    )
    times = [
        ("step, predicted", plan.step_s),
        (f"epoch of {plan.steps} steps with validation, predicted", plan.epoch_s),
        *((f"{name}, measured", value) for name, value in plan.measured),
    ]
    values.print_table(("time", "s"), ((name, f"{value:.4g}") for name, value in times))


def _describe_budget(plan: Plan) -> str:
    if not plan.memory_gib:
        return (
            " (free now + already held by this process)" if plan.process else " (free on the GPU)"
        )
    process = f"process {plan.process:.0f} + " if plan.process else ""
    return f" ({process}train.memory_gib {plan.memory_gib:g} GiB)"
