# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The classifier's heads: linear layers on the pooled vector."""

from __future__ import annotations

from torch import Tensor, nn

from muntin.features import Backbone
from muntin.shapes import Float

__all__ = ["DistilledHead", "LinearHead", "build_classifier"]


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
        self.fc = _start(channels, num_classes)

    def forward(
        self, backbone: Backbone, images: Float[Tensor, "B in_chans H W"]
    ) -> Float[Tensor, "B K"]:
        """Give the logits."""
        return self.fc(self.dropout(backbone.embed(images)))


class DistilledHead(nn.Module):
    """Two classifiers, of the class token and the distillation token; the logits are their mean.

    Args:
        channels: Channels of both tokens together.
        num_classes: Classes; 0 gives the mean of the tokens.
        dropout: Probability of dropping a channel in training.

    Source:
        Touvron et al. 2021 (arXiv 2012.12877), section 3. There the mean is taken at evaluation;
        to train with a teacher, compare `both` with labels and teacher.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc = _start(channels // 2, num_classes)
        self.fc_dist = _start(channels // 2, num_classes)

    def forward(
        self, backbone: Backbone, images: Float[Tensor, "B in_chans H W"]
    ) -> Float[Tensor, "B K"]:
        """Give the mean of both classifiers' logits."""
        first, second = self.both(backbone, images)
        return (first + second) / 2

    def both(
        self, backbone: Backbone, images: Float[Tensor, "B in_chans H W"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """Give the logits of the class token and those of the distillation token."""
        first, second = self.dropout(backbone.embed(images)).chunk(2, dim=1)
        return self.fc(first), self.fc_dist(second)


def build_classifier(
    backbone: Backbone, num_classes: int, dropout: float = 0.0
) -> LinearHead | DistilledHead:
    """Build the head that suits what a backbone's `embed` gives."""
    kind = DistilledHead if backbone.spec.embed_parts == 2 else LinearHead
    return kind(backbone.embed_channels, num_classes, dropout)


def _start(channels: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    linear = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
