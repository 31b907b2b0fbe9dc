# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One row a task: everything that the other rooms need to know about it, and nothing else."""

from __future__ import annotations

from muntin.errors import ConfigError, unknown_name
from muntin.heads.head import HeadConfig
from muntin.tasks.classification_task import CLASSIFY
from muntin.tasks.detection_task import DETECT, INSTANCE
from muntin.tasks.pose_task import POSE
from muntin.tasks.semantic_task import SEMANTIC
from muntin.tasks.task import Task
from muntin.tasks.whole_image_pose_task import WHOLE_IMAGE_POSE

__all__ = ["TASKS", "Task", "find_task", "task_of_head"]

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFY, DETECT, INSTANCE, SEMANTIC, POSE)}


_OTHERWISE: dict[str, Task] = {"pose": WHOLE_IMAGE_POSE}
"""Rows of tasks that are another matter with some heads."""


def find_task(name: str, head: HeadConfig | str | None = None) -> Task:
    """Give the row of a task.

    Args:
        name: Of the task.
        head: Its name or config, where it is known: Keypoint R-CNN finds subjects in whole
            images, other heads of "pose" see one at a time.

    Raises:
        ConfigError: There is no task of this name.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    other = _OTHERWISE.get(name)
    if other is not None and other.dense is not None and head is not None:
        kinds = {type(config) for config in other.dense.heads.values()}
        if head in other.dense.heads if isinstance(head, str) else type(head) in kinds:
            return other
    return TASKS[name]


def task_of_head(head: str) -> Task:
    """Give the row of the task that has a head of this name.

    Raises:
        ConfigError: None has it.
    """
    rows = (*TASKS.values(), *_OTHERWISE.values())
    by_head = {name: row for row in rows if row.dense for name in row.dense.heads}
    if head not in by_head:
        raise ConfigError(unknown_name("head", head, by_head))
    return by_head[head]
