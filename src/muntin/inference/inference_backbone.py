# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What the rebuilt backbones share: they promise what the one they were made from promises."""

from __future__ import annotations

from muntin.features import Backbone, FeatureSpec

__all__ = ["InferenceBackbone"]


class InferenceBackbone(Backbone):
    """A backbone for images of one size.

    Args:
        model: The backbone that it computes the same as.
    """

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self._spec, self._embed_channels = model.spec, model.embed_channels

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps."""
        return self._spec

    @property
    def embed_channels(self) -> int:
        """Channels of the vector."""
        return self._embed_channels
