# SPDX-License-Identifier: Apache-2.0
"""Bundles: folders with which another server answers, where one machine is not enough.

`muntin serve ... --to KIND OUT` writes the exported files, the configuration of the server, and a
README with the commands that start it and ask it. A bundle is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from muntin._version import __version__
from muntin.engines.engine_table import FORMATS, find_format
from muntin.errors import ConfigError, RunError, plural, quote, unknown_name
from muntin.runs import ExportedRun, Run
from muntin.serving.bundled_model import BundledModel, fill, write_text
from muntin.serving.model_repository import write_kserve, write_openvino, write_triton
from muntin.serving.serve_settings import ModelSource, name_models
from muntin.staging import format_json, writing
from muntin.untrusted import parse_json, read_regular

RECORD = "bundle.json"
"""What marks a folder as a bundle, which --force may replace."""


@dataclass(frozen=True, slots=True)
class BundleKind:
    """A server that bundles are written for.

    Attributes:
        formats: Formats of files that it runs; run folders are exported to the first.
        finished: Whether files that are exported for it get the finished output of the task, for
            clients without muntin.
        write: Writes everything but the record into an empty folder.
        next: What to do next; ``{out}`` is the folder.
    """

    formats: tuple[str, ...]
    finished: bool
    write: Callable[[Path, Sequence[BundledModel]], None]
    next: str


def write_ray(out: Path, models: Sequence[BundledModel]) -> None:
    """Write an application of Ray Serve, its configuration, and how to start it."""
    places = {model.name: f"models/{model.copy(out / 'models', model.name)}" for model in models}
    lines = "".join(f"    {json.dumps(name)}: {json.dumps(at)},\n" for name, at in places.items())
    write_text(out / "muntin_app.py", fill("ray_app", models=f"{{\n{lines}}}"))
    write_text(out / "serve_config.yaml", fill("ray_config"))
    write_text(out / "README.md", fill("ray", name=models[0].name))


KINDS: dict[str, BundleKind] = {
    "ray": BundleKind(
        ("onnx", "openvino", "torch"), False, write_ray, "cd {out} && serve run serve_config.yaml"
    ),
    "kserve": BundleKind(
        ("onnx",),
        True,
        write_kserve,
        "upload {out}/models, set its address, and kubectl apply -f {out}/inference-service.yaml",
    ),
    "triton": BundleKind(("onnx",), True, write_triton, "tritonserver --model-repository={out}"),
    "openvino-model-server": BundleKind(
        ("openvino", "onnx"),
        True,
        write_openvino,
        "start a container of the server, by {out}/README.md",
    ),
}


def write_bundle(
    kind: str, models: Sequence[str], out: str | Path, *, force: bool = False
) -> Iterator[str]:
    """Write a bundle, and yield lines that say what was done.

    Args:
        kind: A key of `KINDS`.
        models: Run folders, which are exported and verified first, and exported files; ``NAME=``
            before one names it.
        out: The folder; new, or empty.
        force: Whether to replace the bundle that is there.

    Raises:
        ConfigError: The kind is unknown, it cannot run a file, or two models have one name.
        RunError: A model cannot be read, or the folder cannot be written, or is none of bundles.
    """
    chosen = KINDS.get(kind)
    if chosen is None:
        raise ConfigError(unknown_name("server", kind, KINDS))
    sources = name_models(models)
    place = Path(out)
    _check_place(place, sources, force=force)
    for source in sources:
        _check_format(kind, chosen, source)
    with _staged(place) as stage, tempfile.TemporaryDirectory(prefix="muntin-") as work:
        packed = []
        for source in sources:
            run = Run.open(source.path)
            if not isinstance(run, ExportedRun):
                yield f"{source.name}: exporting {source.path} and comparing its answers"
                run = _export(run, Path(work) / source.name, chosen)
            packed.append(BundledModel(name=source.name, run=run))
        chosen.write(stage, packed)
        record = {
            "muntin": __version__,
            "kind": kind,
            "models": [model.record() for model in packed],
        }
        write_text(stage / RECORD, format_json(record) + "\n")
    yield f"{out}: {plural(len(packed), 'model')} for {kind}; README.md says how to start it"
    yield f"next: {chosen.next.format(out=quote(out))}"


def _export(run: Run, stem: Path, kind: BundleKind) -> ExportedRun:
    from muntin.exporting.run_export import export

    exported = export(run, stem, format=kind.formats[0], finished=kind.finished)
    opened = Run.open(exported.path)
    assert isinstance(opened, ExportedRun), "a file was written"
    return opened


def _check_format(kind: str, chosen: BundleKind, source: ModelSource) -> None:
    found = find_format(source.path)
    if found is None or found.name in chosen.formats or not Path(source.path).is_file():
        return  # a folder, or nothing: whoever opens it says so
    known = " or ".join(f"{name} ({FORMATS[name].suffix})" for name in chosen.formats)
    message = (
        f"--to {kind} runs files of {known}, got {source.path} of the format {found.name}. Give "
        f"the run folder, or export it: muntin export RUN NAME{FORMATS[chosen.formats[0]].suffix}"
    )
    raise ConfigError(message)


def _check_place(place: Path, sources: Sequence[ModelSource], *, force: bool) -> None:
    """Refuse a folder that holds an input, or something that may not be replaced."""
    real = Path(os.path.realpath(place))
    for source in sources:
        given = Path(os.path.realpath(source.path))
        if real == given or real in given.parents:
            message = (
                f"OUT must not hold an input, got {place} with {source.path} in it. Choose another "
                f"folder."
            )
            raise RunError(message)
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        message = f"OUT must be a folder, got {place}, which is none. Choose another name."
        raise RunError(message)
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not _is_bundle(place):
        message = (
            f"OUT must be new, empty or a bundle of muntin, got {place}, which holds other files. "
            f"Choose another folder."
        )
        raise RunError(message)
    if not force:
        message = f"OUT must be new or empty, got the bundle {place}. Replace it with --force."
        raise RunError(message)


def _is_bundle(place: Path) -> bool:
    try:
        found = parse_json(read_regular(place / RECORD))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "muntin" in found and found.get("kind") in KINDS


@contextlib.contextmanager
def _staged(place: Path) -> Iterator[Path]:
    """Yield a new folder whose content is at `place` if the block succeeds."""
    # Into a folder that is there, files are moved one by one: it may be a volume, or where the
    # user stands. A bundle is replaced as a whole, so that nothing of the old one stays.
    place = Path(os.path.abspath(place))
    inside = place.is_dir() and not any(place.iterdir())
    above = place.parent
    fresh = not above.exists()
    with writing(place):
        above.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".muntin-", dir=place if inside else above))
    try:
        stage = work / "new"
        stage.mkdir()
        with writing(place):
            yield stage
            (_fill_folder if inside else _replace_folder)(place, stage)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if fresh:
            with contextlib.suppress(OSError):  # keep it if it is not empty
                above.rmdir()


def _fill_folder(place: Path, stage: Path) -> None:
    moved: list[Path] = []
    try:
        for path in sorted(stage.iterdir()):
            moved.append(path.rename(place / path.name))
    except OSError:
        for path in moved:
            path.rename(stage / path.name)  # where it is removed
        raise


def _replace_folder(place: Path, stage: Path) -> None:
    old = stage.with_name("old")
    if place.exists():
        place.rename(old)
    try:
        stage.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
