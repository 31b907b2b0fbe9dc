# SPDX-License-Identifier: Apache-2.0
"""Pretraining: learning from images without labels, for other tasks to go on from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from muntin.data.image_lists import Lister, check_images, list_images
from muntin.errors import ConfigError
from muntin.heads.head_table import build_head
from muntin.tasks.task import Task


def _refuse(*arguments: Any) -> NoReturn:
    message = "pretraining has no labels, answers or metric. Use: muntin train TASK DATA"
    raise ConfigError(message)


def build_pretraining_task(listers: Sequence[Lister]) -> Task:
    """Build the row; `listers` list data sets of other tasks, whose images it may learn from.

    The objectives of `muntin.objectives.pretraining` learn in place of its losses.
    """
    return Task(
        name="pretrain",
        list_data=lambda path, classes, data: list_images(path, listers),
        check_data=lambda path, data: check_images(path, data, listers),
        make_head=lambda backbone, classes, config: build_head(config, backbone),
        ground_truth=_refuse,
        losses=_refuse,
        predict=_refuse,
        decode=_refuse,
        metric=_refuse,
        goals=("loss",),
        kind="pretraining",
    )
