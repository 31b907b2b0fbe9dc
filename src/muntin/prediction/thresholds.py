# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The score from which what a run finds is told, when nobody says it."""

from __future__ import annotations

from typing import NamedTuple

from muntin.results import SURE
from muntin.runs import ExportedRun, Run, read_results

__all__ = ["Threshold", "find_threshold"]


class Threshold(NamedTuple):
    """A score, and why it is that one."""

    score: float
    why: str


def find_threshold(run: Run) -> Threshold:
    """Give the score at which the F1 of a run that finds objects was best in validation."""
    if isinstance(run, ExportedRun):
        return Threshold(*run.note["threshold"])
    best = read_results(run).score_threshold
    if not best:
        return Threshold(SURE, "as its validation found none that is best")
    # It is the score of an object, which may come out a little lower in other company.
    score = max(0.0, float(best) - 1e-4)
    return Threshold(score, "the best F1 in validation")
