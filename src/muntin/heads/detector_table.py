# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The table of detectors: name -> config, and config -> module."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from muntin.errors import ConfigError
from muntin.features import Backbone
from muntin.heads.fcos import FCOS, SMALL_FCOS, FCOSConfig
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import CONVENTIONS, SMALL_RCNN, RCNNConfig

__all__ = ["DETECTORS", "MASK_DETECTORS", "DetectorConfig", "build_detector"]

DetectorConfig = FCOSConfig | RCNNConfig

_RCNN, _CASCADE = CONVENTIONS["openmmlab"]["rcnn"], CONVENTIONS["openmmlab"]["cascade"]
# The rising thresholds of the paper: each stage trains on better boxes than the one before.
_SMALL_CASCADE = replace(SMALL_RCNN, stage_ious=(0.5, 0.6, 0.7))

DETECTORS: dict[str, DetectorConfig] = {
    "fcos": FCOSConfig(),
    "fcos_small": SMALL_FCOS,
    "faster_rcnn": _RCNN,
    "faster_rcnn_small": SMALL_RCNN,
    "cascade_rcnn": _CASCADE,
    "cascade_rcnn_small": _SMALL_CASCADE,
}
"""Detectors of boxes."""

MASK_DETECTORS: dict[str, DetectorConfig] = {
    "mask_rcnn": _RCNN,
    "mask_rcnn_small": SMALL_RCNN,
    "cascade_mask_rcnn": _CASCADE,
    "cascade_mask_rcnn_small": _SMALL_CASCADE,
}
"""Detectors of boxes and masks."""


def build_detector(
    backbone: Backbone, num_classes: int, config: DetectorConfig, *, masks: bool
) -> nn.Module:
    """Build a detector for a backbone.

    Raises:
        ConfigError: Masks requested from a detector without masks.
    """
    if isinstance(config, RCNNConfig):
        return RCNN(backbone, num_classes, config, masks=masks)
    if masks:
        message = f"masks need a head of {', '.join(MASK_DETECTORS)}, got fcos. Choose one of them."
        raise ConfigError(message)
    return FCOS(backbone, num_classes, config)
