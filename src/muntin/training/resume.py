# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that resume or repeat an earlier run."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from muntin.configs import from_dict, to_dict
from muntin.errors import ConfigError, RunError
from muntin.recipes import MachineConfig
from muntin.runs import WEIGHTS, Run, RunConfig, read_json
from muntin.samples import Listing
from muntin.training.request import Request

__all__ = [
    "check_same_data",
    "choose_machine",
    "read_config",
    "repeat_request",
    "resume_request",
]


def resume_request(request: Request, has_out: bool) -> Request:
    """Return the request of the run in `out`, which the user must have given.

    Raises:
        ConfigError: A setting is given too, or no `out`.
        RunError: `out` is not a run.
    """
    free = ("task", "data", "val", "out")
    plain = Request(**{name: getattr(request, name) for name in free}, machine=MachineConfig())
    # Everything else must have its default.
    given = [f.name for f in fields(plain) if getattr(request, f.name) != getattr(plain, f.name)]
    if given:
        message = (
            f"a resumed run keeps its settings, got {', '.join(given)} with --resume. Omit "
            f"them, or start a new run with --config and another --out."
        )
        raise ConfigError(message)
    if not has_out:
        message = "--resume needs a run folder, got no --out. Pass the run folder as --out."
        raise ConfigError(message)
    if not Path(request.out).is_dir():
        message = (
            f"--resume needs an existing run folder, got --out {request.out}. Check the path, or "
            f"omit --resume to start a new run there."
        )
        raise RunError(message)
    base = Run.open(request.out).config
    val = request.val or base.val
    # Weights come from the checkpoint: loading others first would waste time.
    return replace(request, val=val, weights="none", machine=base.machine, base=base)


def repeat_request(request: Request) -> Request:
    """Fill in weights and validation images of a run that is repeated with --config.

    Raises:
        ConfigError: A recipe is given beside the config.
        RunError: `out` contains a run already.
    """
    folder, base = Path(request.out), request.base
    # A run that stopped before its first checkpoint has nothing to lose and is overwritten.
    if any((folder / name).exists() for name in ("last.ckpt", "last.ckpt.old", WEIGHTS)):
        message = (
            f"out must be a new folder, got {folder}, which contains a run. Pass another --out, or "
            f"--resume to continue it."
        )
        raise RunError(message)
    if base is None:
        return request
    if request.recipe != "auto":
        message = f"--config includes a recipe, got --recipe {request.recipe} too. Omit one."
        raise ConfigError(message)
    weights = (base.weights or "none") if request.weights == "auto" else request.weights
    val = request.val or (base.val if base.data == request.data else "")
    return replace(request, weights=weights, val=val)


def read_config(path: str | Path) -> RunConfig:
    """Read ``config.json`` of a run.

    Raises:
        ConfigError: The file does not exist, or has other content.
    """
    try:
        return RunConfig.from_dict(read_json(Path(path)), where=str(path))
    except RunError as error:
        message = f"config must be the config.json of a run: {error}"
        raise ConfigError(message) from error


def check_same_data(folder: Path, run: Run, train: Listing, val: Listing) -> None:
    """Check that a resumed run gets the images it started with; they may have been moved.

    Raises:
        RunError: They are others.
    """
    saved = read_json(folder / "split.json")
    # The validation images are compared by path, as their metrics select the best epoch.
    same = (
        saved["train"][1:] == [len(train)]
        and saved["val"][1:] == [[entry.path for entry in val.entries]]
        and Run.open(folder).classes == run.classes
    )
    if not same:
        message = (
            f"a run must be resumed with the images it started with, got others in {train.source} "
            f"(see {folder / 'split.json'}). Restore them, or start a new run with --config."
        )
        raise RunError(message)


def choose_machine(
    base: RunConfig | None, precision: str, device: str, devices: int
) -> MachineConfig:
    """Machine settings of a request: those given, over those of the repeated run.

    Raises:
        ConfigError: A value is invalid.
    """
    values: dict[str, Any] = {"precision": precision, "device": device, "devices": devices}
    if base is not None:
        # "auto" and 1 are the defaults: the user has not chosen a value.
        given = {key: value for key, value in values.items() if value not in ("auto", 1)}
        values = {**to_dict(base.machine), **given}
    return from_dict(MachineConfig, values, where="the command")
