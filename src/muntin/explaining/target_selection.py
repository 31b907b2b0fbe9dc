# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Resolve a target, given by name or number, to the number of a class, box or keypoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from muntin.errors import ConfigError, MuntinError, unknown_name
from muntin.explaining.context import Context

__all__ = ["TargetNotFound", "find_target", "predict"]


class TargetNotFound(ConfigError):
    """The model does not detect the target in this image."""


def find_target(context: Context, target: str | int | None) -> int | None:
    """Resolve a target to its number.

    Args:
        context: The image and the model.
        target: Name or number of a class or keypoint, or number of a box.

    Returns:
        The number; None for the prediction with the highest score.

    Raises:
        ConfigError: The class or keypoint is unknown.
        TargetNotFound: No such box is detected in this image.
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
        hint = "Omit the target to explain the prediction with the highest score."
        raise ConfigError(unknown_name(kind, target, names, hint=hint))
    number = int(target)
    if not 0 <= number < len(names) and not task.detects:
        message = (
            f"target must be a {kind}: a name, or a number from 0 to {len(names) - 1}, got "
            f"{target}. Omit it to explain the prediction with the highest score."
        )
        raise ConfigError(message)
    if task.detects:
        _require_box(context, number)
    return number


def _require_box(context: Context, number: int) -> None:
    """Raise `TargetNotFound` for a box that is not detected."""
    try:
        count = len(predict(context))
    except MuntinError:
        return  # the explainers report an image that the network cannot process
    if not 0 <= number < count:
        known = f"a number from 0 to {count - 1}" if count else "but none was detected"
        message = (
            f"target must be a detected box, {known} in {context.path or 'the image'}, got "
            f"{number}. Omit it to explain the prediction with the highest score."
        )
        raise TargetNotFound(message)


def _find_box(context: Context, class_id: int) -> int:
    """Number of the box of a class with the highest score."""
    found = predict(context)
    class_ids = getattr(found, "class_ids", np.zeros(len(found), np.int64))
    places = np.flatnonzero(class_ids == class_id)
    if not len(places):
        name = context.classes.names[class_id]
        message = (
            f"target must be a class that is detected in {context.path or 'the image'}, got "
            f"{name!r}. Omit it to explain the prediction with the highest score."
        )
        raise TargetNotFound(message)
    return int(places[0])


def predict(context: Context) -> Any:  # noqa: ANN401 (one of muntin.results)
    """Predict the image of a context: a result of `muntin.results`."""
    inputs = context.inputs()
    with torch.no_grad():
        return context.task.decode(context.task.predict(inputs), inputs.metas, context.classes)[0]
