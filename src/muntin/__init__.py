# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""muntin: hierarchical vision transformers for every vision task, on whatever machine you have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muntin.demonstration import demo
    from muntin.explaining import explain
    from muntin.exporting import export
    from muntin.planning.forecast import Plan, plan
    from muntin.prediction import Predictor, draw, load
    from muntin.scoring import evaluate
    from muntin.training.session import TrainedRun, train
    from muntin.weights.dialects import to_dialect
    from muntin.weights.loading import LoadReport, load_weights
    from muntin.zoo.building import change_model, create_backbone, create_model, list_models
    from muntin.zoo.costs import count_costs
    from muntin.zoo.creating import create, create_detector, create_pose_estimator, create_segmenter

__all__ = [
    "LoadReport",
    "Plan",
    "Predictor",
    "TrainedRun",
    "change_model",
    "count_costs",
    "create",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_pose_estimator",
    "create_segmenter",
    "demo",
    "draw",
    "evaluate",
    "explain",
    "export",
    "list_models",
    "load",
    "load_weights",
    "plan",
    "to_dialect",
    "train",
]
__version__ = "0.1.0"

# torch is large: a name is imported when it is first asked for.
_ROOMS = {
    "demonstration": "demo",
    "explaining": "explain",
    "exporting": "export",
    "planning.forecast": "Plan plan",
    "prediction": "Predictor draw load",
    "scoring": "evaluate",
    "training.session": "TrainedRun train",
    "weights.dialects": "to_dialect",
    "weights.loading": "LoadReport load_weights",
    "zoo": "change_model count_costs create create_backbone create_detector create_model "
    "create_pose_estimator create_segmenter list_models",
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:  # noqa: ANN401 (classes and functions)
    if name not in _HOMES:
        message = f"module 'muntin' has no attribute {name!r}"
        raise AttributeError(message)
    value = getattr(importlib.import_module(f"muntin.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
