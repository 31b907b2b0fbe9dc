# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Config of box selection: which candidates become detections."""

from __future__ import annotations

from dataclasses import dataclass

from muntin.configs import check_range
from muntin.ops.boxes import Suppression

__all__ = ["SelectConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig:
    """Selection of boxes among the candidates.

    Attributes:
        score_threshold: Minimum score.
        iou: Overlap from which two boxes of a class are duplicates.
        suppression: "hard" drops the worse of the two; "soft" lowers its score by the overlap
            (linear Soft-NMS, Bodla et al. 2017, who used it with an `iou` of 0.3); "none" keeps
            both, for heads trained to predict each object once (Carion et al. 2020, DETR).
        class_agnostic: Whether boxes of different classes suppress each other.
        max_detections: Maximum boxes per image.
    """

    score_threshold: float = 0.05
    iou: float = 0.5
    suppression: Suppression = "hard"
    class_agnostic: bool = False
    max_detections: int = 100

    def __post_init__(self) -> None:
        """Validate the ranges."""
        check_range("select.score_threshold", self.score_threshold, 0, 1)
        check_range("select.iou", self.iou, 0, 1)
        check_range("select.max_detections", self.max_detections, 1, 100_000)
