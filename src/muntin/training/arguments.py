# SPDX-License-Identifier: Apache-2.0
"""The arguments that `train` and `pretrain` share, and their checks before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from muntin.errors import ConfigError
from muntin.run_config import RunConfig
from muntin.shapes import Size


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainArguments:
    """The arguments of `train`, which says what they mean."""

    task: str
    data: str | Path
    val: str | Path = ""
    head: str = ""
    teacher: str | Path = ""
    extend: str | Path = ""
    folds: int = 0
    model: str
    weights: str | Path | None
    recipe: str
    epochs: int
    max_time_s: float
    batch_size: int
    img_size: int | Size
    precision: str
    device: str
    devices: int
    nodes: int = 0
    on: str = ""
    seed: int
    out: str | Path
    resume: bool
    settings: Mapping[str, object] | None
    config: str | Path | RunConfig | None
    quiet: bool
    stop_after: int
    pictures: bool
    started: float


# Abstract classes of numbers: those of NumPy are welcome.
_TEXT, _PATH = ((str,), "a text"), ((str, os.PathLike), "a path")
_COUNT, _SECONDS = ((Integral,), "a whole number"), ((Real,), "a number of seconds")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("model", "head", "recipe", "precision", "device", "objective", "on"), _TEXT),
    **dict.fromkeys(("data", "images", "val", "teacher", "extend", "probe", "out"), _PATH),
    **dict.fromkeys(
        ("epochs", "batch_size", "devices", "nodes", "seed", "stop_after", "folds"), _COUNT
    ),
    **dict.fromkeys(("max_time_s", "started"), _SECONDS),
    "weights": ((str, os.PathLike, type(None)), "a path, a name or None"),
    "settings": ((Mapping, type(None)), "a mapping such as {'train.epochs': 10}"),
    "config": ((str, os.PathLike, RunConfig, type(None)), "a config.json or a RunConfig"),
}


def check_arguments(given: Mapping[str, object]) -> None:
    """Check the types of arguments; a `ConfigError` names the first wrong one."""
    for name, value in given.items():
        if name == "img_size":
            sides = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value,)
            fits, what = all(map(_is_count, sides)), "a side or (height, width) in pixels"
        elif name in _KINDS:
            kinds, what = _KINDS[name]
            # A bool is a whole number to Python, but not to anyone who counts epochs.
            fits = isinstance(value, kinds) and not isinstance(value, bool)
        else:  # flags, of which anything is true or false
            continue
        if not fits:
            message = f"{name} must be {what}, got {value!r}. Change it."
            raise ConfigError(message)


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
