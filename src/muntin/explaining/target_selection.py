# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From the name or number that a user gives to the number of what is asked about."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from muntin.errors import ConfigError, MuntinError, unknown_name
from muntin.explaining.context import Context

__all__ = ["TargetNotFound", "find_target", "look"]


class TargetNotFound(ConfigError):
    """The box that is asked about is not among those that the model finds in this image."""


def find_target(context: Context, target: str | int | None) -> int | None:
    """Find the number of what is asked about.

    Args:
        context: The image and the model.
        target: Name or number of a class or keypoint, or number of a box.

    Returns:
        The number; None for what the network is surest of.

    Raises:
        ConfigError: There is no such class or keypoint.
        TargetNotFound: There is no such box in this image.
    """
    if target is None:
        return None
    task, classes = context.task, context.classes
    names = classes.names
    kind = "class"
    if classes.skeleton is not None and not task.detects:
        kind, names = "keypoint", classes.skeleton.names
    if isinstance(target, str) and target in names:
        number = names.index(target)
        return _find_box(context, number) if task.detects else number
    if isinstance(target, str) and not target.strip().isdecimal():
        hint = "Leave the target out for what the model is surest of."
        raise ConfigError(unknown_name(kind, target, names, hint=hint))
    number = int(target)
    if not 0 <= number < len(names) and not task.detects:
        message = (
            f"target must be a {kind}, by name or by its number from 0 to {len(names) - 1}, got "
            f"{target}. Leave it out for what the model is surest of."
        )
        raise ConfigError(message)
    if task.detects:
        _require_box(context, number)
    return number


def _require_box(context: Context, number: int) -> None:
    """Refuse the number of a box that is not there; what cannot be looked at is told elsewhere."""
    try:
        count = len(look(context))
    except MuntinError:
        return
    if not 0 <= number < count:
        known = f"from 0 to {count - 1}" if count else "of which there is none"
        message = (
            f"target must be the number of a box, {known} in {context.path or 'the image'}, got "
            f"{number}. Leave it out for what the model is surest of."
        )
        raise TargetNotFound(message)


def _find_box(context: Context, class_id: int) -> int:
    """The surest box of a class."""
    found = look(context)
    class_ids = getattr(found, "class_ids", np.zeros(len(found), np.int64))
    places = np.flatnonzero(class_ids == class_id)
    if not len(places):
        name = context.classes.names[class_id]
        message = (
            f"target must be something that the model finds, got {name!r}, of which it finds none "
            f"in {context.path or 'the image'}. Leave it out for what the model is surest of."
        )
        raise TargetNotFound(message)
    return int(places[0])


def look(context: Context) -> Any:  # noqa: ANN401 (one of muntin.results)
    """Give what the model says of the image: a result of `muntin.results`."""
    inputs = context.inputs()
    with torch.no_grad():
        return context.task.decode(context.task.see(inputs), inputs.views, context.classes)[0]
