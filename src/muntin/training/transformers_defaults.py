# SPDX-License-Identifier: Apache-2.0
"""What training settles otherwise where the model is a whole one of the transformers library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from muntin.errors import ConfigError
from muntin.heads.network import HeadConfig
from muntin.models.transformers_backbone import TransformersConfig
from muntin.tasks.task import Task
from muntin.train_config import TrainConfig
from muntin.training.defaults import Choice


def choose_whole_head(
    name: str, base: HeadConfig | None, task: Task, model: TransformersConfig
) -> HeadConfig:
    """Give the head of a model that cannot be divided; a `ConfigError` where there is none."""
    head = None if task.dense is None else task.dense.whole
    if head is None or name not in ("", head.kind):
        message = (
            f"a whole model of the transformers library must be trained for detect, instance or "
            f"semantic, and without --head, got {task.name} and {name or 'no head'!r} for "
            f"{model.name}. Leave --head out, or choose another --model."
        )
        raise ConfigError(message)
    return base if base is not None and isinstance(base, type(head)) else head


def keep_drop_path(
    tuned: TrainConfig, model: object, given: Sequence[tuple[str, str]]
) -> Choice[TrainConfig]:
    """Leave the drop path of such a model as its settings say, and say so if another was asked."""
    if tuned.drop_path_rate == "model" or not isinstance(model, TransformersConfig):
        return Choice(tuned)
    note = f"train.drop_path_rate has no effect on hf:{model.name}, whose settings state its own"
    notes = (note,) if "drop_path_rate" in dict(given) else ()
    return Choice(replace(tuned, drop_path_rate="model"), notes)
