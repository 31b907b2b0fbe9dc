# SPDX-License-Identifier: Apache-2.0
"""Base class of heads and of their configs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from muntin.features import Features


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Base class of head configs; `muntin.heads.head_table` lists the classes."""

    kind: ClassVar[str]

    @property
    def finest(self) -> int:
        """Stride in pixels of the finest map that the head reads."""
        raise NotImplementedError


class Head(nn.Module):
    """Computes raw output from features; it has no access to the backbone or the pixels.

    Attributes:
        reads: The part of the features it uses.
        losses: From features and targets of the head's own kind to the loss of each image (B), by
            name. It may depend on the whole batch.
    """

    reads: ClassVar[Literal["maps", "vector", "tokens"]] = "maps"

    losses: Callable[..., dict[str, Tensor]]

    def forward(self, features: Features) -> Any:  # noqa: ANN401 (each head has its own)
        """Compute raw output; only dropout and norms differ between training and evaluation."""
        raise NotImplementedError

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """Layers with a row for each class or keypoint.

        Path of the layer, or its end -> rows per class, and rows besides those.
        """
        return {}

    def may_lack(self, name: str) -> bool:
        """Whether weights with this parameter fit, although the head lacks it."""
        return self.reads != "maps"

    def decode(self, raw: Any) -> Any:  # noqa: ANN401 (as `forward`)
        """Decode raw output; identity by default."""
        return raw
