# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The run folder: what is in it, how it is written and read. Nothing in it is ever unpickled.

``config.json``         everything that was asked for and resolved
``weights.safetensors`` the best weights
``results.json``        the figures of these weights in validation
``last.ckpt/``          everything that resuming needs
``classes.json``, ``preprocessing.json``, ``journal.jsonl``, ``pictures/``

A file of `muntin export` holds the small files in its note, and its weights run in an engine.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from muntin.configs import from_dict, to_dict
from muntin.data.transforms import Preprocessing
from muntin.engines.graphs import Runner
from muntin.engines.network import EngineNetwork, Front
from muntin.engines.table import Format, find_format, require
from muntin.errors import ConfigError, RunError
from muntin.heads.network import Network
from muntin.outside_errors import cannot_write
from muntin.run_config import RunConfig
from muntin.samples import Classes
from muntin.tasks.table import find_task
from muntin.tasks.task import Task
from muntin.weights.loading import load_weights
from muntin.zoo.families import build_backbone, free_attention

__all__ = [
    "JOURNAL",
    "ExportedRun",
    "Results",
    "Run",
    "RunConfig",
    "is_run",
    "read_journal",
    "read_json",
    "read_results",
    "write_json",
    "write_results",
]

WEIGHTS = "weights.safetensors"
JOURNAL = "journal.jsonl"
RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """What validation found of the weights that a run keeps; ``results.json``.

    Attributes:
        epoch: That the weights are of, counted from 1; 0 where nothing was validated.
        figures: By name.
        score_threshold: Score from which on F1 was best; None where validation found none.
    """

    epoch: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)
    score_threshold: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder and what its small files say.

    Attributes:
        path: The folder.
        config: ``config.json``.
        classes: ``classes.json``.
        preprocessing: ``preprocessing.json``.
    """

    path: Path
    config: RunConfig
    classes: Classes
    preprocessing: Preprocessing

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """Read a run folder, or a file that was exported from one.

        Raises:
            RunError: It is neither, or a file is missing or broken.
            MissingExtra: What runs the file is not installed.
        """
        path = Path(path)
        kind = find_format(path)
        if path.is_file() and kind is not None:
            return ExportedRun.read(path, kind)
        if not path.is_dir():
            message = (
                f"a run must be a folder that muntin train wrote, or a file of muntin export, got "
                f"{str(path)!r}."
            )
            raise RunError(message)
        try:
            config = RunConfig.from_dict(read_json(path / "config.json"), where="config.json")
            classes = from_dict(Classes, read_json(path / "classes.json"), where="classes.json")
            preprocessing = from_dict(
                Preprocessing, read_json(path / "preprocessing.json"), where="preprocessing.json"
            )
        except ConfigError as error:
            message = f"{path} is not a run that can be read: {error}"
            raise RunError(message) from error
        return cls(path=path, config=config, classes=classes, preprocessing=preprocessing)

    @property
    def folder(self) -> Path:
        """Where what is made of the run is put."""
        return self.path

    @property
    def task(self) -> Task:
        """Row of the run's task."""
        return find_task(self.config.task, self.config.head)

    def write(self) -> None:
        """Write the small files.

        Raises:
            RunError: The disk refuses.
        """
        write_json(self.path / "config.json", self.config.to_dict())
        write_json(self.path / "classes.json", to_dict(self.classes))
        write_json(self.path / "preprocessing.json", to_dict(self.preprocessing))

    def build_network(self) -> Network:
        """Build backbone and head, with fresh weights."""
        backbone = build_backbone(self.config.model)
        head = self.task.build_head(backbone, self.classes, self.config.head)
        return Network(backbone, head)

    def load_network(self) -> nn.Module:
        """Build the network with the best weights of the run, ready to be used.

        Attention that was forced to be "fused" in training is "auto" here, since this may be
        another machine.

        Raises:
            RunError: There are no weights, or they were trained for other classes.
            WeightError: They cannot be read or do not fit.
        """
        weights = self.path / WEIGHTS
        if not weights.is_file():
            message = (
                f"{self.path} must hold {WEIGHTS}, got none. The first epoch may not have ended: "
                f"go on with: muntin train {self.config.task} {self.config.data} "
                f"--resume --out {self.path}"
            )
            raise RunError(message)
        model = free_attention(self.config.model)
        network = replace(self, config=replace(self.config, model=model)).build_network()
        report = load_weights(network, weights, dialect="muntin")
        if report.reset:
            message = (
                f"{weights} must have a head for the {len(self.classes.names)} classes of "
                f"{self.path / 'classes.json'}, got another one. Restore the file of the two that "
                f"was changed."
            )
            raise RunError(message)
        return network.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedRun(Run):
    """A file of `muntin export`: a run whose network an engine runs.

    Attributes:
        runner: Runs the network for any number of images.
        note: What else is known: `canvas`, (height, width) of its images; `precision`; `stride`
            of the map that it gives; `threshold` from which objects count.
    """

    runner: Runner = field(repr=False)
    note: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, kind: Format) -> ExportedRun:
        """Open a file.

        Raises:
            RunError: It is broken, or `muntin export` did not write it.
            MissingExtra: What runs it is not installed.
        """
        require(kind.readers, f"running {path.name}")
        runner, text = kind.open(path, "fp32")
        try:
            note = json.loads(text)
            config = RunConfig.from_dict(note["config"], where=path.name)
            classes = from_dict(Classes, note["classes"], where=path.name)
            pre = from_dict(Preprocessing, note["preprocessing"], where=path.name)
        except (ValueError, KeyError, TypeError) as error:
            message = (
                f"{path} must be a file that muntin export wrote, with what it knows of classes "
                f"and images inside, got one without or of another version ({error}). Export "
                f"it again."
            )
            raise RunError(message) from error
        if note["precision"] == "bf16":
            runner, _ = kind.open(path, "bf16")
        return cls(
            path=path, config=config, classes=classes, preprocessing=pre, runner=runner, note=note
        )

    @property
    def folder(self) -> Path:
        """A folder beside the file, named as it is."""
        return self.path.with_suffix("")

    def load_network(self) -> nn.Module:
        """Give what calls the engine."""
        canvas = tuple(self.note["canvas"])
        return EngineNetwork(
            lambda size, count: self.runner,
            [canvas],
            Front(config=self.config.head, stride=self.note["stride"]),
            finds=self.task.detects,
            groups=None,
        )


def is_run(path: str) -> bool:
    """Whether a path is that of a run folder, going by the files in it."""
    return all((Path(path) / name).is_file() for name in ("config.json", "classes.json"))


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a journal; those that were cut off or damaged are left out."""
    path = folder / JOURNAL
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                lines.append(line)
    return lines


def write_results(folder: Path, epoch: int, figures: Mapping[str, Any]) -> None:
    """Write the figures of the weights that are kept.

    Raises:
        RunError: The disk refuses.
    """
    threshold = figures.get("best_threshold")
    values = {"epoch": epoch, "score_threshold": threshold, "figures": dict(figures)}
    write_json(folder / RESULTS, values)


def read_results(run: Run) -> Results:
    """Read the figures of the weights that a run keeps.

    Older runs have no file of them; theirs are in the line of the journal with the best goal.

    Raises:
        RunError: The file is broken.
    """
    if (run.path / RESULTS).is_file():
        values = read_json(run.path / RESULTS)
        names = ("epoch", "figures", "score_threshold")
        return Results(**{name: values[name] for name in names if name in values})
    best, best_value = Results(), -math.inf
    for line in read_journal(run.path):
        figures = {
            name.removeprefix("val_"): value
            for name, value in line.items()
            if name.startswith("val_")
        }
        goal, value = run.task.goal(figures)
        if goal and value > best_value:
            threshold = figures.get("best_threshold")
            best = Results(epoch=line["epoch"], figures=figures, score_threshold=threshold)
            best_value = value
    return best


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run.

    Raises:
        RunError: It is missing or broken.
    """
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            message = f"a {type(values).__name__} instead of an object"
            raise ValueError(message)
    except FileNotFoundError as error:
        message = f"{path.parent} must hold {path.name}, got none. Is it a run of muntin train?"
        raise RunError(message) from error
    except (OSError, ValueError) as error:
        message = f"{path} must be JSON, got something else ({error}). Restore it or train again."
        raise RunError(message) from error
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file: whole or not at all.

    Raises:
        RunError: The disk refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
