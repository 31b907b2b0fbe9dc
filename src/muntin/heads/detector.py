# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What every detector does: candidates from features, then the choice of those that count."""

from __future__ import annotations

from torch import Tensor, nn

from muntin.features import Features
from muntin.heads.head import Head
from muntin.heads.instances import Candidates, Instances, select_boxes, select_fixed
from muntin.heads.select_config import SelectConfig
from muntin.shapes import Float, Int

__all__ = ["Detector", "FixedDetector"]


class Detector(Head):
    """A head that finds objects.

    Those who build on it write `select`, `candidates` and `losses`, or `forward` itself where
    candidates are no matter of maps; and `with_masks` where more than a box is found.
    """

    neck: nn.Module | None
    """Makes the levels that are read from the maps of the backbone; None reads those."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = None

    @property
    def select(self) -> SelectConfig:
        """Which candidates count."""
        raise NotImplementedError

    def read_levels(self, features: Features) -> list[Tensor]:
        """Give the maps that candidates are computed from, finest first."""
        if self.neck is None:
            return features.maps
        levels: list[Tensor] = self.neck(features.maps)
        return levels

    def candidates(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q S 4"], Float[Tensor, "B Q K"]]:
        """Give boxes (of each class, or one for all) and scores, equally many in each image."""
        raise NotImplementedError

    def forward(self, features: Features) -> Candidates:
        """Give everything that may have been found; `decode` chooses from it."""
        levels = self.read_levels(features)
        boxes, scores = self.candidates(levels, features.sizes)
        return Candidates(levels, boxes, scores, self.decode)

    def decode(self, raw: Candidates) -> list[Instances]:
        """Choose what was found in each image, and add masks or keypoints."""
        found = [
            select_boxes(boxes, scores, self.select)
            for boxes, scores in zip(raw.boxes, raw.scores, strict=True)
        ]
        return self.with_masks(raw.levels, found)

    def decode_fixed(self, raw: Candidates) -> tuple[Tensor, ...]:
        """The same with equally many objects in each image, for graphs whose shapes are fixed.

        Returns:
            Boxes, scores, class numbers and, where there are any, masks. Filling has score 0.

        Raises:
            ConfigError: What is found has no fixed shape.
        """
        return self.with_fixed_masks(raw.levels, *select_fixed(raw.boxes, raw.scores, self.select))

    def with_masks(self, levels: list[Tensor], found: list[Instances]) -> list[Instances]:
        """Add masks, where the detector has them."""
        return found

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """The same for what `select_fixed` gave."""
        return boxes, scores, class_ids


class FixedDetector(nn.Module):
    """A detector as exported graphs need it: images and sizes in, tensors of fixed shapes out.

    Args:
        network: Gives the candidates.
        head: The head of this network.
    """

    def __init__(self, network: nn.Module, head: Detector) -> None:
        super().__init__()
        self.network, self._decode_fixed = network, head.decode_fixed

    def forward(
        self, images: Tensor, sizes: Int[Tensor, "B 2"] | None = None
    ) -> tuple[Tensor, ...]:
        """Give boxes, scores, class numbers and perhaps masks; see `Detector.decode_fixed`."""
        return self._decode_fixed(self.network(images, sizes))
