# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""``muntin export RUN|MODEL OUT``."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from muntin.commands.showing import show_table
from muntin.commands.values import parse_size

if TYPE_CHECKING:
    from muntin.exporting.exporting import Exported

__all__ = ["export"]


def export(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or a name.")],
    out: Annotated[str, typer.Argument(help="The file; a suffix is added when left out.")],
    format: Annotated[str, typer.Option("--format", help="onnx, openvino, torch.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32; bf16 (openvino, torch); int8 (onnx, openvino).")
    ] = "fp32",
    data: Annotated[str, typer.Option(help="Images with labels; int8 needs them.")] = "",
    max_loss: Annotated[
        float, typer.Option(help="Of int8: points that the figure may fall by.", min=0, max=100)
    ] = 0.5,
    img_size: Annotated[str, typer.Option(help="N or HxW; that of the run.")] = "",
    weights: Annotated[str, typer.Option(help="Of a MODEL: file, folder or hub id.")] = "",
    finished: Annotated[
        bool, typer.Option("--postprocess", help="Give probabilities, labels, keypoints too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
) -> None:
    """Write a file for ONNX Runtime, OpenVINO or torch.export, if it says what the network says."""
    from muntin.exporting.exporting import export as write

    # What is half written is removed on the way out; the system's word to end is no way out.
    signal.signal(signal.SIGTERM, _leave)
    options: dict[str, Any] = {"precision": precision}
    done = write(
        source,
        out,
        format=format,
        img_size=parse_size(img_size) if img_size else None,
        weights=weights or None,
        data=data,
        max_loss=max_loss,
        finished=finished,
        force=force,
        say=lambda line: typer.echo(line, err=True),
        **options,
    )
    _show(done)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _show(done: Exported) -> None:
    show_table(
        ("pictures", "size", "batch", "largest difference", "allowed"),
        [
            (
                row.examples,
                f"{row.size[0]}x{row.size[1]}",
                str(row.batch),
                f"{row.difference:.1e}",
                "see below" if row.limit > 1 else f"{row.limit:.0e}",
            )
            for row in done.rows
        ],
    )
    if done.quantised is not None:
        found = done.quantised
        typer.echo(
            f"8 bits: {found.layers - found.kept} of {found.layers} layers; the file's figure on "
            f"the data {found.before:.4f} before, {found.after:.4f} after; "
            f"{found.speeds[0]:.0f} pictures/s before, {found.speeds[1]:.0f} after"
        )
    high, wide = done.size
    typer.echo(
        f"written: {done.path}; reads {', '.join(done.inputs)}: uint8 pixels, any number of "
        f"images, fixed at {high}x{wide}; gives {', '.join(done.outputs)}"
    )
    if done.note:
        typer.echo(done.note)
    typer.echo(f"next: muntin predict {done.path} IMAGE...")
