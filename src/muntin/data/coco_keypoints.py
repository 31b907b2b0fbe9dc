# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The keypoints that categories of a COCO JSON have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muntin.errors import DataError, shorten

__all__ = ["Points", "common_points", "links_of"]

Points = tuple[tuple[str, ...], tuple[tuple[int, int], ...]]
"""Names of keypoints, and pairs of them that are joined, counted from 0."""


def links_of(category: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """Give the lines between the keypoints of a category, which COCO counts from 1.

    Example:
        >>> links_of({"keypoints": ["nose", "tail"], "skeleton": [[1, 2], [2, 7]]})
        ((0, 1),)
    """
    links = category.get("skeleton")
    pairs = [pair for pair in links if isinstance(pair, list)] if isinstance(links, list) else []
    found = [tuple(number - 1 for number in pair if type(number) is int) for pair in pairs]
    most = len(category["keypoints"])
    return tuple((p[0], p[1]) for p in found if len(p) == 2 and all(0 <= n < most for n in p))


def common_points(every: Mapping[str, Points], path: str, source: str) -> Points:
    """Give the keypoints that all classes have which have some.

    Args:
        every: Class to its keypoints.
        path: A file that says it, for messages.
        source: Where it is.

    Raises:
        DataError: There are none, or classes have different ones.
    """
    kinds = {points[0] for points in every.values()}
    if len(kinds) == 1:
        return next(iter(every.values()))
    got = "; ".join(f"{name}: {shorten(points[0])}" for name, points in every.items()) or "none"
    message = (
        f"The categories must have the same keypoints, by name in their list keypoints, got {got} "
        f"({path!r} in {source!r}). Correct the file, or give one that has keypoints."
    )
    raise DataError(message)
