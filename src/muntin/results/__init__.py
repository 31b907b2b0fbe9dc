# SPDX-License-Identifier: Apache-2.0
"""Results of prediction: numpy arrays and numbers, in pixels of the original image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.results.detections import Detections as Detections
    from muntin.results.labels import Labels as Labels
    from muntin.results.poses import Poses as Poses
    from muntin.results.rows import DEFAULT_SCORE_THRESHOLD as DEFAULT_SCORE_THRESHOLD
    from muntin.results.semantic_map import SemanticMap as SemanticMap

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "detections": "Detections",
        "labels": "Labels",
        "poses": "Poses",
        "rows": "DEFAULT_SCORE_THRESHOLD",
        "semantic_map": "SemanticMap",
    },
)
