# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From pictures as people have them to results in pixels of the original."""

from __future__ import annotations

from muntin.prediction.finding import find_images
from muntin.prediction.opening import load
from muntin.prediction.predictor import Picture, Predictor, draw

__all__ = ["Picture", "Predictor", "draw", "find_images", "load"]
