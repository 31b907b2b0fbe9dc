# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: the figures of a network on a data set, and plots of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.scoring.evaluation import evaluate, pick_part
    from muntin.scoring.evaluation_plots import draw_evaluation
    from muntin.scoring.evaluator import compute_figures, run_network, score
    from muntin.scoring.outputs import Outputs, Scored

__all__ = [
    "Outputs",
    "Scored",
    "compute_figures",
    "draw_evaluation",
    "evaluate",
    "pick_part",
    "run_network",
    "score",
]

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "evaluation": "evaluate pick_part",
        "evaluator": "compute_figures run_network score",
        "evaluation_plots": "draw_evaluation",
        "outputs": "Outputs Scored",
    },
)
