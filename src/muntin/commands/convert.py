# SPDX-License-Identifier: Apache-2.0
"""``muntin convert IN OUT``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import PartOption, parse_settings, with_part
from muntin.errors import UsageError, quote, shorten


def convert(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="Weights: a file, folder, run or hub id.")
    ],
    target: Annotated[
        str,
        typer.Argument(
            metavar="OUT", help="A .safetensors, .pth or .npz file; for a run, a folder."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="timm, torchvision, transformers, microsoft, openmmlab, detectron2, google or run."
        ),
    ],
    model: Annotated[
        str, typer.Option(help="Model name, see: muntin models. Default: by files beside IN.")
    ] = "",
    from_: Annotated[str, typer.Option("--from", help="Format of IN; auto detects it.")] = "auto",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Fields of model and head: img_size=96, head.box_dim=64."),
    ] = None,
    part: PartOption = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    head: Annotated[
        str, typer.Option(help="With --to run: mask_rcnn, upernet ... Default: a classifier.")
    ] = "",
    classes: Annotated[
        str, typer.Option(help="With --to run: text file with one class name per line.")
    ] = "",
    head_rows: Annotated[
        str, typer.Option(help="Text file with the class ids of IN to keep, one per line.")
    ] = "",
) -> None:
    """Convert weights between libraries without loss, or a published model to a run."""
    source, changed = with_part(source, part), parse_settings(settings)
    changed |= {"head.rows": head_rows} if head_rows else {}
    if to == "run":
        _write_run(source, target, changed, (model, head, from_, classes))
        return
    if head or classes:
        message = f"--head and --classes require --to run, got --to {to}."
        raise UsageError(message)
    from muntin.zoo.weight_conversion import convert_weights

    done = convert_weights(
        source, target, name=model, to=to, dialect=from_, settings=changed.items(), force=force
    )
    typer.echo(f"read: {done.report.summary()}")
    kept = f"{done.num_classes} classes" if done.num_classes else "no classifier"
    typer.echo(f"written: {done.path} ({to}, {done.num_tensors} tensors, {kept}); read back: equal")
    if done.left_out:
        typer.echo(f"left out: {len(done.left_out)} ({', '.join(done.left_out[:3])} ...)")
    if done.unwritten:
        fields = ", ".join(f"{field}={value!r}" for field, value in done.unwritten.items())
        typer.echo(f"not in the file, to be set where it is read: {fields}")
    if done.report.license:
        typer.echo(f"licence: {done.report.license}")


def _write_run(
    source: str, target: str, settings: dict[str, str], options: tuple[str, str, str, str]
) -> None:
    from muntin.published import open_published, read_class_names

    model, head, dialect, classes = options
    run, report = open_published(
        source,
        target,
        model=model,
        head=head,
        dialect=dialect,
        class_names=read_class_names(classes) if classes else (),
        settings=settings,
    )
    pre, names = run.preprocessing, run.classes.names
    typer.echo(f"read: {report.summary()}")
    typer.echo(f"images: {pre.img_size}, {pre.fit}, mean {pre.mean}, std {pre.std}")
    shown = shorten(names, limit=3)
    typer.echo(f"written: {run.path} ({run.config.task}, {len(names)} classes: {shown})")
    typer.echo(f"next: muntin predict {quote(run.path)} IMAGE...")
