# SPDX-License-Identifier: Apache-2.0
"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from muntin.configs import check_range, from_dict
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

    epoch: int = 0
    step: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    num_seen: int = 0
    best: float | None = None
    best_epoch: int = 0
    stale: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


def read_position(values: Mapping[str, Any], num_steps: int) -> Position:
    """Read the position in a checkpoint, for epochs of `num_steps` steps.

    Raises:
        ValueError: A field is unknown or out of range.
    """
    plain = {name: value for name, value in values.items() if name not in ("best", "figures")}
    position = from_dict(Position, plain, where="position")
    most = {
        "epoch": 10**6, "step": num_steps, "elapsed_s": 10**9, "num_seen": 10**12,
        "best_epoch": position.epoch, "stale": 10**6,
    }  # fmt: skip
    for name, high in most.items():
        check_range(f"position.{name}", getattr(position, name), 0, high)
    best = values.get("best")
    position.best = None if best is None else float(best)
    position.figures = dict(values.get("figures", {}))
    return position
