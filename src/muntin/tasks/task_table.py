# SPDX-License-Identifier: Apache-2.0
"""The table of tasks: name -> `Task`."""

from __future__ import annotations

from pathlib import Path

from muntin.data.data_config import DataConfig
from muntin.errors import ConfigError, unknown_name
from muntin.heads.network import HeadConfig
from muntin.samples import DataSets
from muntin.tasks.classification_task import CLASSIFY
from muntin.tasks.detection_task import DETECT, INSTANCE
from muntin.tasks.pose_task import POSE, WHOLE_IMAGE_POSE
from muntin.tasks.pretraining_task import build_pretraining_task
from muntin.tasks.semantic_task import SEMANTIC
from muntin.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFY, DETECT, INSTANCE, SEMANTIC, POSE)}

PRETRAIN = build_pretraining_task(tuple(task.list_data for task in TASKS.values()))
"""Not among the others: nobody trains for it with labels, or predicts with it."""


_VARIANTS: dict[str, Task] = {"pose": WHOLE_IMAGE_POSE}
"""Variants of tasks that some heads select: Keypoint R-CNN makes "pose" a whole-image task."""


def find_task(name: str, head: HeadConfig | str | None = None) -> Task:
    """Look up a task; a known head, or its config, chooses among variants of the task.

    Keypoint R-CNN predicts from whole images, other heads of "pose" from crops of one instance.
    """
    if name not in TASKS:
        known = () if name == PRETRAIN.name else TASKS
        hint = "" if known else "It is a verb of its own: muntin pretrain IMAGES"
        raise ConfigError(unknown_name("task", name, known, hint=hint))
    other = _VARIANTS.get(name)
    if other is not None and other.dense is not None and head is not None:
        kinds = {type(config) for config in other.dense.heads.values()}
        if head in other.dense.heads if isinstance(head, str) else type(head) in kinds:
            return other
    return TASKS[name]


def task_of_run(name: str, head: HeadConfig | str | None = None) -> Task:
    """Look up the task of a run or of images to be checked, which may also be pretraining."""
    return PRETRAIN if name == PRETRAIN.name else find_task(name, head)


def find_any_task(name: str) -> Task:
    """Look up a task by a name that may be "pretrain", which a message lists, too."""
    if name not in TASKS and name != PRETRAIN.name:
        raise ConfigError(unknown_name("task", name, (*TASKS, PRETRAIN.name)))
    return task_of_run(name)


def list_whole(name: str, path: str | Path, config: DataConfig) -> tuple[Task, DataSets]:
    """List a data set by whole images, with all that is annotated in each."""
    task = find_any_task(name)
    return task, _VARIANTS.get(name, task).list_data(path, None, config)


def heads_of(task: Task) -> dict[str, tuple[HeadConfig, str]]:
    """Heads of a task and of its variant: name -> config, and the models it is the default for."""
    found: dict[str, tuple[HeadConfig, str]] = {}
    for row in (task, _VARIANTS.get(task.name)):
        if row is not None and row.dense is not None:
            sizes = {} if found else {name: k for k, name in row.dense.default_head.items()}
            found.update({n: (config, sizes.get(n, "")) for n, config in row.dense.heads.items()})
    return found


def task_of_head(head: str) -> Task:
    """Give the task that has a head of this name."""
    rows = (*TASKS.values(), *_VARIANTS.values())
    by_head = {name: row for row in rows if row.dense for name in row.dense.heads}
    if head not in by_head:
        raise ConfigError(unknown_name("head", head, by_head))
    return by_head[head]
