# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What every detector does: a pyramid, then losses in training, or the boxes that are told."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muntin.features import Backbone
from muntin.heads.conventions import SelectConfig
from muntin.heads.found import Found, select_boxes, select_fixed
from muntin.heads.necks import FeaturePyramid, SimplePyramid
from muntin.shapes import Float, Int
from muntin.targets import BoxTargets

__all__ = ["Detector"]


class Detector(nn.Module):
    """A head that finds things. Those who build on it have a `neck` and a `config`."""

    neck: FeaturePyramid | SimplePyramid

    @property
    def select(self) -> SelectConfig:
        """Which boxes are told."""
        raise NotImplementedError

    def candidates(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q S 4"], Float[Tensor, "B Q K"]]:
        """Give boxes (of each class, or one for all) and scores, equally many in each picture."""
        raise NotImplementedError

    def losses(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"], targets: list[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Give the losses of each picture, by name."""
        raise NotImplementedError

    def forward(
        self,
        backbone: Backbone,
        images: Float[Tensor, "B in_chans H W"],
        sizes: Int[Tensor, "B 2"] | None = None,
        targets: list[BoxTargets] | None = None,
    ) -> list[Found] | dict[str, Float[Tensor, " B"]] | tuple[Tensor, ...]:
        """Detect, or learn.

        Args:
            backbone: Gives the maps.
            images: Padded at the right and at the bottom to one size.
            sizes: (height, width) of the picture inside each; all of it when left out.
            targets: What there is to learn.

        Returns:
            With targets the losses of each picture, by name; else what is found. In an exported
            graph boxes, scores, class numbers and, where there are any, masks, equally many in
            each picture, where filling has score 0.
        """
        if sizes is None:
            sizes = torch.tensor([images.shape[-2:]] * len(images), device=images.device)
        levels = self.neck(backbone(images))
        if targets is not None:
            return self.losses(levels, sizes, targets)
        boxes, scores = self.candidates(levels, sizes)
        if torch.compiler.is_exporting():
            return self.with_fixed_masks(levels, *select_fixed(boxes, scores, self.select))
        found = [select_boxes(b, s, self.select) for b, s in zip(boxes, scores, strict=True)]
        return self.with_masks(levels, found)

    def with_masks(self, levels: list[Tensor], found: list[Found]) -> list[Found]:
        """Add masks, where the detector has them."""
        return found

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """The same for what `select_fixed` gave."""
        return boxes, scores, class_ids
