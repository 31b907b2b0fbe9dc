# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From images as users have them to results in pixels of the original."""

from __future__ import annotations

from typing import TYPE_CHECKING

from muntin.lazy import resolve_lazily

if TYPE_CHECKING:
    from muntin.prediction.batch import PreparedBatch, RawBatch
    from muntin.prediction.from_run import load
    from muntin.prediction.predictor import Predictor, draw
    from muntin.prediction.sources import ImageLike, find_images

__all__ = [
    "ImageLike",
    "Predictor",
    "PreparedBatch",
    "RawBatch",
    "draw",
    "find_images",
    "load",
]

__getattr__, __dir__ = resolve_lazily(
    __name__,
    {
        "batch": "PreparedBatch RawBatch",
        "from_run": "load",
        "predictor": "Predictor draw",
        "sources": "ImageLike find_images",
    },
)
