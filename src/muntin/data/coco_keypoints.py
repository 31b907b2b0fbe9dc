# SPDX-License-Identifier: Apache-2.0
"""Keypoints of COCO's categories: their names, and the lines of their skeleton."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from muntin.data.objects import AnnotationReport
from muntin.errors import DataError, shorten


class Points(NamedTuple):
    """The keypoints of a category, its edges counted from 0, and entries that are no edges."""

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    odd: tuple[str, ...] = ()
    first: int = 1  # what the file counts from


def points_of(category: Mapping[str, Any]) -> Points:
    """Give the keypoints of a category and the lines between them, which COCO counts from 1.

    Lines with a keypoint 0 and none beyond the last but one are counted from 0, as some tools do.

    Examples:
        >>> points_of({"keypoints": ["nose", "tail"], "skeleton": [[1, 2], [2, 7], [1, 1]]})
        Points(names=('nose', 'tail'), edges=((0, 1),), odd=('[2, 7]', '[1, 1]'), first=1)
    """
    names = tuple(map(str, category["keypoints"]))
    rows = category.get("skeleton") or []
    rows = rows if isinstance(rows, list) else [rows]
    listed = [number for row in rows if isinstance(row, list) for number in row]
    first = 0 if 0 in listed and len(names) not in listed else 1
    last = first + len(names) - 1
    return Points(
        names=names,
        edges=tuple((row[0] - first, row[1] - first) for row in rows if _is_edge(row, first, last)),
        odd=tuple(f"{row}" for row in rows if not _is_edge(row, first, last)),
        first=first,
    )


def _is_edge(row: object, first: int, last: int) -> bool:
    if not isinstance(row, list) or len(row) != 2 or row[0] == row[1]:
        return False
    return all(type(number) is int and first <= number <= last for number in row)


def common_points(
    every: Mapping[str, Mapping[str, Points]], source: str, findings: AnnotationReport
) -> Points:
    """Give the keypoints that all classes have which have some: file to class to keypoints."""
    for path, classes in every.items():
        for name, points in classes.items():
            twice = [one for one, count in Counter(points.names).items() if count > 1]
            if twice:
                message = (
                    f"The keypoints of a category must have names of their own, got "
                    f"{shorten(twice)} twice in category {name!r} of {path!r} in {source!r}. "
                    f"Rename one."
                )
                raise DataError(message)
            if points.odd:
                what = (
                    f"in the skeleton of category {name!r} left out: {shorten(points.odd)}; a line "
                    f"joins two of the keypoints, counted from 1 to {len(points.names)}"
                )
                findings.warn(path, what)
                findings.notes.append(f"lines left out of the skeleton: {shorten(points.odd)}")
            if not points.first:
                findings.notes.append(f"the skeleton of category {name!r} counts from 0")
    found = {name: points for classes in every.values() for name, points in classes.items()}
    if len({points.names for points in found.values()}) == 1:
        return next(iter(found.values()))
    got = "; ".join(f"{name}: {shorten(points.names)}" for name, points in found.items()) or "none"
    message = (
        f"The categories must have the same keypoints, by name in their list keypoints, got {got} "
        f"({next(iter(every))!r} in {source!r}). Correct the file, or give one that has keypoints."
    )
    raise DataError(message)
