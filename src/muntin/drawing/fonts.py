# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One font for every picture: the one that matplotlib brings, which knows most alphabets."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
from PIL import ImageFont

__all__ = ["load_font"]


@cache
def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Give DejaVu Sans, `size` pixels high."""
    place = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(place), size)
