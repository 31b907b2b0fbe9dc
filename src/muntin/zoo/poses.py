# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a name to a whole network for keypoints: backbone, decoder and heatmaps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muntin.errors import ConfigError
from muntin.heads.network import Network
from muntin.heads.pose import POSE_HEADS, PoseConfig, PoseHead
from muntin.heads.table import find_head
from muntin.zoo.building import build_dense_backbone, load_into

__all__ = ["create_pose_estimator"]


def create_pose_estimator(
    name: str,
    *,
    head: str | PoseConfig = "simple_baseline",
    num_keypoints: int = 17,
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> Network:
    """Build a pose estimator: images (B, in_chans, H, W) float to heatmaps (B, P, H/4, W/4).

    Args:
        name: Of the backbone, as in `create_model`; "vitpose_base" and its like for ViTPose.
        head: "simple_baseline", "vitpose", "vitpose_simple", "light_pose", "light_pose_small", or
            the config of a head.
        num_keypoints: Keypoints P.
        in_chans: Channels of an image.
        weights: As in `create_model`: those of a whole estimator, or of a classifier, which fill
            the backbone.
        architecture: Fields of the backbone's config.

    Returns:
        The estimator, in training mode. An image shows one subject. In training it also takes the
        points and which of them are known, and gives losses (`muntin.heads.pose`).

    Raises:
        ConfigError: A name or a field is unknown, or the fields do not go together.
        WeightError: The weights cannot be read or do not fit.

    Example:
        >>> import torch
        >>> estimator = create_pose_estimator("swin_nano", head="light_pose_small").eval()
        >>> estimator(torch.zeros(2, 3, 64, 48)).shape
        torch.Size([2, 17, 16, 12])
    """
    config = find_head(head, POSE_HEADS) if isinstance(head, str) else head
    if num_keypoints < 1:
        message = f"num_keypoints must be 1 or more, got {num_keypoints}, for {name!r}."
        raise ConfigError(message)
    asked = {"in_chans": in_chans, **architecture}
    backbone = build_dense_backbone(name, asked, finest=config.finest)
    model = Network(backbone, PoseHead(backbone, num_keypoints, config))
    if weights is not None:
        load_into(model, weights, architecture)
    return model
