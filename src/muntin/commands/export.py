# SPDX-License-Identifier: Apache-2.0
"""``muntin export RUN|MODEL OUT``."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Annotated, cast

import typer

from muntin.commands.values import (
    PartOption,
    SizeOption,
    parse_size,
    print_table,
    with_part,
)
from muntin.errors import quote

if TYPE_CHECKING:
    from muntin.engines.graphs import Precision
    from muntin.exporting.run_export import Exported


def export(
    source: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run folder, or a model name.")
    ],
    out: Annotated[str, typer.Argument(help="Output file; a missing suffix is added.")],
    format: Annotated[str, typer.Option("--format", help="onnx, openvino or torch.")] = "onnx",
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 (openvino, torch) or int8 (onnx, openvino).")
    ] = "fp32",
    data: Annotated[str, typer.Option(help="Labelled images; required for int8.")] = "",
    max_loss: Annotated[
        float,
        typer.Option(
            help="int8 only: allowed drop of the metric in percentage points.", min=0, max=100
        ),
    ] = 0.5,
    img_size: SizeOption = "",
    weights: Annotated[
        str, typer.Option(help="For MODEL: auto, none, a file, a folder or a hub id.")
    ] = "auto",
    part: PartOption = "",
    finished: Annotated[
        bool,
        typer.Option("--postprocess", help="Also output probabilities, label maps or keypoints."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
) -> None:
    """Export to ONNX, OpenVINO or torch.export; fails if outputs differ from the network's."""
    from muntin.exporting.run_export import export as write

    # SIGTERM would kill the process before `finally` blocks remove partial files.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    done = write(
        source,
        out,
        format=format,
        precision=cast("Precision", precision),
        img_size=parse_size(img_size) if img_size else None,
        weights=with_part(weights, part),
        data=data,
        max_loss=max_loss,
        finished=finished,
        force=force,
        say=lambda line: typer.echo(line, err=True),
    )
    _show(done)


def _show(done: Exported) -> None:
    print_table(
        ("images", "size", "batch", "max difference", "tolerance"),
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
            f"int8: {found.layers - found.kept} of {found.layers} layers; metric "
            f"{found.before:.4f} -> {found.after:.4f}, speed "
            f"{found.speeds[0]:.0f} -> {found.speeds[1]:.0f} images/s"
        )
    height, width = done.size
    typer.echo(
        f"written: {done.path}; inputs: {', '.join(done.inputs)} (uint8, any batch size, "
        f"{height}x{width}); outputs: {', '.join(done.outputs)}"
    )
    if done.note:
        typer.echo(done.note)
    typer.echo(f"next: muntin predict {quote(done.path)} IMAGE...")
