# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The first weights of a run."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from muntin.errors import WeightError
from muntin.heads.network import Network
from muntin.weights.loading import LoadReport, load_weights
from muntin.zoo import ModelEntry, build_backbone

__all__ = ["start_network"]


def start_network(
    network: Network, weights: str, entry: ModelEntry, *, dense: bool, notes: list[str]
) -> str:
    """Load the first weights.

    Args:
        network: Changed.
        weights: "auto", "none", a file or a hub id.
        entry: Row of the model, which names published weights.
        dense: Whether the backbone gives every map, normalised, so that a classifier's weights
            fill all of it but these norms.
        notes: What was done is added.

    Returns:
        Source of the weights, or nothing for fresh ones.

    Raises:
        WeightError: Weights that were asked for cannot be had.
    """
    if weights in ("none", ""):
        notes.append("weights: fresh (--weights none)")
        return ""
    load = _load_backbone if dense else load_weights
    if weights != "auto":
        report = load(network, weights)
        notes.append(f"weights: {report.summary()}")
        return weights
    if not entry.weights:
        notes.append("weights: fresh; no published file is known for this model")
        return ""
    try:
        report = load(network, entry.weights)
    except WeightError as error:
        notes.append(f"weights: fresh; {entry.weights} could not be had ({error})")
        return ""
    notes.append(f"weights: {report.summary()}; licence {entry.license or 'not stated'}")
    return entry.weights


def _load_backbone(network: Network, source: str) -> LoadReport:
    """Fill a detector with a whole detector's weights if it fits, else with a classifier's."""
    try:
        return load_weights(network, source)
    except WeightError:
        body: Any = network.backbone
        plain = _as_classifier(body.config)
        if plain is None:
            report = load_weights(body, source)
            return replace(report, reset=(*report.reset, "head"))
        classifier: Any = build_backbone(plain)
        report = load_weights(classifier, source)
    state = classifier.state_dict()
    fresh = [name for name in body.state_dict() if name not in state]
    body.load_state_dict({k: v for k, v in state.items() if k in body.state_dict()}, strict=False)
    rule = getattr(classifier.config, "size_rule", None)
    if rule is not None:
        body.config = replace(body.config, size_rule=rule)
    return replace(report, reset=(*report.reset, *fresh, "head"))


def _as_classifier(config: Any) -> Any:  # noqa: ANN401 (one of the families' configs)
    """The same backbone as classifiers have it; None where there is no difference."""
    if "out_norm" not in {field.name for field in fields(config)} or config.out_norm != "each":
        return None
    return replace(config, out_norm="last")
