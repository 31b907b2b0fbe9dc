# SPDX-License-Identifier: Apache-2.0
"""Fields and heads that users may choose, as the command line lists them."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from muntin.configs import to_dict
from muntin.data.data_config import DataConfig
from muntin.errors import ConfigError
from muntin.heads.head_table import find_head
from muntin.objectives.pretraining import PRETRAINING, choose_pretraining
from muntin.recipes import AUGMENTS
from muntin.run_config import DistillConfig
from muntin.tasks.task import Task
from muntin.tasks.task_table import PRETRAIN, TASKS, find_any_task, heads_of, task_of_run
from muntin.train_config import MachineConfig, TrainConfig
from muntin.training.data_splits import PRETRAINING_DATA
from muntin.training.defaults import is_small
from muntin.zoo.model_building import canonical_name, model_config
from muntin.zoo.model_zoo import BackboneConfig

HEAD_WORDS = {
    "dense": "boxes, and masks, from every cell; one cell an object, so nothing is suppressed",
    "fcos": "boxes from every cell of the maps, without anchors",
    "faster_rcnn": "proposals, then a box and a class for each",
    "cascade_rcnn": "proposals, then boxes refined in three stages",
    "mask_rcnn": "proposals, then a box, a class and a mask for each",
    "cascade_mask_rcnn": "proposals, boxes refined in three stages, then masks",
    "upernet": "pyramid pooling and a feature pyramid, as published for Swin",
    "light": "maps summed at the finest resolution, smoothed once",
    "simple_baseline": "three transposed convolutions on the last map, as published for Swin",
    "vitpose": "two transposed convolutions, ViTPose's classic decoder",
    "vitpose_simple": "one convolution on the enlarged map, ViTPose's simple decoder",
    "light_pose": "heatmaps from maps summed at the finest resolution",
    "keypoint_rcnn": "instances and their keypoints in one pass, without a detector",
}
"""What each head does; endings of names say for which models."""

OBJECTIVE_WORDS = {
    "mae": "predicts hidden patches, which the backbone never computes (--objective)",
    "simmim": "predicts the pixels of patches that a mask token replaces (--objective)",
    "views": "two versions of an image are to have like features (--objective)",
}
"""What each way to pretrain does."""


def list_fields(
    task: str, pattern: str = "*", *, model: str = "", head: str = ""
) -> list[dict[str, str]]:
    """Fields that ``--set`` takes: `name`, `default` and `meaning` of each.

    Args:
        task: A name of `TASKS`, or "pretrain".
        pattern: Glob of names.
        model: Model whose fields are listed; default: ``swin_tiny``.
        head: Head, or objective, whose fields are listed; default: that of small models, or of
            the model.

    Raises:
        ConfigError: A name is unknown, or no field matches the pattern.
    """
    row = task_of_run(find_any_task(task).name, head or None)
    chosen = model_config(canonical_name(model or "swin_tiny"), {})
    groups: dict[str, Any] = {
        "train": TrainConfig(),
        "augment": AUGMENTS[row.recipe_kind](),
        "data": PRETRAINING_DATA if row is PRETRAIN else DataConfig(),
        "machine": MachineConfig(),
        "distill": DistillConfig(),
        "model": chosen,
    }
    # What is learnt without labels depends on the model, as `choose_head` depends on its size.
    if row is PRETRAIN:
        groups["head"] = choose_pretraining(head or "auto", chosen).value.default_head(chosen)
    elif row.dense is not None:
        groups["head"] = find_head(head or row.dense.default_head["small"], row.dense.heads)
    rows = [
        {"name": f"{group}.{name}", "default": default, "meaning": meaning}
        for group, config in groups.items()
        for name, default, meaning in _describe(config)
    ]
    found = [row for row in rows if fnmatchcase(row["name"], pattern)]
    if not found:
        message = f"no setting of {task} matches {pattern!r}. Omit the pattern to see all."
        raise ConfigError(message)
    return found


def default_heads(model: BackboneConfig) -> dict[str, str]:
    """Head that a model gets for each task by default, and objective for pretraining."""
    size: Literal["small", "large"] = "small" if is_small(model) else "large"
    heads = {
        task.name: "linear" if task.dense is None else task.dense.default_head[size]
        for task in TASKS.values()
    }
    return {**heads, PRETRAIN.name: choose_pretraining("auto", model).value.name}


def list_heads(task: str = "") -> list[dict[str, str]]:
    """Heads of a task or of all: `task`, `name`, `default` (for which models) and `what` it is.

    Of "pretrain" they are the objectives.

    Raises:
        ConfigError: The task is unknown, or has one head only.
    """
    if task == PRETRAIN.name:
        return [*_describe_objectives()]
    rows = [find_any_task(task)] if task else list(TASKS.values())
    found = [row for each in rows for row in _describe_heads(each)]
    if not found:
        message = f"{task} has one head, which --head does not name. See: muntin heads"
        raise ConfigError(message)
    return found


def _describe_objectives() -> Iterator[dict[str, str]]:
    taken: set[str] = set()
    for name, row in PRETRAINING.items():
        # The first one that suits a family is its default.
        families = [family for family in row.families if family not in taken]
        taken.update(families)
        default = f"{', '.join(families) or 'other'} models"
        what = OBJECTIVE_WORDS[name]
        yield {"task": PRETRAIN.name, "name": name, "default": default, "what": what}


def _describe_heads(task: Task) -> Iterator[dict[str, str]]:
    for name, (_, default) in heads_of(task).items():
        kind = name.removesuffix("_small").removesuffix("_vitdet")
        endings = {"_small": ", narrow and light", "_vitdet": ", as published for plain ViTs"}
        yield {
            "task": task.name,
            "name": name,
            "default": f"{default} models" if default else "",
            "what": HEAD_WORDS[kind] + endings.get(name.removeprefix(kind), ""),
        }


def _describe(config: object) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of the fields of a config, and of those inside them."""
    meanings = _read_meanings(type(config))
    values = to_dict(config)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):  # such as head.select of a detector
            for name, default, meaning in _describe(value):
                yield f"{field.name}.{name}", default, meaning
            continue
        written = json.dumps(values[field.name]).strip('[]"')
        yield field.name, written, meanings.get(field.name, "")


def _read_meanings(kind: type) -> dict[str, str]:
    """The section "Attributes" of docstrings, also of base classes."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):  # the nearest class has the last word
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        section = re.search(r"^Attributes:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
        if section is None:
            continue
        entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE)
        found.update({name: " ".join(words.split()) for name, words in entries})
    return found
