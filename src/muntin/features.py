# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a backbone promises: the channels and strides of its maps, and two ways to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from muntin.shapes import Float

__all__ = ["Backbone", "FeatureSpec"]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The maps that a backbone gives, finest first.

    Attributes:
        channels: Channels of each map.
        strides: Step between neighbouring cells of each map, in pixels of the image.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


@runtime_checkable
class Backbone(Protocol):
    """From images to features, at any height and width."""

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps, in the order in which `forward` gives them."""

    @property
    def embed_channels(self) -> int:
        """Channels of what `embed` gives."""

    def forward(self, images: Float[Tensor, "B in_chans H W"]) -> list[Tensor]:
        """Give the maps, B, C, H/stride, W/stride each, finest first."""

    def embed(self, images: Float[Tensor, "B in_chans H W"]) -> Float[Tensor, "B C"]:
        """Give one vector an image: what the family's paper classifies from."""
