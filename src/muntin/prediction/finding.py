# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which pictures people mean."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from muntin.data.trees import IMAGE_SUFFIXES
from muntin.errors import DataError

__all__ = ["find_images"]


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """List the pictures behind paths, folders and patterns.

    Args:
        places: Files, folders (searched through and through) and shell patterns.

    Returns:
        Files; those of a folder or a pattern in order of their names.

    Raises:
        DataError: Nothing is there.
    """
    found: list[Path] = []
    for text in places:
        place = Path(text)
        if not str(text).strip():
            message = f"there must be a path to pictures, got {str(text)!r}. Check the command."
            raise DataError(message)
        if place.is_dir():
            here = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        elif place.exists():
            here = [place]
        else:
            base = Path(place.anchor) if place.is_absolute() else Path()
            pattern = str(place.relative_to(base)) if place.is_absolute() else str(place)
            magic = any(sign in pattern for sign in "*?[")
            here = sorted(p for p in base.glob(pattern) if p.is_file()) if magic else []
        if not here:
            what = f"none of {', '.join(IMAGE_SUFFIXES)}" if place.is_dir() else "nothing"
            message = f"there must be a picture at {str(place)!r}, got {what}. Check the path."
            raise DataError(message)
        found += here
    return found
