# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The table of detectors: name -> config, and config -> module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from muntin.errors import ConfigError, unknown_name
from muntin.features import Backbone
from muntin.heads.conventions import CONVENTIONS, SMALL_RCNN, RCNNConfig
from muntin.heads.fcos import FCOS, SMALL_FCOS, FCOSConfig
from muntin.heads.rcnn import RCNN

__all__ = ["DETECTORS", "MASK_DETECTORS", "HeadConfig", "build_detector", "find_head"]

HeadConfig = FCOSConfig | RCNNConfig

_RCNN, _CASCADE = CONVENTIONS["openmmlab"]["rcnn"], CONVENTIONS["openmmlab"]["cascade"]
_SMALL_CASCADE = replace(SMALL_RCNN, stage_ious=(0.5, 0.6, 0.7))

DETECTORS: dict[str, HeadConfig] = {
    "fcos": FCOSConfig(),
    "fcos_small": SMALL_FCOS,
    "faster_rcnn": _RCNN,
    "faster_rcnn_small": SMALL_RCNN,
    "cascade_rcnn": _CASCADE,
    "cascade_rcnn_small": _SMALL_CASCADE,
}
"""Detectors of boxes."""

MASK_DETECTORS: dict[str, HeadConfig] = {
    "mask_rcnn": _RCNN,
    "mask_rcnn_small": SMALL_RCNN,
    "cascade_mask_rcnn": _CASCADE,
    "cascade_mask_rcnn_small": _SMALL_CASCADE,
}
"""Detectors of boxes and masks."""


def find_head(name: str, heads: Mapping[str, HeadConfig]) -> HeadConfig:
    """Give the config of a detector.

    Raises:
        ConfigError: There is none of this name.
    """
    if name not in heads:
        raise ConfigError(unknown_name("head", name, heads))
    return heads[name]


def build_detector(
    backbone: Backbone, num_classes: int, config: HeadConfig, *, masks: bool
) -> nn.Module:
    """Make the head for a backbone.

    Raises:
        ConfigError: Masks are wanted from a detector that has none.
    """
    if isinstance(config, RCNNConfig):
        return RCNN(backbone, num_classes, config, masks=masks)
    if masks:
        message = f"masks need one of {', '.join(MASK_DETECTORS)}, got an FCOS. Choose one."
        raise ConfigError(message)
    return FCOS(backbone, num_classes, config)
