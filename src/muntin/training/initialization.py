# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Initial weights of a run."""

from __future__ import annotations

from muntin.errors import WeightError, shorten
from muntin.heads.network import Network
from muntin.runs import Run, is_run
from muntin.samples import Classes
from muntin.training.defaults import Choice
from muntin.weights.state_matching import class_tensors
from muntin.weights.weight_loading import load_weights
from muntin.zoo.model_zoo import ModelEntry

__all__ = ["initialize_network"]


def initialize_network(
    network: Network, task: str, classes: Classes, weights: str, entry: ModelEntry
) -> Choice[str]:
    """Load the initial weights: of the whole network, or of the backbone alone.

    Of a run of another `task` only the backbone is loaded; of one with other `classes` everything
    but the class-specific layers. `entry` names the published weights of the model.

    Returns:
        Source of the weights; empty for random ones.

    Raises:
        WeightError: The requested weights are not available.
    """
    if weights in ("none", ""):
        return Choice("", ("weights: random (--weights none)",))
    if weights != "auto":
        return Choice(weights, _load_requested(network, task, classes, weights))
    if not entry.weights:
        return Choice("", ("weights: random; no published weights are known for this model",))
    try:
        report = load_weights(network, entry.weights)
    # Only "auto" may end with random weights; a source that the user named must exist.
    except WeightError as error:
        return Choice("", (f"weights: random; {entry.weights} is not available ({error})",))
    license_ = entry.license or "not stated"
    return Choice(entry.weights, (f"weights: {report.summary()}; license {license_}",))


def _load_requested(network: Network, task: str, classes: Classes, weights: str) -> tuple[str, ...]:
    origin = Run.open(weights) if is_run(weights) else None
    # A head of another task has other layers.
    if origin is not None and origin.config.task != task:
        report = load_weights(network.backbone, weights)
        return (f"weights: {report.summary()}; backbone only",)
    # Kept to be restored: loading overwrites layers of equal shape, whatever their classes.
    state = network.state_dict()
    fresh = {name: state[name].clone() for name in class_tensors(network)}
    note = f"weights: {load_weights(network, weights).summary()}"
    if origin is None or _output_names(origin.classes) == _output_names(classes):
        return (note,)
    network.load_state_dict(fresh, strict=False)
    reset = (
        f"{weights} has different classes, or in a different order "
        f"({shorten(_output_names(origin.classes))}): class-specific layers keep random weights"
    )
    return note, reset


def _output_names(classes: Classes) -> tuple[str, ...]:
    """Names of the keypoints in pose tasks, else of the classes."""
    return classes.names if classes.skeleton is None else classes.skeleton.names
