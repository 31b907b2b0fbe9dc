# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Initial weights of a run."""

from __future__ import annotations

from muntin.errors import WeightError, shorten
from muntin.heads.network import Network
from muntin.runs import Run, is_run
from muntin.samples import Classes
from muntin.weights.state_matching import class_tensors
from muntin.weights.weight_loading import load_weights
from muntin.zoo.model_zoo import ModelEntry

__all__ = ["initialize_network"]


def initialize_network(
    network: Network,
    task: str,
    classes: Classes,
    weights: str,
    entry: ModelEntry,
    notes: list[str],
) -> str:
    """Load the initial weights: of the whole network, or of the backbone alone.

    Args:
        network: Changed in place.
        task: Name of the task; from a run of another task only the backbone is loaded.
        classes: Classes; from a run with other classes the class-specific layers are not loaded.
        weights: "auto", "none", a file, a run folder or a hub id.
        entry: Zoo entry of the model, which names published weights.
        notes: A line about the weights is appended.

    Returns:
        Source of the weights; empty for random ones.

    Raises:
        WeightError: The requested weights are not available.
    """
    if weights in ("none", ""):
        notes.append("weights: random (--weights none)")
        return ""
    if weights != "auto":
        origin = Run.open(weights) if is_run(weights) else None
        # A head of another task has other layers.
        if origin is not None and origin.config.task != task:
            report = load_weights(network.backbone, weights)
            notes.append(f"weights: {report.summary()}; backbone only")
            return weights
        # Kept to be restored: loading overwrites layers of equal shape, whatever their classes.
        state = network.state_dict()
        fresh = {name: state[name].clone() for name in class_tensors(network)}
        report = load_weights(network, weights)
        notes.append(f"weights: {report.summary()}")
        if origin is not None and _output_names(origin.classes) != _output_names(classes):
            network.load_state_dict(fresh, strict=False)
            notes.append(
                f"{weights} has different classes, or in a different order "
                f"({shorten(_output_names(origin.classes))}): class-specific layers keep random "
                f"weights"
            )
        return weights
    if not entry.weights:
        notes.append("weights: random; no published weights are known for this model")
        return ""
    try:
        report = load_weights(network, entry.weights)
    # Only "auto" may end with random weights; a source that the user named must exist.
    except WeightError as error:
        notes.append(f"weights: random; {entry.weights} is not available ({error})")
        return ""
    notes.append(f"weights: {report.summary()}; license {entry.license or 'not stated'}")
    return entry.weights


def _output_names(classes: Classes) -> tuple[str, ...]:
    """Names of the keypoints in pose tasks, else of the classes."""
    return classes.names if classes.skeleton is None else classes.skeleton.names
