# SPDX-License-Identifier: Apache-2.0
"""Search in features of images: the most similar ones, and near-duplicates, by cosine.

Letters: N images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.configs import check_range
from muntin.errors import ConfigError, DataError
from muntin.prediction.batch import ImageLike
from muntin.prediction.embedding import backbone_of, embed_images, weights_digest
from muntin.prediction.feature_files import ROWS, FeatureTable, read_features
from muntin.prediction.from_run import load
from muntin.prediction.predictor import Predictor
from muntin.published import open_run
from muntin.runs import Run

NEAR_DUPLICATE = 0.98
"""Default cosine from which two images count as near-duplicates."""


class Match(NamedTuple):
    """An image that was found: its path, and its cosine with the query, in [-1, 1]."""

    path: str
    similarity: float


def cosines(
    rows: NDArray[np.float32], query: NDArray[np.float32], start: int = 0
) -> NDArray[np.float32]:
    """Cosine of each row from `start` on with a query, (N - start,), in bounded memory.

    A vector of zeros is similar to none: its cosines are 0.
    """
    unit = normalised(query[None])[0]
    return np.concatenate([part @ unit for _, part in _parts(rows, start)] or [np.zeros(0, "f4")])


def _parts(rows: NDArray[np.float32], start: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First number and rows of length 1 of each part of a table."""
    for first in range(start, len(rows), ROWS):
        yield first, normalised(np.asarray(rows[first : first + ROWS], np.float32))


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(lengths, np.finfo(np.float32).tiny)


def nearest(similarities: NDArray[np.float32], count: int) -> list[int]:
    """Numbers of the largest values, largest first; of equal ones the first."""
    return np.argsort(-similarities, kind="stable")[:count].tolist()


def search(
    features: FeatureTable | Path | str,
    image: ImageLike,
    *,
    top: int = 10,
    model: Run | Predictor | Path | str = "",
    device: str = "auto",
) -> list[Match]:
    """Find the images of a table that are most similar to one, by the cosine of their vectors.

    Args:
        features: Vectors of images, as `muntin.embed` returns them, or their file.
        image: A path or an image. One of the table is not computed again, and not found itself.
        top: Largest number of images.
        model: Where the model of the features is now; empty = where it was.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        DataError: The file or the image cannot be read, or there are no vectors in it.
        ConfigError: The model has other weights than that of the features.
        RunError: The model is not there any more.
    """
    check_range("top", top, 1, 10**9)
    table = _open(features)
    own = _find_own(table, image)
    if own >= 0:
        query = np.asarray(table.rows[own])
    else:
        ((_, rows),) = embed_images(_load_model(table, model, device), [image])
        query = rows[0]
    found = cosines(table.rows, query)
    places = [place for place in nearest(found, top + 1) if place != own][:top]
    return [Match(table.names[place], float(found[place])) for place in places]


def find_duplicates(
    features: FeatureTable | Path | str, threshold: float = NEAR_DUPLICATE
) -> list[list[Match]]:
    """Group near-duplicates: an image, and later ones whose cosine with it reaches a threshold.

    An image is in one group at most: that of the first image that it is similar to. The first of a
    group has similarity 1.

    Raises:
        DataError: The file cannot be read, or there are no vectors in it.
        ConfigError: The threshold is out of range.
    """
    check_range("threshold", threshold, 0, 1)
    table = _open(features)
    taken = np.zeros(len(table), bool)
    groups: dict[int, list[Match]] = {}
    for start, chunk in _parts(table.rows):
        for first, others in _parts(table.rows, start):
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


def _open(features: FeatureTable | Path | str) -> FeatureTable:
    table = features if isinstance(features, FeatureTable) else read_features(features)
    if table.rows.ndim != 2:
        message = (
            f"a search needs a vector an image, got {table.record.get('pool')} of shape "
            f"{table.rows.shape[1:]}. Embed the images with pool vector."
        )
        raise DataError(message)
    return table


def _find_own(table: FeatureTable, image: ImageLike) -> int:
    """Number of the image in the table; -1 if it is not there."""
    if not isinstance(image, (str, Path)):
        return -1
    path = Path(image)
    alike = (place for place, name in enumerate(table.names) if Path(name).name == path.name)
    real = os.path.realpath(path)
    return next((place for place in alike if os.path.realpath(table.names[place]) == real), -1)


def _load_model(table: FeatureTable, model: Run | Predictor | Path | str, device: str) -> Predictor:
    source = model or str(table.record.get("source", ""))
    if not source:
        message = (
            "the features do not say which model made them, got no model either. Pass it: --model."
        )
        raise ConfigError(message)
    predictor = (
        source
        if isinstance(source, Predictor)
        else load(open_run(source, backbone_only=True), device=device)
    )
    if weights_digest(backbone_of(predictor)) != table.record.get("weights"):
        message = (
            f"the model must have the weights that made the features (SHA-256 "
            f"{str(table.record.get('weights'))[:12]}), got {source} with others. Pass the right "
            f"one with --model, or embed the images again."
        )
        raise ConfigError(message)
    return predictor
