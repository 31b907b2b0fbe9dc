# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a name to a whole detector: backbone, neck and heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muntin.errors import ConfigError, unknown_name
from muntin.heads.conventions import CONVENTIONS, RCNNConfig
from muntin.heads.detectors import DETECTORS, MASK_DETECTORS, DetectorConfig, build_detector
from muntin.heads.network import Network
from muntin.heads.table import find_head
from muntin.zoo.building import build_dense_backbone, load_into

__all__ = ["create_detector"]


def create_detector(
    name: str,
    *,
    head: str | DetectorConfig = "mask_rcnn",
    num_classes: int = 80,
    masks: bool | None = None,
    conventions: str = "",
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> Network:
    """Build a detector: images (B, in_chans, H, W) float to the boxes that are found in each.

    Args:
        name: Of the backbone, as in `create_model`.
        head: A name such as "mask_rcnn", "cascade_mask_rcnn", "faster_rcnn" or "fcos", one that
            ends in "_small" for small machines, or the config of a head.
        num_classes: Classes, without "nothing".
        masks: Whether objects get masks; only for a config, since a name says it.
        conventions: Whose weights it shall read: "openmmlab" (also Microsoft's), "detectron2" or
            "torchvision", whose first class is "nothing". The head's own when empty.
        in_chans: Channels of an image.
        weights: As in `create_model`: those of a whole detector, or of a classifier, which fill
            the backbone but for the norms of its maps.
        architecture: Fields of the backbone's config. Every map has a norm of its own where the
            family has them; ``out_norm="none"`` builds none.

    Returns:
        The detector, in training mode. In evaluation mode it is called with images, padded at the
        right and at the bottom to one size, and optionally the (height, width) of the picture in
        each, and gives a list of `muntin.heads.found.Found`.

    Raises:
        ConfigError: A name or a field is unknown, or the fields do not go together.
        WeightError: The weights cannot be read or do not fit.

    Example:
        >>> import torch
        >>> detector = create_detector("swin_nano", head="fcos_small", num_classes=3).eval()
        >>> len(detector(torch.zeros(2, 3, 64, 96)))
        2
    """
    config, has_masks = _head_config(head, masks)
    if num_classes < 1:
        message = f"num_classes must be 1 or more, got {num_classes}, for {name!r}."
        raise ConfigError(message)
    config = _with_conventions(config, head, conventions)
    asked = {"in_chans": in_chans, **architecture}
    backbone = build_dense_backbone(name, asked, finest=config.finest)
    built = build_detector(backbone, num_classes, config, masks=has_masks)
    model = Network(backbone, built)
    if weights is not None:
        load_into(model, weights, architecture)
    return model


def _head_config(head: str | DetectorConfig, masks: bool | None) -> tuple[DetectorConfig, bool]:
    """Config of a head, and whether it has masks."""
    if not isinstance(head, str):
        return head, bool(masks)
    if masks is not None and masks != (head in MASK_DETECTORS):
        message = (
            f"masks must be left out where head is a name, got masks={masks} and {head!r}. "
            f"Name one of {', '.join(MASK_DETECTORS if masks else DETECTORS)}."
        )
        raise ConfigError(message)
    return find_head(head, {**DETECTORS, **MASK_DETECTORS}), head in MASK_DETECTORS


def _with_conventions(
    config: DetectorConfig, head: str | DetectorConfig, origin: str
) -> DetectorConfig:
    """What an origin's detectors of this kind look like."""
    if not origin:
        return config
    if origin not in CONVENTIONS:
        raise ConfigError(unknown_name("conventions", origin, CONVENTIONS))
    published = CONVENTIONS["openmmlab"].values()
    if not isinstance(config, RCNNConfig) or not isinstance(head, str) or config not in published:
        called = repr(head) if isinstance(head, str) else "a config of its own"
        message = (
            f"conventions={origin!r} needs a head that was published: faster_rcnn, mask_rcnn, "
            f"cascade_rcnn or cascade_mask_rcnn, got {called}. Leave conventions out."
        )
        raise ConfigError(message)
    kind = "cascade" if len(config.stage_ious) > 1 else "rcnn"
    if kind not in CONVENTIONS[origin]:
        known = ", ".join(name for name, kinds in CONVENTIONS.items() if kind in kinds)
        message = f"a {kind} must have the conventions of {known}, got {origin!r}. Choose one."
        raise ConfigError(message)
    return CONVENTIONS[origin][kind]
