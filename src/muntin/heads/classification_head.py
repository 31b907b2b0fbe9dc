# SPDX-License-Identifier: Apache-2.0
"""Classification heads: linear layers on the pooled vector."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Backbone, Features
from muntin.heads.network import Head
from muntin.shapes import Float


def class_losses(
    logits: Float[Tensor, "B K"],
    labels: Tensor,
    *,
    class_weights: Float[Tensor, " K"] | None = None,
    label_smoothing: float = 0.0,
    multi_label: bool = False,
) -> Float[Tensor, " B"]:
    """Cross-entropy of each image; binary if an image may have several labels.

    Labels are class numbers (B), or the share of each class (B, K), as mixing images makes them.
    """
    # Cross-entropy in float32: half precision loses small probabilities.
    logits = logits.float()
    if multi_label:
        loss = F.binary_cross_entropy_with_logits(logits, labels, class_weights, reduction="none")
        return loss.mean(dim=1)
    return F.cross_entropy(
        logits, labels, class_weights, reduction="none", label_smoothing=label_smoothing
    )


class _Classifier(Head):
    """The loss that both heads share."""

    reads = "vector"

    def branches(self, features: Features) -> tuple[Tensor, Tensor]:
        """Logits (B, K) that learn from labels, and those that learn from a teacher, if any."""
        raise NotImplementedError

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """Both classifiers."""
        return {"fc": (1, 0), "fc_dist": (1, 0)}

    def losses(
        self, features: Features, labels: Tensor, **options: Any
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compare the logits with labels; options as in `class_losses`."""
        return {"classes": class_losses(self(features), labels, **options)}


class LinearHead(_Classifier):
    """Logits of each class from the vector of an image; with 0 classes, the vector itself."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc = _linear(channels, num_classes)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        """Give the logits."""
        return self.fc(features.vector)

    def branches(self, features: Features) -> tuple[Tensor, Tensor]:
        """The same logits for both."""
        logits = self(features)
        return logits, logits


class DistilledHead(_Classifier):
    """Two classifiers, of the class token and the distillation token; the logits are their mean.

    Touvron et al. 2021 (arXiv 2012.12877), section 3.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fc = _linear(channels // 2, num_classes)
        self.fc_dist = _linear(channels // 2, num_classes)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        """Give the mean of both classifiers' logits."""
        own, taught = self.branches(features)
        return (own + taught) / 2

    def branches(self, features: Features) -> tuple[Tensor, Tensor]:
        """Logits of the class token, and those of the distillation token."""
        first, second = features.vector.chunk(2, dim=1)
        return self.fc(first), self.fc_dist(second)


def build_classifier(backbone: Backbone, num_classes: int) -> LinearHead | DistilledHead:
    """Build the head that suits the vector that a backbone gives."""
    kind = DistilledHead if backbone.spec.embed_parts == 2 else LinearHead
    return kind(backbone.embed_channels, num_classes)


def _linear(channels: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    linear = nn.Linear(channels, num_classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
