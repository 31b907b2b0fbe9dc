# SPDX-License-Identifier: Apache-2.0
"""The images of a run: those to learn from, and those that validate it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from muntin.data.data_config import DataConfig
from muntin.data.grouping import fold_apart, split_apart
from muntin.data.splitting import hold_out
from muntin.errors import ConfigError, DataError, plural, quote
from muntin.samples import DataSets, Listing
from muntin.tasks.task import Task
from muntin.training.defaults import Choice

if TYPE_CHECKING:
    from muntin.training.request import Request

PRETRAINING_DATA = DataConfig(val_fraction=0.05)
"""The usual share of the images that is held out for the loss in validation ..."""

MAX_HELD_OUT = 500
"""... and their largest number: a mean loss needs no more."""


def list_labelled(
    request: Request, task: Task, config: DataConfig, seed: int
) -> Choice[tuple[Listing, Listing]]:
    """List the images for training and for validation."""
    data = task.list_data(request.data, None, config)
    notes = [data.note] if data.note else []
    train, val = data.train, data.val or data.test
    if train is None:
        message = f"{request.data} must contain training images, found only {data.note}."
        raise DataError(message)
    if data.fault:
        message = f"{data.fault}. See: muntin check {task.name} {quote(request.data)}"
        raise DataError(message)
    if config.folds:
        return _fold(request, data, config, seed)
    if request.val:
        parts = task.list_data(request.val, task.classes(train), config)
        # Validation data may have splits of their own, or be a single folder.
        val = parts.val or parts.test or parts.train
        if val is not None and val.multi_label and not train.multi_label:
            message = (
                f"validation images must have exactly one class each, like the training images; "
                f"{request.val} has images with no class or with several."
            )
            raise DataError(message)
    elif data.val is None and val is not None:
        notes.append(
            "no validation split found: validating on the test split, which selects the best epoch"
        )
    if val is None:
        train, val, said = split_apart(
            train, groups=config.groups, fraction=config.val_fraction, seed=seed
        )
        notes += said
    if not len(val):
        message = (
            f"the validation split must have at least one image, got none of the {len(train)} in "
            f"{request.data}. Add images, raise data.val_fraction, or pass --val."
        )
        raise DataError(message)
    return Choice((train, val), tuple(notes))


def _fold(
    request: Request, data: DataSets, config: DataConfig, seed: int
) -> Choice[tuple[Listing, Listing]]:
    """One fold of the images for training and for validation; those for testing are left out."""
    if request.val:
        message = (
            f"--folds takes validation images from DATA, got --val {request.val} too. Omit it."
        )
        raise ConfigError(message)
    every, val, notes = data.train, data.val, [data.note] if data.note else []
    assert every is not None, "checked by the caller"
    if val is not None and (val.source, val.class_names) == (every.source, every.class_names):
        every = replace(every, entries=every.entries + val.entries)
        notes.append("folds: images for training and for validation together")
    train, held, said = fold_apart(
        every, groups=config.groups, folds=config.folds, fold=config.fold, seed=seed
    )
    return Choice((train, held), (*notes, *said))


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
    held = f"{plural(len(train), 'image')} to learn from, {len(val)} held out for validation"
    return Choice((train, val), (data.note, held))
