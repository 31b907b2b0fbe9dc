# SPDX-License-Identifier: Apache-2.0
"""Heads that tasks choose from, by name, and the table of detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import nn

from muntin.errors import ConfigError, unknown_name
from muntin.features import Backbone
from muntin.heads.dense_head import NUM_PROTOTYPES, SMALL_DENSE, Dense, DenseConfig
from muntin.heads.fcos import FCOS, SMALL_FCOS, FCOSConfig
from muntin.heads.mae_head import MAEConfig, build_mae_head
from muntin.heads.network import Head, HeadConfig
from muntin.heads.pose_head import PoseConfig
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import CASCADE_VITDET, CONVENTIONS, SMALL_RCNN, VITDET, RCNNConfig
from muntin.heads.semantic_head import SemanticConfig
from muntin.heads.simmim_head import SimMIMConfig, build_simmim_head
from muntin.heads.transformers_head import TransformersHeadConfig, build_whole_model
from muntin.heads.views_head import ViewsConfig, ViewsHead

DetectorConfig = FCOSConfig | RCNNConfig | DenseConfig | TransformersHeadConfig
PretrainingConfig = MAEConfig | SimMIMConfig | ViewsConfig
PRETRAINING_KINDS: tuple[str, ...] = (MAEConfig.kind, SimMIMConfig.kind, ViewsConfig.kind)
"""Ways to learn without labels, which `--objective` chooses from."""

AnyHeadConfig = DetectorConfig | SemanticConfig | PoseConfig | PretrainingConfig
"""Every class of config, for the reader of run folders."""

_RCNN, _CASCADE = CONVENTIONS["openmmlab"]["rcnn"], CONVENTIONS["openmmlab"]["cascade"]
# The rising thresholds of the paper: each stage trains on better boxes than the one before.
_SMALL_CASCADE = replace(SMALL_RCNN, stage_ious=(0.5, 0.6, 0.7))

DETECTORS: dict[str, DetectorConfig] = {
    "dense": DenseConfig(),
    "dense_small": SMALL_DENSE,
    "fcos": FCOSConfig(),
    "fcos_small": SMALL_FCOS,
    "faster_rcnn": _RCNN,
    "faster_rcnn_small": SMALL_RCNN,
    "cascade_rcnn": _CASCADE,
    "cascade_rcnn_small": _SMALL_CASCADE,
}
"""Detectors of boxes."""

MASK_DETECTORS: dict[str, DetectorConfig] = {
    "dense": DenseConfig(prototypes=NUM_PROTOTYPES),
    "dense_small": replace(SMALL_DENSE, prototypes=NUM_PROTOTYPES),
    "mask_rcnn": _RCNN,
    "mask_rcnn_small": SMALL_RCNN,
    "cascade_mask_rcnn": _CASCADE,
    "cascade_mask_rcnn_small": _SMALL_CASCADE,
    "mask_rcnn_vitdet": VITDET,
    "cascade_mask_rcnn_vitdet": CASCADE_VITDET,
}
"""Detectors of boxes and masks."""


def build_detector(
    backbone: Backbone, num_classes: int, config: DetectorConfig, *, masks: bool
) -> nn.Module:
    """Build a detector; masks from one without them are a `ConfigError`."""
    if isinstance(config, TransformersHeadConfig):
        return build_whole_model(backbone, num_classes, config, "instance" if masks else "detect")
    if isinstance(config, RCNNConfig):
        return RCNN(backbone, num_classes, config, masks=masks)
    if isinstance(config, DenseConfig) and masks <= bool(config.prototypes):
        return Dense(backbone, num_classes, config if masks else replace(config, prototypes=0))
    if masks:
        what = "fcos" if isinstance(config, FCOSConfig) else "dense with head.prototypes=0"
        message = (
            f"masks need a head of {', '.join(MASK_DETECTORS)}, got {what}. Choose one of them."
        )
        raise ConfigError(message)
    assert isinstance(config, FCOSConfig), "every other config has its branch"
    return FCOS(backbone, num_classes, config)


def build_head(config: PretrainingConfig, backbone: Backbone) -> Head:
    """Build a head that learns without labels; one that does not suit is a `ConfigError`."""
    if isinstance(config, MAEConfig):
        return build_mae_head(backbone, config)
    if isinstance(config, ViewsConfig):
        return ViewsHead(backbone, config)
    return build_simmim_head(backbone, config)


Config = TypeVar("Config", bound=HeadConfig)


def find_head(name: str, heads: Mapping[str, Config]) -> Config:
    """Give the config of the head of this name."""
    if name not in heads:
        raise ConfigError(unknown_name("head", name, heads))
    return heads[name]
