# SPDX-License-Identifier: Apache-2.0
"""What pretraining chooses that training with labels does not: objective, recipe, held-out part."""

from __future__ import annotations

from muntin.configs import with_texts
from muntin.data.data_config import DataConfig
from muntin.data.splitting import hold_out
from muntin.errors import DataError, plural
from muntin.heads.network import HeadConfig
from muntin.objectives.pretraining import choose_pretraining
from muntin.samples import Listing
from muntin.tasks.task import Task
from muntin.training.defaults import FEW_IMAGES, Choice, is_small
from muntin.zoo.model_zoo import BackboneConfig

PRETRAINING_DATA = DataConfig(val_fraction=0.05)
"""The usual share of the images that is held out for the loss in validation ..."""

MAX_HELD_OUT = 500
"""... and their largest number: a mean loss needs no more."""


def choose_objective(
    name: str, base: HeadConfig | None, model: BackboneConfig, settings: list[tuple[str, str]]
) -> Choice[HeadConfig]:
    """Choose what is learnt: by name, else as in the run to go on from, else by the model.

    Raises:
        ConfigError: The objective is unknown, or the model cannot learn by it.
    """
    notes: tuple[str, ...] = ()
    head = base
    if head is None or name not in ("", head.kind):
        chosen = choose_pretraining(name or "auto", model)
        head, notes = chosen.value.default_head(model), chosen.notes
    return Choice(with_texts(head, settings, group="head"), notes)


def pretraining_recipe(count: int, model: BackboneConfig, head: HeadConfig) -> tuple[str, str]:
    """Name of the recipe for `count` images, and the reason."""
    if head.kind == "views":
        return "pretrain-views", "the objective compares views"
    if is_small(model) or count < FEW_IMAGES:
        return "pretrain-small", plural(count, "training image")
    return "pretrain", plural(count, "training image")


def list_unlabelled(
    path: str, task: Task, config: DataConfig, seed: int
) -> Choice[tuple[Listing, Listing]]:
    """List the images to learn from, and a few that are held out for validation."""
    data = task.list_data(path, None, config)
    every = data.train
    if every is None or len(every) < 2:
        count = 0 if every is None else len(every)
        message = (
            f"pretraining needs at least two images, one of which is held out for validation, got "
            f"{count} in {path}. Add images: some hundreds are few."
        )
        raise DataError(message)
    count = max(1, min(MAX_HELD_OUT, int(len(every) * config.val_fraction)))
    train, val = hold_out(every, count=count, seed=seed)
    held = f"{len(train)} images to learn from, {len(val)} held out for validation"
    return Choice((train, val), (data.note, held))
