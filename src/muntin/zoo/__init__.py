# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The zoo: the table of models, the functions that build them, and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.zoo.costs import Cost, Costs, count_costs, count_parameters
    from muntin.zoo.creating import create, create_detector, create_pose_estimator, create_segmenter
    from muntin.zoo.families import (
        FAMILIES,
        BackboneConfig,
        Family,
        build_backbone,
        config_from_dict,
        config_to_dict,
        family_of,
        free_attention,
    )
    from muntin.zoo.model_building import (
        change_model,
        create_backbone,
        create_model,
        dense_config,
        find_model,
        list_models,
        model_config,
    )
    from muntin.zoo.model_table import describe_models
    from muntin.zoo.model_zoo import ALIASES, MODELS, ModelEntry

__all__ = [
    "ALIASES",
    "FAMILIES",
    "MODELS",
    "BackboneConfig",
    "Cost",
    "Costs",
    "Family",
    "ModelEntry",
    "build_backbone",
    "change_model",
    "config_from_dict",
    "config_to_dict",
    "count_costs",
    "count_parameters",
    "create",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_pose_estimator",
    "create_segmenter",
    "dense_config",
    "describe_models",
    "family_of",
    "find_model",
    "free_attention",
    "list_models",
    "model_config",
]

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "model_building": (
            "change_model create_backbone create_model dense_config find_model list_models "
            "model_config"
        ),
        "costs": "Cost Costs count_costs count_parameters",
        "creating": "create create_detector create_pose_estimator create_segmenter",
        "model_table": "describe_models",
        "families": (
            "BackboneConfig FAMILIES Family build_backbone config_from_dict config_to_dict "
            "family_of free_attention"
        ),
        "model_zoo": "ALIASES MODELS ModelEntry",
    },
)
