# SPDX-License-Identifier: Apache-2.0
"""Base class of detectors: candidates from features, then selection of instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from muntin.features import Features
from muntin.heads.head import Head
from muntin.heads.instances import (
    Candidates,
    Instances,
    SelectConfig,
    select_boxes,
    select_fixed,
)
from muntin.shapes import Float, Int


class Detector(Head):
    """A head that detects objects.

    Subclasses implement `select`, `candidates` and `losses`, or `forward` if candidates do not come
    from feature maps; and `with_masks` if they predict more than boxes.
    """

    score_name: ClassVar[str] = "score"
    """What `score_of` gives, for readers of explanations."""

    neck: nn.Module | None
    """Builds the pyramid from the maps of the backbone; None reads the maps as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = None

    @property
    def select(self) -> SelectConfig:
        """Which candidates are returned (score threshold, NMS, limit)."""
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
        """Compute the candidates; `decode` selects instances from them."""
        # Selection is deferred: losses and exported graphs need the candidates, not the instances.
        levels = self.read_levels(features)
        boxes, scores = self.candidates(levels, features.sizes)
        return Candidates(levels, boxes, scores, self.decode)

    def decode(self, raw: Candidates) -> list[Instances]:
        """Select the instances of each image, and add masks or keypoints."""
        found = [
            select_boxes(boxes, scores, self.select)
            for boxes, scores in zip(raw.boxes, raw.scores, strict=True)
        ]
        return self.with_masks(raw.levels, found)

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Give a function that scores a detection of `decode` in other images, differentiably.

        Here it is the score of the candidate of the same row, which is right where rows keep their
        meaning: queries, or all cells. Heads that choose rows by score hold the place instead.
        """
        raw = self(features)
        row = find_candidate(raw.boxes[0], raw.scores[0], box, class_id)
        return lambda others: self(others).scores[:, row, class_id]

    def decode_fixed(self, raw: Candidates) -> tuple[Tensor, ...]:
        """Like `decode`, with a fixed number of instances per image, for exported graphs.

        Gives boxes, scores, class numbers and, where there are any, masks. Padding has score 0.
        """
        return self.with_fixed_masks(raw.levels, *select_fixed(raw.boxes, raw.scores, self.select))

    def with_masks(self, levels: list[Tensor], found: list[Instances]) -> list[Instances]:
        """Add masks or keypoints; for subclasses."""
        return found

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Like `with_masks`, for the output of `select_fixed`."""
        return boxes, scores, class_ids


def find_candidate(
    boxes: Float[Tensor, "Q S 4"],
    scores: Float[Tensor, "Q K"],
    box: Float[Tensor, "4"],
    class_id: int,
) -> int:
    """Find the row of the candidate that a detection came from: the best score at its place."""
    slot = class_id if boxes.shape[1] > 1 else 0
    away = (boxes[:, slot] - box).abs().amax(dim=1)
    # Candidates may share a box, clipped at the same edges; then the best one was selected.
    near = away <= away.min() + 1e-3
    return int(torch.where(near, scores[:, class_id], -1.0).argmax())


class FixedDetector(nn.Module):
    """A detector for export: images and sizes in, tensors of fixed shapes out."""

    def __init__(self, network: nn.Module, head: Detector) -> None:
        super().__init__()
        self.network, self.decode_fixed = network, head.decode_fixed

    def forward(
        self, images: Tensor, sizes: Int[Tensor, "B 2"] | None = None
    ) -> tuple[Tensor, ...]:
        """Give boxes, scores, class numbers and perhaps masks; see `Detector.decode_fixed`."""
        return self.decode_fixed(self.network(images, sizes))
