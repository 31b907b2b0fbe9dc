# SPDX-License-Identifier: Apache-2.0
"""The run folder: its files, and how they are written and read. Nothing in it is ever unpickled.

``config.json``         the resolved config
``weights.safetensors`` the best weights
``results.json``        validation metrics of these weights
``last.ckpt/``          the training state, for resuming
``classes.json``, ``preprocessing.json``, ``pictures/``
``journal.jsonl``       a line an epoch; ``results.csv`` has the same as a table
``README.md``           the model card of a finished training

A file that `muntin export` wrote holds the small JSON files as metadata.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from muntin.configs import check_range, from_dict, to_dict
from muntin.data.transforms import Preprocessing
from muntin.devices import free_bytes
from muntin.drawing.notebook import show_facts
from muntin.engines.engine_network import EngineNetwork, HeadInfo, canvas_of
from muntin.engines.engine_table import Format, find_format, require
from muntin.engines.graphs import ADVICE, Precision, Runner
from muntin.errors import ConfigError, RunError, quote, shorten
from muntin.heads.network import Network
from muntin.run_config import RunConfig
from muntin.run_files import (
    CLASSES,
    CONFIG,
    PREPROCESSING,
    RESULTS,
    WEIGHTS,
    check_parts,
    find_results,
    read_json,
    write_json,
    write_text,
)
from muntin.samples import Classes, check_classes
from muntin.shapes import Size
from muntin.staging import part_of, writing
from muntin.tasks.task import Task
from muntin.tasks.task_table import task_of_run
from muntin.untrusted import (
    BUDGET_VARIABLE,
    check_budget,
    memory_budget,
    parse_json,
    read_regular,
    reading,
)
from muntin.weights.weight_loading import load_weights
from muntin.zoo.model_zoo import build_backbone, free_attention, parameter_bytes

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Validation results of the weights in a run; ``results.json``.

    Attributes:
        epoch: Epoch of the weights, counted from 1; 0 if nothing was validated.
        score_threshold: Score threshold with the best F1; None if validation found none.
    """

    epoch: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)
    score_threshold: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A run folder and the contents of its small files."""

    path: Path
    config: RunConfig = field(repr=False)
    classes: Classes = field(repr=False)
    preprocessing: Preprocessing = field(repr=False)

    def _repr_html_(self) -> str:
        facts = {
            "task": self.config.task,
            "model": self.config.model_name,
            "classes": shorten(self.classes.names),
            **(read_results(self).figures if self.path.is_dir() else {}),
        }
        return show_facts(f"run {self.path}", facts, [self.path / "pictures" / "curves.png"])

    @classmethod
    def open(cls, path: Path | str, *, pretraining: bool = False) -> Run:
        """Read a run folder, or a file that was exported from one.

        A run of `muntin pretrain`, which has no answers, is a `RunError` without `pretraining`.
        """
        path = Path(path)
        kind = find_format(path)
        if path.is_file() and kind is not None:
            return ExportedRun.read(path, kind)
        if not path.is_dir():
            message = (
                f"a run must be a folder written by muntin train or a file written by muntin "
                f"export, got {str(path)!r}."
            )
            raise RunError(message)
        try:
            with reading(str(path), "Restore its files, or train again.", RunError):
                config = RunConfig.from_dict(read_json(path / CONFIG), where=CONFIG)
                task = task_of_run(config.task, config.head)  # an unknown task is a broken run
                classes = from_dict(Classes, read_json(path / CLASSES), where=CLASSES)
                preprocessing = from_dict(
                    Preprocessing, read_json(path / PREPROCESSING), where=PREPROCESSING
                )
                values = math.prod(preprocessing.img_size) * preprocessing.in_chans
                check_budget(4 * values, f"an image of {PREPROCESSING}")
                if task.kind != "pretraining":
                    check_classes(classes)
                if (preprocessing.fit == "instance_crop") != task.top_down:
                    message = f"{PREPROCESSING} must be of the task {config.task}"
                    raise ValueError(message)
        except ConfigError as error:
            message = f"{path} is not a readable run: {error}"
            raise RunError(message) from error
        check_parts(path)
        if task.kind == "pretraining" and not pretraining:
            message = (
                f"the run must be one of a task, which has answers, got {path} of muntin pretrain: "
                f"only its backbone has learnt, from images without labels. Train it for a task: "
                f"muntin train TASK DATA --weights {quote(path)}"
            )
            raise RunError(message)
        return cls(path=path, config=config, classes=classes, preprocessing=preprocessing)

    @property
    def folder(self) -> Path:
        """Folder for files that are derived from the run."""
        return self.path

    @property
    def task(self) -> Task:
        """Entry of the run's task in the task table."""
        return task_of_run(self.config.task, self.config.head)

    def write(self) -> None:
        """Write the small files."""
        write_json(self.path / CONFIG, self.config.to_dict())
        write_json(self.path / CLASSES, to_dict(self.classes))
        write_json(self.path / PREPROCESSING, to_dict(self.preprocessing))

    def build_network(self) -> Network:
        """Build backbone and head, randomly initialised.

        Raises:
            ConfigError: It needs far more memory than the weights of the run, or the machine, have.
        """
        weights, least = self.path / WEIGHTS, parameter_bytes(self.config.model)
        stored = 4 * weights.stat().st_size if weights.is_file() else free_bytes("cpu")
        most = max(stored, memory_budget())
        if least > most:
            message = (
                f"the model of {self.path / CONFIG} must have parameters for at most "
                f"{most / 2**30:.3g} GiB, got {least / 2**30:.3g}. Restore the file, make the "
                f"model smaller, or raise {BUDGET_VARIABLE}."
            )
            raise ConfigError(message)
        backbone = build_backbone(self.config.model)
        extend = self.config.extend
        old = () if extend is None else extend.counts
        head = self.task.build_head(backbone, self.classes, self.config.head, old=old)
        return Network(backbone, head)

    def load_network(self) -> nn.Module:
        """Build the network with the best weights of the run, in evaluation mode.

        Attention that was set to "fused" in training becomes "auto", since this may be another
        machine.
        """
        weights = self.path / WEIGHTS
        if not weights.is_file():
            command = f"{self.task.command} {quote(self.config.data)}"
            # Without a checkpoint nothing can be resumed: the first epoch never ended.
            resumable = (self.path / "last.ckpt").exists()
            advice = (
                f"resume it with: {command} --resume --out {quote(self.path)}"
                if resumable
                else f"train again in another folder: {command} --out NEW"
            )
            message = (
                f"{self.path} must contain {WEIGHTS}, which is missing. Training stopped before "
                f"the end of the first epoch; {advice}"
            )
            raise RunError(message)
        find_results(self.path, verify=True)
        model = free_attention(self.config.model)
        network = replace(self, config=replace(self.config, model=model)).build_network()
        report = load_weights(network, weights, dialect="muntin")
        if report.reset:
            message = (
                f"{weights} must have a head for the {len(self.classes.names)} classes in "
                f"{self.path / CLASSES}, but its head has a different shape. Restore the "
                f"original version of the changed file."
            )
            raise RunError(message)
        return network.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileNote:
    """Metadata of an exported file, beside config, classes and preprocessing.

    Attributes:
        canvas: (height, width) of its images in pixels.
        stride: Of the output map; 0 if there is none.
        threshold: Score threshold of a detector, in [0, 1], and its origin.
    """

    canvas: Size
    precision: Precision
    stride: int
    threshold: tuple[float, str] | None = None

    def __post_init__(self) -> None:
        check_range("stride", self.stride, 0, max(self.canvas))
        check_range("threshold", 0.0 if self.threshold is None else self.threshold[0], 0.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedRun(Run):
    """An exported file: a run whose network is executed by an inference engine.

    Attributes:
        runner: Runs the network on any number of images.
    """

    runner: Runner = field(repr=False)
    note: FileNote

    @classmethod
    def read(cls, path: Path, kind: Format) -> ExportedRun:
        """Open an exported file."""
        require(kind.readers, f"running {path.name}")
        runner, text = kind.open(path, "fp32", strange=True)
        try:
            values = parse_json(text)
            parts = {name: values.pop(name) for name in ("config", "classes", "preprocessing")}
            config = RunConfig.from_dict(parts["config"], where=path.name)
            classes = from_dict(Classes, parts["classes"], where=path.name)
            pre = from_dict(Preprocessing, parts["preprocessing"], where=path.name)
            note = from_dict(FileNote, values, where=path.name)
            task_of_run(config.task, config.head)
            check_budget(12.0 * note.canvas[0] * note.canvas[1], "one image")
            check_fit("canvas", note.canvas, canvas_of(pre))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = (
                f"{path} must be a file written by muntin export, with classes and preprocessing "
                f"as metadata; they are missing, changed or from another version ({error}). Export "
                f"the run again."
            )
            raise RunError(message) from error
        if note.precision == "bf16":
            runner, _ = kind.open(path, "bf16")
        return cls(
            path=path, config=config, classes=classes, preprocessing=pre, runner=runner, note=note
        )

    @property
    def folder(self) -> Path:
        """A folder next to the file, with the same name without suffix."""
        return self.path.with_suffix("")

    def load_network(self) -> nn.Module:
        """Build a module that calls the engine."""
        return EngineNetwork(
            lambda size, count: self._answer,
            [self.note.canvas],
            HeadInfo(config=self.config.head, stride=self.note.stride),
            finds=self.task.detects,
            groups=None,
        )

    def _answer(self, inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the network; its outputs must be those of the task with these classes."""
        count, task = len(self.classes.names), self.task
        with reading(str(self.path), ADVICE, RunError):
            outputs = self.runner(inputs)
            if task.detects:
                rows = (len(inputs[0]), *outputs[0].shape[1:2])
                shapes = [each.shape for each in outputs[:3]]
                check_fit("the shapes of its outputs", shapes, [(*rows, 4), rows, rows])
                unknown = int(((outputs[2] < 0) | (outputs[2] >= count)).sum())
                check_fit("the number of unknown classes in its outputs", unknown, 0)
            else:
                skeleton = self.classes.skeleton
                channels = count if skeleton is None else len(skeleton.names)
                shape = (len(inputs[0]), channels, *outputs[0].shape[2:])
                check_fit("its output", outputs[0].shape, shape)
                num_sides = 2 if task.kind == "classification" else 4
                check_fit("the number of its sides", outputs[0].ndim, num_sides)
        return outputs


def check_fit(what: str, found: object, wanted: object) -> None:
    """Refuse a part of a file that does not belong to the others."""
    if found != wanted:
        message = f"{what} must be {wanted}, got {found}"
        raise ValueError(message)


def is_run(path: str) -> bool:
    """Whether a path is a run folder, judged by the files in it."""
    return all((Path(path) / name).is_file() for name in ("config.json", "classes.json"))


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of ``journal.jsonl``; truncated or damaged lines are skipped."""
    path = folder / JOURNAL
    if not path.is_file():
        return []
    lines = []
    with reading(str(path), "Remove it.", RunError):
        texts = read_regular(path).decode("utf-8", "replace").splitlines()
    for text in texts:
        with contextlib.suppress(ValueError):
            line = parse_json(text)
            if isinstance(line, dict) and isinstance(line.get("epoch"), int):
                lines.append({k: v for k, v in line.items() if not isinstance(v, (list, dict))})
    return lines


def append_journal(folder: Path, line: Mapping[str, Any]) -> None:
    """Append a line to the journal."""
    append_text(folder, JOURNAL, json.dumps(line) + "\n")


def append_text(folder: Path, name: str, text: str, *, durable: bool = True) -> None:
    """Append to a file of a run; what is `durable` is on the disk afterwards."""
    flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    with writing(folder / name):
        place = part_of(folder, name)
        with os.fdopen(os.open(place, flags, 0o666), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())


def drop_epochs_from(folder: Path, epoch: int) -> None:
    """Remove the epochs from `epoch` (from 1) on, which a resumed run writes again."""
    kept = [line for line in read_journal(folder) if line["epoch"] < epoch]
    write_text(folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in kept))


def read_results(run: Run) -> Results:
    """Read the validation metrics of the weights in a run.

    Runs of earlier versions have no ``results.json``; there the best epoch of the journal counts.
    """
    if (values := find_results(run.path)) is not None:
        with reading(str(run.path / RESULTS), "Restore it.", RunError):
            threshold = values.get("score_threshold")
            if threshold is not None:
                check_range("score_threshold", float(threshold), 0, 1)
            epoch, figures = int(values.get("epoch", 0)), dict(values.get("figures", {}))
        return Results(epoch=epoch, figures=figures, score_threshold=threshold)
    best, best_value = Results(), -math.inf
    for line in read_journal(run.path):
        figures = {
            name.removeprefix("val_"): value
            for name, value in line.items()
            if name.startswith("val_") and isinstance(value, (int, float))
        }
        goal, value = run.task.goal(figures)
        if goal and value > best_value:
            threshold = figures.get("best_threshold")
            best = Results(epoch=line["epoch"], figures=figures, score_threshold=threshold)
            best_value = value
    return best
