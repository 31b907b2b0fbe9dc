# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A backbone and a head, joined: what is trained, saved and run for every task."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from muntin.features import FeatureSpec
from muntin.shapes import Float

__all__ = ["Network"]


class Network(nn.Module):
    """Run the head on the backbone. Keys of the state dict begin with ``backbone.`` or ``head.``.

    Args:
        backbone: Follows `muntin.features.Backbone`.
        head: Called as ``head(backbone, images)``, so that each head reads what it needs: the
            pyramid, or one vector an image.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the backbone's maps."""
        spec: FeatureSpec = self.backbone.spec  # type: ignore[assignment]
        return spec

    def forward(self, images: Float[Tensor, "B in_chans H W"], *more: Any) -> Any:  # noqa: ANN401
        """Give what the head gives: logits (B, K) for classification.

        Args:
            images: Normalised.
            more: What else the head reads: a detector takes the sizes of the pictures inside
                padded images, and in training what there is to learn.
        """
        return self.head(self.backbone, images, *more)
