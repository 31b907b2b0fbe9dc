# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One row a task: everything that the other rooms need to know about it, and nothing else."""

from __future__ import annotations

from muntin.errors import ConfigError, unknown_name
from muntin.tasks.classify import CLASSIFY
from muntin.tasks.detect import DETECT, INSTANCE
from muntin.tasks.pose import POSE
from muntin.tasks.semantic import SEMANTIC
from muntin.tasks.task import Task

__all__ = ["TASKS", "Task", "find_task"]

TASKS: dict[str, Task] = {task.name: task for task in (CLASSIFY, DETECT, INSTANCE, SEMANTIC, POSE)}


def find_task(name: str) -> Task:
    """Give the row of a task.

    Raises:
        ConfigError: There is no task of this name.
    """
    if name not in TASKS:
        raise ConfigError(unknown_name("task", name, TASKS))
    return TASKS[name]
