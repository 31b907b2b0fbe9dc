# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a user asks for, and what is wrong with it before any data is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muntin.configs import with_texts
from muntin.errors import ConfigError, unknown_name
from muntin.heads.head import HeadConfig
from muntin.heads.table import find_head
from muntin.recipes import AUGMENTS, MachineConfig, TrainConfig, find_recipe
from muntin.runs import Run, RunConfig, is_run
from muntin.shapes import Size
from muntin.tasks.table import TASKS, find_task
from muntin.tasks.task import Task
from muntin.zoo.building import model_config
from muntin.zoo.table import ALIASES

__all__ = ["Request", "refuse_mistakes", "sort_settings", "task_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asked for; empty, 0 and "auto" leave the choice to `prepare`.

    Attributes:
        task: Name of the task.
        data: Training images, perhaps with validation beside them.
        out: The run folder.
        val: Validation images.
        model: Name in the zoo.
        head: Name of a head, for tasks that have several.
        weights: "auto", "none", a file or a hub id.
        recipe: Name of a preset.
        epochs: Passes over the data.
        max_time_s: Wall time in seconds.
        batch_size: Images a step.
        img_size: (height, width) in pixels; (0, 0) chooses.
        seed: Of everything random.
        machine: Where to run.
        settings: Dotted names of config fields and their values as text.
        base: A run's config to start from instead of a recipe.
    """

    task: str
    data: str
    out: str
    val: str = ""
    model: str = ""
    head: str = ""
    weights: str = "auto"
    recipe: str = "auto"
    epochs: int = 0
    max_time_s: float = 0.0
    batch_size: int = 0
    img_size: Size = (0, 0)
    seed: int = -1
    machine: MachineConfig
    settings: tuple[tuple[str, str], ...] = ()
    base: RunConfig | None = None


def task_of(request: Request) -> Task:
    """Give the row of the task that is asked for, which may depend on the head.

    Raises:
        ConfigError: There is no such task.
        RunError: The run that weights are taken from cannot be read.
    """
    head: HeadConfig | str | None = request.head or None
    if head is None and request.base is not None:
        head = request.base.head
    elif head is None and not request.model and is_run(request.weights):
        config = Run.open(request.weights).config
        head = config.head if config.task == request.task else None
    return find_task(request.task, head)


LEAST_SIDE = 32
"""Pixels; smaller images leave no cell of a pyramid."""

MOST_SIDE = 2**15
"""Pixels; nobody's memory holds what a network makes of larger images."""


def _refuse_other_heads(name: str, task: Task) -> None:
    for other in TASKS.values():
        if other.dense and other is not task and name in other.dense.heads:
            message = f"head {name!r} is for muntin train {other.name}, got {task.name}. Use that."
            raise ConfigError(message)


def _refuse_two_choices(request: Request, settings: Mapping[str, list[tuple[str, str]]]) -> None:
    """Blocks computed again are either counted by somebody or chosen by the memory."""
    start = TrainConfig() if request.base is None else request.base.train
    tuned: TrainConfig = with_texts(start, settings["train"])
    counted = "recomputed_blocks" in dict(settings["train"]) and tuned.recomputed_blocks
    if counted and tuned.memory_gib:
        message = (
            f"train.memory_gib chooses how many blocks are computed again, got "
            f"train.memory_gib={tuned.memory_gib:g} with train.recomputed_blocks="
            f"{tuned.recomputed_blocks}. Take one of them."
        )
        raise ConfigError(message)


def refuse_mistakes(request: Request, settings: Mapping[str, list[tuple[str, str]]]) -> None:
    """Find what is wrong with the words before any data is read.

    Raises:
        ConfigError: A name or a setting is wrong.
    """
    task = task_of(request)
    if request.recipe != "auto":
        find_recipe(request.recipe, task.recipe_kind)
    _refuse_two_choices(request, settings)
    with_texts(AUGMENTS[task.recipe_kind](), settings["augment"])
    if request.head and task.dense is None:
        message = f"{task.name} has one head, got head={request.head!r}. Leave it out."
        raise ConfigError(message)
    if request.head and task.dense:
        _refuse_other_heads(request.head, task)
        find_head(request.head, task.dense.heads)
    if task.dense and any(request.img_size) and min(request.img_size) < LEAST_SIDE:
        message = (
            f"img_size must be at least {LEAST_SIDE} pixels to find things in images, got "
            f"{request.img_size}. Make it larger."
        )
        raise ConfigError(message)
    if max(request.img_size) > MOST_SIDE:
        message = (
            f"img_size must be at most {MOST_SIDE} pixels a side, got {request.img_size}. Make it "
            f"smaller."
        )
        raise ConfigError(message)
    idle = {"class_weights", "label_smoothing"} & dict(settings["train"]).keys()
    if idle and (task.detects or task.top_down):
        message = f"{task.name} has no use for train.{min(idle)}. Leave it out."
        raise ConfigError(message)
    if request.model:
        with_texts(model_config(ALIASES.get(request.model, request.model), {}), settings["model"])


def sort_settings(settings: tuple[tuple[str, str], ...]) -> dict[str, list[tuple[str, str]]]:
    """Sort ``train.epochs``-like names by their first word."""
    rooms: dict[str, list[tuple[str, str]]] = {
        room: [] for room in ("train", "augment", "data", "machine", "model", "head")
    }
    for path, text in settings:
        room, _, field = path.partition(".")
        if room not in rooms or not field:
            hint = "Settings are such as train.epochs=10."
            raise ConfigError(unknown_name("group of settings", room, rooms, hint=hint))
        rooms[room].append((field, text))
    return rooms
