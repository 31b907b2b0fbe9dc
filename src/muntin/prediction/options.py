# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Options of a prediction, and which tasks support them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from muntin.configs import check_range
from muntin.errors import ConfigError
from muntin.tasks.task import PredictOptions, Task

__all__ = ["check_options", "refuse_detector"]


def check_options(
    task: Task, tta: bool, tile: int | Literal["auto"] | None, scales: Sequence[Any], boxes: bool
) -> PredictOptions:
    """Validate options against the task."""
    if tile not in (None, "auto") and not isinstance(tile, int):
        message = f'tile must be a side in pixels or "auto", got {tile!r}.'
        raise ConfigError(message)
    dense = task.dense
    merges = dense is not None and dense.merges
    at_once = task.detects and not merges
    tiled = tile is not None
    if (tiled and not (merges or task.kind == "segmentation")) or (tta and at_once):
        why = " (its input is one instance at a time)" if task.top_down else ""
        message = (
            f"{'tile' if tiled else 'tta'} does not suit a {task.name} run with this head"
            f"{why}. Leave it out."
        )
        raise ConfigError(message)
    if boxes and not task.top_down:
        message = f"boxes need a top-down pose run, got a {task.name} run. Leave them out."
        raise ConfigError(message)
    return PredictOptions(tta=tta, tile=tile, scales=_check_scales(task, scales))


def _check_scales(task: Task, scales: Sequence[Any]) -> tuple[float, ...]:
    try:
        chosen = () if isinstance(scales, str) else tuple(map(float, scales))
    except (TypeError, ValueError):
        chosen = ()
    if not chosen:
        message = f"scales must be numbers such as (0.75, 1, 1.25), got {scales!r}."
        raise ConfigError(message)
    for scale in chosen:
        check_range("scales", scale, 0.1, 10)
    if chosen != (1.0,) and task.kind != "segmentation":
        message = (
            f"scales need a semantic segmentation run, got one of {task.name}. Leave them out."
        )
        raise ConfigError(message)
    return chosen


def refuse_detector(task: Task, other: Task) -> None:
    """Check that the second task can detect the instances for the first, a top-down one."""
    if not task.top_down:
        message = f"detector needs a top-down pose run, got a {task.name} run. Leave it out."
        raise ConfigError(message)
    if not other.detects:
        message = (
            f"detector must be a run of muntin train detect or instance, got a {other.name} run."
        )
        raise ConfigError(message)
