# SPDX-License-Identifier: Apache-2.0
"""The zoo: the table of models, the functions that build them, and what they cost."""

from __future__ import annotations

from muntin.lazy import resolve_lazily

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "model_building": (
            "change_model create_backbone create_model dense_config find_model list_models "
            "model_config"
        ),
        "costs": "Cost Costs count_costs count_parameters describe_models",
        "creating": "create create_detector create_pose_estimator create_segmenter",
        "model_zoo": (
            "ALIASES BackboneConfig FAMILIES Family MODELS ModelEntry build_backbone "
            "config_from_dict config_to_dict family_of free_attention"
        ),
    },
)
