# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The classifier's head: one linear layer on the pooled vector."""

from __future__ import annotations

from torch import Tensor, nn

from muntin.features import Backbone
from muntin.shapes import Float

__all__ = ["LinearHead"]


class LinearHead(nn.Module):
    """Logits of each class from what `Backbone.embed` gives.

    Args:
        channels: Channels of the vector.
        num_classes: Classes; 0 gives the vector itself.
        dropout: Probability of dropping a channel in training.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            linear = nn.Linear(channels, num_classes)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            self.fc = linear

    def forward(
        self, backbone: Backbone, images: Float[Tensor, "B in_chans H W"]
    ) -> Float[Tensor, "B K"]:
        """Give the logits."""
        return self.fc(self.dropout(backbone.embed(images)))
