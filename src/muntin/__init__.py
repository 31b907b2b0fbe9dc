# SPDX-License-Identifier: Apache-2.0
"""muntin: hierarchical vision transformers for every vision task, on whatever machine you have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin._version import __version__ as __version__
from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.demo_run import demo
    from muntin.explaining.explanation import explain
    from muntin.exporting.run_export import export
    from muntin.planning.estimate import Plan, plan
    from muntin.prediction.from_run import load
    from muntin.prediction.image_search import embed, search
    from muntin.prediction.predictor import Predictor, draw
    from muntin.scoring.evaluation import evaluate
    from muntin.tasks.packing import pack
    from muntin.training.pretraining_session import pretrain
    from muntin.training.session import TrainedRun, train
    from muntin.weights.dialects import to_dialect
    from muntin.weights.weight_loading import LoadReport, load_weights
    from muntin.zoo.costs import count_costs
    from muntin.zoo.creating import create, create_detector, create_pose_estimator, create_segmenter
    from muntin.zoo.model_building import change_model, create_backbone, create_model, list_models

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
    "embed",
    "evaluate",
    "explain",
    "export",
    "list_models",
    "load",
    "load_weights",
    "pack",
    "plan",
    "pretrain",
    "search",
    "to_dialect",
    "train",
]
# Names are imported on first use, because importing torch takes seconds.
__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "demo_run": "demo",
        "explaining.explanation": "explain",
        "exporting.run_export": "export",
        "planning.estimate": "Plan plan",
        "prediction.from_run": "load",
        "prediction.image_search": "embed search",
        "prediction.predictor": "Predictor draw",
        "scoring.evaluation": "evaluate",
        "tasks.packing": "pack",
        "training.pretraining_session": "pretrain",
        "training.session": "TrainedRun train",
        "weights.dialects": "to_dialect",
        "weights.weight_loading": "LoadReport load_weights",
        "zoo.model_building": "change_model create_backbone create_model list_models",
        "zoo.costs": "count_costs",
        "zoo.creating": "create create_detector create_pose_estimator create_segmenter",
    },
)
