# SPDX-License-Identifier: Apache-2.0
"""``muntin bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from muntin.commands.values import JsonOption, parse_names, parse_size, print_table, to_json


def bench(
    what: Annotated[
        str, typer.Argument(help="inference, training, memory, data or attention.")
    ] = "inference",
    run: Annotated[
        str, typer.Argument(help="For inference: a run or exported file, in parts; no --model.")
    ] = "",
    model: Annotated[str, typer.Option(help="Model name; see: muntin models.")] = "swin_tiny",
    peers: Annotated[
        str, typer.Option(help="Libraries to compare with, if installed, or none.")
    ] = "timm,torchvision,transformers,onnxruntime,openvino",
    batch_size: Annotated[int, typer.Option(help="Images per batch; 1 measures latency.")] = 8,
    img_size: Annotated[
        str, typer.Option(help="N or HxW in pixels; default: the model's own.")
    ] = "",
    rounds: Annotated[int, typer.Option(help="Interleaved rounds per competitor.")] = 9,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also measure torch.compile; takes minutes.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Benchmark a model against other libraries: same weights and inputs, interleaved runs."""
    from muntin.benching.benchmark_kinds import run_benchmark
    from muntin.benching.peers import BenchRequest

    request = BenchRequest(
        model=model,
        peers=[] if peers == "none" else list(parse_names(peers)),
        batch_size=batch_size,
        size=parse_size(img_size) if img_size else None,
        rounds=rounds,
        compiled=compiled,
        log=lambda line: typer.echo(line, err=True),
        run=run,
    )
    found = run_benchmark(what, request)
    if as_json:
        typer.echo(to_json(found))
        return
    _show(found)


def _show(found: dict[str, Any]) -> None:
    from muntin.benching.result_rows import format_rows

    height, width = found["img_size"]
    typer.echo(
        f"{found['model']} at {height}x{width}, batch {found['batch_size']}, "
        f"{found['threads']} threads"
    )
    ceilings = found.get("ceilings", {})
    if ceilings:
        limits = ", ".join(
            f"{ceilings[p]:.0f} GFLOP/s {p}" for p in ("fp32", "bf16", "int8") if p in ceilings
        )
        typer.echo(
            f"machine limits: {limits}, memory copy {ceilings['copy_gb_s']:.0f} GB/s; "
            f"{found['gmacs']:.2f} GMACs per image"
        )
    print_table(*format_rows(found))
