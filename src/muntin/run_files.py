# SPDX-License-Identifier: Apache-2.0
"""The JSON files of a run folder, and the checksums of what belongs together in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from muntin.errors import RunError
from muntin.staging import checksum, format_json, replacing, write_file, writing
from muntin.untrusted import parse_json, read_regular, reading

CONFIG, CLASSES, PREPROCESSING = "config.json", "classes.json", "preprocessing.json"
WEIGHTS = "weights.safetensors"
RESULTS = "results.json"

_MODEL_KEYS = ("task", "model", "head")
_SUMS = "checksums"
"""Key of ``results.json``: SHA-256 by file name."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run; a `RunError` if it is missing or not a JSON object."""
    try:
        values: dict[str, Any] = parse_json(read_regular(path))
        if not isinstance(values, dict):
            message = f"a {type(values).__name__} instead of an object"
            raise ValueError(message)
    except FileNotFoundError as error:
        message = f"{path.parent} must contain {path.name}, got none. Is it a run folder?"
        raise RunError(message) from error
    except (OSError, ValueError) as error:
        message = f"{path} must be a JSON object ({error}). Restore the file or train again."
        raise RunError(message) from error
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file of a run, as `write_text` does."""
    write_text(path, format_json(values, allow_nan=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: an interruption leaves the old text or the new one."""
    write_file(text.encode(), path)


def write_best(
    run: Path, write: Callable[[Path], None], epoch: int, figures: Mapping[str, Any]
) -> None:
    """Let `write` write the weights of an epoch, and write their results with checksums.

    The results of the weights before stay with them until these have been replaced: a process that
    ends in between leaves the results of either.
    """
    with writing(run / WEIGHTS), replacing(run / WEIGHTS) as fresh:
        write(fresh)
        parts = (name for name in _PARTS if (run / name).is_file())
        sums = {WEIGHTS: checksum(fresh), **{name: _sum_of(run, name) for name in parts}}
        before = find_results(run) if (run / WEIGHTS).exists() else None
        write_results(run, epoch, figures, {_SUMS: sums, "previous": before})
    write_results(run, epoch, figures, {_SUMS: sums})


def write_results(
    run: Path, epoch: int, figures: Mapping[str, Any], more: Mapping[str, Any] | None = None
) -> None:
    """Write the validation metrics of the saved weights."""
    threshold = figures.get("best_threshold")
    values = {"epoch": epoch, "score_threshold": threshold, "figures": dict(figures)}
    write_json(run / RESULTS, {**values, **(more or {})})


def find_results(run: Path, *, verify: bool = False) -> dict[str, Any] | None:
    """Read what ``results.json`` says of the weights in the run; None without the file.

    Raises:
        RunError: With `verify`, if the results were written with other weights.
    """
    if not (run / RESULTS).is_file():
        return None
    values = read_json(run / RESULTS)
    every = [each for each in (values, values.get("previous")) if isinstance(each, dict)]
    known = [each for each in every if isinstance(each.get(_SUMS), dict)]
    if not known or not (verify or len(every) > 1) or not (run / WEIGHTS).is_file():
        return values
    found = checksum(run / WEIGHTS)
    for each in known:
        if each[_SUMS].get(WEIGHTS) == found:
            return each
    raise _differs(run, WEIGHTS)


def weights_checksum(path: Path) -> str:
    """Checksum of the weights of a run folder or an exported file.

    OpenVINO has them beside the file of the graph.
    """
    if path.is_dir():
        return checksum(path / WEIGHTS)
    return checksum(path.with_suffix(".bin") if path.suffix == ".xml" else path)


def check_parts(run: Path) -> None:
    """Check that the small files are those that the results were written with.

    Runs of earlier versions have no checksums, nor have those whose owner removed them.

    Raises:
        RunError: With the file that differs.
    """
    if (run / RESULTS).is_file() and isinstance(sums := read_json(run / RESULTS).get(_SUMS), dict):
        for name in _PARTS:
            if name in sums and sums[name] != _sum_of(run, name):
                raise _differs(run, name)


_PARTS = (CONFIG, CLASSES, PREPROCESSING)


def _sum_of(run: Path, name: str) -> str:
    """Checksum of the values of a small file, of the config those of the model, in any layout."""
    values = read_json(run / name)
    if name == CONFIG:
        values = {key: values.get(key) for key in _MODEL_KEYS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _differs(run: Path, name: str) -> RunError:
    what = f"{', '.join(_MODEL_KEYS)} of {run / name}" if name == CONFIG else str(run / name)
    message = (
        f"{what} must be as the training left it, but differs from its checksum in {RESULTS}. "
        f"Restore the file, or, if you meant to change it, remove {_SUMS!r} from {run / RESULTS}."
    )
    return RunError(message)


def rewrite_config(run: Path, values: Mapping[str, Any]) -> None:
    """Write another config of the same model, whose values stay word by word for the checksum."""
    kept = {key: value for key, value in read_json(run / CONFIG).items() if key in _MODEL_KEYS}
    write_json(run / CONFIG, {**values, **kept})


class Split(NamedTuple):
    """The images of a run: their sources, and the files of those it was validated with."""

    train: str
    num_train: int
    val: str
    held_out: list[str]


def read_split(run: Path) -> Split:
    """Read ``split.json``."""
    values = read_json(run / "split.json")
    with reading(str(run / "split.json"), "Restore it, or train again.", RunError):
        split = Split(*values["train"], *values["val"])
        if not (
            isinstance(split.train, str)
            and isinstance(split.num_train, int)
            and isinstance(split.val, str)
            and isinstance(split.held_out, list)
        ):
            message = "train must be a folder and a number, val a folder and names"
            raise ValueError(message)
    return split
