# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The first weights of a run."""

from __future__ import annotations

from muntin.errors import WeightError, shorten
from muntin.heads.network import Network
from muntin.runs import Run, is_run
from muntin.samples import Classes
from muntin.weights.fitting import class_tensors
from muntin.weights.loading import load_weights
from muntin.zoo.table import ModelEntry

__all__ = ["start_network"]


def start_network(
    network: Network,
    task: str,
    classes: Classes,
    weights: str,
    entry: ModelEntry,
    notes: list[str],
) -> str:
    """Load the first weights: a whole detector's, or a classifier's into the backbone.

    Args:
        network: Changed.
        task: What it is for; of a run of another task only the backbone is taken.
        classes: What it tells apart; layers of a run that tells other things apart are not taken.
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
        origin = Run.open(weights) if is_run(weights) else None
        if origin is not None and origin.config.task != task:
            report = load_weights(network.backbone, weights)
            notes.append(f"weights: {report.summary()}; of the backbone alone")
            return weights
        state = network.state_dict()
        fresh = {name: state[name].clone() for name in class_tensors(network)}
        report = load_weights(network, weights)
        notes.append(f"weights: {report.summary()}")
        if origin is not None and _told_apart(origin.classes) != _told_apart(classes):
            network.load_state_dict(fresh, strict=False)
            notes.append(
                f"{weights} tells other things apart, or in another order "
                f"({shorten(_told_apart(origin.classes))}): the layers that do so begin anew"
            )
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


def _told_apart(classes: Classes) -> tuple[str, ...]:
    """Names of the keypoints, where there are some; else of the classes."""
    return classes.names if classes.skeleton is None else classes.skeleton.names
