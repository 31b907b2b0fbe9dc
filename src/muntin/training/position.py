# SPDX-License-Identifier: Apache-2.0
"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from muntin.configs import Range, check_range, check_ranges, from_dict
from muntin.shapes import Size


class Phase(NamedTuple):
    """What changes during a training: the image size, and whether images are mixed with others."""

    size: Size
    mixed: bool


@dataclass(kw_only=True, slots=True)
class Position:
    """Progress of a run; part of the checkpoint.

    `step` and `loss_sum` (over `num_seen` images) are of the current epoch, `elapsed_s` of the time
    before the last resume; `best_epoch` counts from 1, and `stale` the validations since then.
    """

    epoch: Annotated[int, Range(0, 10**6)] = 0
    step: int = 0
    elapsed_s: Annotated[float, Range(0, 10**9)] = 0.0
    loss_sum: float = 0.0
    num_seen: Annotated[int, Range(0, 10**12)] = 0
    best: float | None = None
    best_epoch: int = 0
    stale: Annotated[int, Range(0, 10**6)] = 0
    figures: dict[str, Any] = field(default_factory=dict)


def read_position(values: Mapping[str, Any], num_steps: int) -> Position:
    """Read the position in a checkpoint, for epochs of `num_steps` steps.

    Raises:
        ValueError: A field is unknown or out of range.
    """
    plain = {name: value for name, value in values.items() if name not in ("best", "figures")}
    position = from_dict(Position, plain, where="position")
    check_ranges("position", position)
    check_range("position.step", position.step, 0, num_steps)
    check_range("position.best_epoch", position.best_epoch, 0, position.epoch)
    best = values.get("best")
    position.best = None if best is None else float(best)
    position.figures = dict(values.get("figures", {}))
    return position
