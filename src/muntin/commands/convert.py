# SPDX-License-Identifier: Apache-2.0
"""``muntin convert IN OUT``."""

from __future__ import annotations

from typing import Annotated

import typer

from muntin.commands.values import parse_settings


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
    model: Annotated[str, typer.Option(help="Model name; see: muntin models.")],
    to: Annotated[
        str,
        typer.Option(
            help="timm, torchvision, transformers, microsoft, openmmlab, detectron2, google or run."
        ),
    ],
    from_: Annotated[str, typer.Option("--from", help="Format of IN; auto detects it.")] = "auto",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Fields of the model config: img_size=96.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    head: Annotated[str, typer.Option(help="With --to run: mask_rcnn, upernet ...")] = "",
    classes: Annotated[
        str, typer.Option(help="With --to run: text file with one class name per line.")
    ] = "",
) -> None:
    """Convert weights between libraries without loss, or a published model to a run."""
    changed = parse_settings(settings)
    if to == "run" or head:
        _check_run(to, head)
        from muntin.published import open_published, read_class_names

        run, report = open_published(
            source,
            target,
            model=model,
            head=head,
            # Heads follow OpenMMLab and Microsoft unless another origin is given.
            conventions="" if from_ in ("auto", "microsoft", "openmmlab") else from_,
            class_names=read_class_names(classes) if classes else (),
            settings=changed,
        )
        typer.echo(f"read: {report.summary()}")
        typer.echo(f"written: {run.path} ({run.config.task}, {len(run.classes.names)} classes)")
        typer.echo(f"next: muntin predict {run.path} IMAGE...")
        return
    from muntin.zoo.weight_conversion import convert_weights

    done = convert_weights(
        source, target, name=model, to=to, dialect=from_, settings=changed.items(), force=force
    )
    typer.echo(f"read: {done.report.summary()}")
    kept = f"{done.num_classes} classes" if done.num_classes else "no classifier"
    typer.echo(f"written: {done.path} ({to}, {done.num_tensors} tensors, {kept}); read back: equal")
    if done.left_out:
        typer.echo(f"left out: {len(done.left_out)} ({', '.join(done.left_out[:3])} ...)")
    if done.report.license:
        typer.echo(f"licence: {done.report.license}")


def _check_run(to: str, head: str) -> None:
    from muntin.errors import ConfigError

    if to != "run" or not head:
        message = (
            f"writing a run requires both --to run and --head, got --to {to} and --head "
            f"{head or 'nothing'}."
        )
        raise ConfigError(message)
