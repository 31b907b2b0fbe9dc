# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The first weights of a run."""

from __future__ import annotations

from muntin.errors import WeightError
from muntin.heads.network import Network
from muntin.runs import Run, is_run
from muntin.weights.loading import load_weights
from muntin.zoo import ModelEntry

__all__ = ["start_network"]


def start_network(
    network: Network, task: str, weights: str, entry: ModelEntry, notes: list[str]
) -> str:
    """Load the first weights: a whole detector's, or a classifier's into the backbone.

    Args:
        network: Changed.
        task: What it is for; of a run of another task only the backbone is taken.
        weights: "auto", "none", a file, a run folder or a hub id.
        entry: Row of the model, which names published weights.
        notes: What was done is added.

    Returns:
        Source of the weights, or nothing for fresh ones.

    Raises:
        WeightError: Weights that were asked for cannot be had.
    """
    if weights in ("none", ""):
        notes.append("weights: fresh (--weights none)")
        return ""
    if weights != "auto":
        other = is_run(weights) and Run.open(weights).config.task != task
        report = load_weights(network.backbone if other else network, weights)
        notes.append(f"weights: {report.summary()}{'; of the backbone alone' * other}")
        return weights
    if not entry.weights:
        notes.append("weights: fresh; no published file is known for this model")
        return ""
    try:
        report = load_weights(network, entry.weights)
    except WeightError as error:
        notes.append(f"weights: fresh; {entry.weights} could not be had ({error})")
        return ""
    notes.append(f"weights: {report.summary()}; licence {entry.license or 'not stated'}")
    return entry.weights
