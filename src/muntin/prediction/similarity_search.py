# SPDX-License-Identifier: Apache-2.0
"""Search in features of images: the most similar ones, and near-duplicates, by cosine.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.configs import check_range
from muntin.errors import DataError
from muntin.prediction.feature_files import ROWS, FeatureTable, read_features

NEAR_DUPLICATE = 0.98
"""Default cosine from which two images count as near-duplicates."""


class Match(NamedTuple):
    """An image that was found: its path, and its cosine with the query, in [-1, 1]."""

    path: str
    similarity: float


def cosines(
    rows: NDArray[np.float32], query: NDArray[np.float32], *, at_once: int = ROWS
) -> NDArray[np.float32]:
    """Cosine of each row with a query, (N,), in the memory of so many rows `at_once`.

    A vector of zeros is similar to none: its cosines are 0.
    """
    unit = normalised(query[None])[0]
    return np.concatenate([part @ unit for _, part in _parts(rows, at_once)] or [np.zeros(0, "f4")])


def _parts(
    rows: NDArray[np.float32], at_once: int, start: int = 0
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First number and rows of length 1 of each part of a table."""
    for first in range(start, len(rows), at_once):
        yield first, normalised(np.asarray(rows[first : first + at_once], np.float32))


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float32).tiny)


def nearest(similarities: NDArray[np.float32], count: int) -> list[int]:
    """Numbers of the largest values, largest first; of equal ones the first."""
    return np.argsort(-similarities, kind="stable")[:count].tolist()


def find_duplicates(
    features: FeatureTable | Path | str,
    threshold: float = NEAR_DUPLICATE,
    *,
    at_once: int = ROWS,
) -> list[list[Match]]:
    """Group near-duplicates: an image, and later ones whose cosine with it reaches a threshold.

    An image is in one group at most: that of the first image that it is similar to. The first of a
    group has similarity 1.

    Raises:
        DataError: The file cannot be read, or there are no vectors in it.
        ConfigError: The threshold is out of range.
    """
    check_range("threshold", threshold, 0, 1)
    table = open_vectors(features)
    taken = np.zeros(len(table), bool)
    groups: dict[int, list[Match]] = {}
    for start, chunk in _parts(table.rows, at_once):
        for first, others in _parts(table.rows, at_once, start):
            similar = chunk @ others.T
            # Rounding takes a little from the 1 of equal images.
            hits = similar >= threshold - 1e-6
            if first == start:
                hits = np.triu(hits, 1)
            for row in np.flatnonzero(hits.any(axis=1)).tolist():
                leader = start + row
                if taken[leader]:
                    continue
                columns = np.flatnonzero(hits[row] & ~taken[first : first + len(others)])
                taken[first + columns] = True
                found = [Match(table.names[first + i], float(similar[row, i])) for i in columns]
                if found:
                    groups.setdefault(leader, [Match(table.names[leader], 1.0)]).extend(found)
    return [groups[leader] for leader in sorted(groups)]


def open_vectors(features: FeatureTable | Path | str) -> FeatureTable:
    """Read a table of vectors, which one of tokens or maps is not (`DataError`)."""
    table = features if isinstance(features, FeatureTable) else read_features(features)
    if table.rows.ndim != 2:
        message = (
            f"a search needs a vector an image, got {table.record.get('pool')} of shape "
            f"{table.rows.shape[1:]}. Embed the images with pool vector."
        )
        raise DataError(message)
    return table
