# SPDX-License-Identifier: Apache-2.0
"""``muntin serve RUN|FILE...``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from muntin.commands.values import DetectorOption, DeviceOption, SettingsOption, parse_settings
from muntin.errors import ConfigError, missing_extra

if TYPE_CHECKING:
    from muntin.serving.serve_settings import ServeLimits


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILE...", help="Run folders or exported files; NAME=PATH names one."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        str, typer.Option(help="File with the token that clients must send.")
    ] = "",
    open_: Annotated[
        bool, typer.Option("--open", help="Let everyone ask who reaches a public --host.")
    ] = False,
    drain: Annotated[
        float, typer.Option(help="Seconds to finish accepted requests after SIGTERM.")
    ] = 30.0,
    log_format: Annotated[str, typer.Option(help="plain, json or none.")] = "plain",
    files: Annotated[
        str, typer.Option(help="Folder of images that Label Studio may name in tasks.")
    ] = "",
    detector: DetectorOption = "",
    device: DeviceOption = "auto",
    engine: Annotated[
        str, typer.Option(help="eager, compile, onnxruntime, openvino, cuda, or auto: the fastest.")
    ] = "eager",
    precision: Annotated[str, typer.Option(help="Precision of the engine: fp32 or bf16.")] = "fp32",
    settings: SettingsOption = None,
    to: Annotated[
        tuple[str, str],
        typer.Option(
            metavar="SERVER OUT",
            help="Write OUT for ray, kserve, triton or openvino-model-server instead.",
        ),
    ] = ("", ""),
    force: Annotated[bool, typer.Option("--force", help="Replace files of a bundle.")] = False,
) -> None:
    """Answer requests over HTTP, with a page to look at the answers."""
    if any(to):
        from muntin.serving.bundles import write_bundle

        kind, out = to
        for line in write_bundle(kind, models, out, force=force):
            typer.echo(line)
        return
    limits = _parse_limits(settings)
    try:
        from muntin.serving.server import serve as run
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "fastapi", "serve", "muntin serve") from error
    from muntin.serving.serve_settings import LoadOptions, ServeSettings, name_models, read_token

    load = LoadOptions(engine=engine, precision=precision, device=device, detector=detector)
    chosen = ServeSettings(
        models=name_models(models), host=host, port=port, token=read_token(token_file),
        open=open_, drain=drain, log=log_format, files=files, load=load, limits=limits,
    )  # fmt: skip
    run(chosen, say=lambda line: typer.echo(f"muntin: {line}", err=True))


def _parse_limits(settings: list[str] | None) -> ServeLimits:
    """Read ``limits.images=32`` and the like."""
    from muntin.configs import with_texts
    from muntin.serving.serve_settings import ServeLimits

    chosen = parse_settings(settings, "--set")
    if wrong := [name for name in chosen if not name.startswith("limits.")]:
        message = f"--set of serve must name limits, such as limits.images=32, got {wrong[0]!r}."
        raise ConfigError(message)
    texts = [(name.removeprefix("limits."), value) for name, value in chosen.items()]
    return with_texts(ServeLimits(), texts, where="--set", group="limits")
