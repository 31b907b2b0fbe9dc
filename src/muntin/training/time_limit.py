# SPDX-License-Identifier: Apache-2.0
"""When the steps of a run with a time limit must end, so that all of it is over in time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Clock = Callable[[], float]
"""Seconds from any start, such as `time.monotonic`."""

DRAWING_S = 5.0
"""Reserved for figures and pictures after the last validation."""

_MEASURED = ("step_s", "closing_s", "validation_s", "saving_s")
_FORGET = 0.9  # an unusually long step is reserved for less with every step after it
_MARGIN = 1.1
_WRITTEN_PER_S = 200e6  # bytes; slow for a disk, so that the first checkpoint is not late


@dataclass(kw_only=True, slots=True)
class TimeLimit:
    """What follows the last step, in seconds as measured, or estimated before the first time.

    `step_s` is a whole step with the wait for its batch, `closing_s` the end of the worker
    processes and a look at the weights, `validation_s` a validation, `saving_s` weights and
    checkpoint. `limit_s` is for everything; 0 = no limit.
    """

    limit_s: float
    step_s: float = 0.0
    closing_s: float = 0.0
    validation_s: float = 0.0
    saving_s: float = 0.0

    def expect_saving(self, num_values: int) -> None:
        """Estimate the time of saving a network, before the first time; moments are saved too."""
        self.saving_s = 5 * 4 * num_values / _WRITTEN_PER_S

    def measured(self) -> dict[str, float]:
        """What a checkpoint keeps, so that a resumed run ends in time too; {} without limit."""
        return {name: getattr(self, name) for name in _MEASURED} if self.limit_s else {}

    def restore(self, measured: Mapping[str, float]) -> None:
        """Take over what an earlier sitting measured."""
        for name in _MEASURED:
            setattr(self, name, measured.get(name, getattr(self, name)))

    def add_step(self, seconds: float) -> None:
        """Add a measured step."""
        self.step_s = max(seconds, _FORGET * self.step_s)

    @property
    def reserve_s(self) -> float:
        """Time that must be left when a step begins."""
        after = self.closing_s + self.validation_s + self.saving_s
        return self.step_s + _MARGIN * after + DRAWING_S

    def progress(self, elapsed_s: float) -> float:
        """Part of the time for steps that is over, 1 where no other step fits; 0 without limit."""
        if not self.limit_s:
            return 0.0
        return elapsed_s / max(self.limit_s - self.reserve_s, 1e-9)

    def allows_validation(self, since_s: float, share: float, *, first: bool) -> bool:
        """Whether a validation `since_s` after the last one costs at most this share of the time.

        The `first` one may cost that share of the whole limit: weights are kept early.
        """
        return not self.limit_s or share * (self.limit_s if first else since_s) >= self.validation_s
