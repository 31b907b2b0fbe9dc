# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a name to a whole network for maps of classes: backbone, decoder and classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muntin.errors import ConfigError
from muntin.heads.network import Network
from muntin.heads.semantic import MAP_HEADS, SemanticConfig, SemanticHead
from muntin.heads.table import find_head
from muntin.zoo.building import build_dense_backbone, load_into

__all__ = ["create_segmenter"]


def create_segmenter(
    name: str,
    *,
    head: str | SemanticConfig = "upernet",
    num_classes: int = 150,
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> Network:
    """Build a segmenter: images (B, in_chans, H, W) float to logits (B, num_classes, h, w).

    Args:
        name: Of the backbone, as in `create_model`.
        head: "upernet", "light", "light_small", or the config of a head.
        num_classes: Classes.
        in_chans: Channels of an image.
        weights: As in `create_model`: those of a whole segmenter, or of a classifier, which fill
            the backbone but for the norms of its maps.
        architecture: Fields of the backbone's config. Every map has a norm of its own where the
            family has them; ``out_norm="none"`` builds none.

    Returns:
        The segmenter, in training mode. In evaluation mode its logits are those of the cells of the
        finest map, a quarter of the image's sides, rounded up; enlarge them bilinearly. In training
        it also takes the class of each pixel and gives losses (`muntin.heads.semantic`).

    Raises:
        ConfigError: A name or a field is unknown, or the fields do not go together.
        WeightError: The weights cannot be read or do not fit.

    Example:
        >>> import torch
        >>> segmenter = create_segmenter("swin_nano", head="light_small", num_classes=3).eval()
        >>> segmenter(torch.zeros(2, 3, 64, 90)).shape
        torch.Size([2, 3, 16, 23])
    """
    config = find_head(head, MAP_HEADS) if isinstance(head, str) else head
    if num_classes < 1:
        message = f"num_classes must be 1 or more, got {num_classes}, for {name!r}."
        raise ConfigError(message)
    asked = {"in_chans": in_chans, **architecture}
    backbone = build_dense_backbone(name, asked, finest=config.finest)
    model = Network(backbone, SemanticHead(backbone, num_classes, config))
    if weights is not None:
        load_into(model, weights, architecture)
    return model
