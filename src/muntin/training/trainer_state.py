# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Progress of a training run, as a checkpoint keeps it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["TrainerState"]


@dataclass(kw_only=True, slots=True)
class TrainerState:
    """Progress of a run; part of the checkpoint.

    Attributes:
        epoch: Number of finished epochs.
        step: Finished steps of the current epoch.
        elapsed_s: Seconds of training before the last resume.
        loss_sum: Sum of the loss over the images of the current epoch.
        num_seen: Images so far in the current epoch.
        best: Best value of the goal; None before the first validation.
        best_epoch: Its epoch, from 1; 0 before the first validation.
        stale: Validated epochs without improvement since then.
        figures: Metrics of the best epoch.
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
