# SPDX-License-Identifier: Apache-2.0
"""Vectors of images on disk, by the weights that made them and the pixels they are of."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muntin.errors import DataError, RunError
from muntin.prediction.embedding import describe_features, embed_images
from muntin.prediction.predictor import Predictor
from muntin.staging import cache_home, write_file
from muntin.untrusted import read_regular, reading

MAX_ROWS = 4096
"""Of a model; the oldest are forgotten."""

MAX_FILES = 32
"""Models with stored vectors; those that were used longest ago are forgotten."""


def cache_folder() -> Path:
    """Folder of stored vectors; it may be deleted at any time."""
    return cache_home() / "embeddings"


class EmbeddingCache:
    """Computes vectors of images once for a predictor, and keeps them on disk.

    At most `max_rows` of a model are kept, and those of `max_files` models.
    """

    def __init__(
        self, predictor: Predictor, *, max_rows: int = MAX_ROWS, max_files: int = MAX_FILES
    ) -> None:
        self.predictor, self.max_rows, self.max_files = predictor, max_rows, max_files
        facts = describe_features(predictor, "vector")
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
        self.path = cache_folder() / f"{key}.npz"
        self._rows: dict[str, NDArray[np.float32]] = {}
        with suppress(OSError, DataError), reading(str(self.path), "Delete it.", DataError):
            stored = np.load(io.BytesIO(read_regular(self.path)), allow_pickle=False)
            rows = np.asarray(stored["rows"], np.float32)
            self._rows = dict(zip(map(str, stored["keys"]), rows, strict=True))
        self._stored = len(self._rows)

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Give the vectors of (H, W, 3) images, (N, channels); unknown ones are computed."""
        keys = [_key(pixels) for pixels in images]
        new = [place for place, key in enumerate(keys) if key not in self._rows]
        for places, rows in embed_images(self.predictor, (images[place] for place in new)):
            self._rows |= zip((keys[new[place]] for place in places), rows, strict=True)
        return np.stack([self._rows[key] for key in keys])

    def save(self) -> None:
        """Write what was computed, and forget what is too much; a full disk is no error."""
        if len(self._rows) == self._stored:
            with suppress(OSError):
                os.utime(self.path)  # as used just now
            return
        kept = dict(list(self._rows.items())[-self.max_rows :])
        file = io.BytesIO()
        np.savez(file, keys=np.array([*kept]), rows=np.stack([*kept.values()]))
        with suppress(OSError, RunError):
            write_file(file.getvalue(), self.path)
            files = sorted(self.path.parent.glob("*.npz"), key=lambda path: path.stat().st_mtime)
            for path in files[: -self.max_files]:
                path.unlink()


def _key(pixels: NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(str(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
