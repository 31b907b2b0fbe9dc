# SPDX-License-Identifier: Apache-2.0
"""What the backbone of a run computes of images: a vector each, or tokens, or maps.

Letters: N images.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.configs import to_dict
from muntin.data.transforms import normalise
from muntin.errors import ConfigError, DataError, MuntinWarning
from muntin.features import Backbone, Features
from muntin.prediction.batch import ImageLike, Part
from muntin.prediction.predictor import Predictor
from muntin.weights.weight_files import weights_digest

Pool = Literal["vector", "tokens", "maps"]
"""What is kept of an image: the pooled vector (channels), the tokens after the last block (tokens,
channels; of a ViT, T2T-ViT or Hiera), or the last map (channels, height, width)."""


def backbone_of(predictor: Predictor) -> Backbone:
    """The backbone of a predictor; one of an exported file, which has none, is a `ConfigError`."""
    body = getattr(predictor.network, "backbone", None)
    if isinstance(body, Backbone):
        return body
    message = (
        "features need a network with a backbone, got an exported file, which gives answers only. "
        "Pass its run folder."
    )
    raise ConfigError(message)


def embed_images(
    predictor: Predictor, images: Iterable[ImageLike], *, pool: Pool = "vector", strict: bool = True
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Compute features of images, in order, prepared as in prediction, in the memory of a batch.

    Of a run of poses each whole image is one instance. Unless `strict`, an image that cannot be
    read is left out, with a warning that names it.

    Yields:
        Places of images, counted from 0, and their features, a row an image.

    Raises:
        DataError: An image cannot be read.
        ConfigError: The backbone has no tokens, or there is none.
    """
    body = backbone_of(predictor)
    if predictor.detector is not None:  # it would find other instances than the whole image
        parts = (predictor.network, predictor.task, predictor.classes, predictor.preprocessing)
        predictor = Predictor(*parts, device=predictor.device, batch_size=predictor.batch_size)
    waiting: list[tuple[int, Part]] = []
    for place, image in enumerate(images):
        try:
            waiting.append((place, predictor.prepare([image]).parts[0]))
        except DataError as error:
            if strict:
                raise
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
        if len(waiting) == predictor.batch_size:
            yield from _run(predictor, body, waiting, pool)
            waiting = []
    yield from _run(predictor, body, waiting, pool)


def _run(
    predictor: Predictor, body: Backbone, waiting: Sequence[tuple[int, Part]], pool: Pool
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    """Run the backbone on images; those of one size in a row are one batch."""
    for _, group in itertools.groupby(waiting, key=lambda row: row[1].images.shape):
        rows = [*group]
        pixels = torch.cat([part.images for _, part in rows]).to(predictor.device)
        sizes = torch.tensor([part.metas[0].input_size for _, part in rows], device=pixels.device)
        with torch.inference_mode():
            found = _pick(body.features(normalise(pixels, predictor.preprocessing, sizes)), pool)
        yield [place for place, _ in rows], found.float().cpu().numpy()


def _pick(features: Features, pool: Pool) -> Tensor:
    if pool == "vector":
        return features.vector
    return features.tokens if pool == "tokens" else features.maps[-1]


def describe_features(predictor: Predictor, pool: Pool, source: str = "") -> dict[str, Any]:
    """What features depend on, for their file: features of equal weights and settings are equal.

    `source` is a path or a name, empty if it is not known.
    """
    body = backbone_of(predictor)
    return {
        "source": os.path.abspath(source) if source and Path(source).exists() else source,
        "backbone": type(getattr(body, "config", None)).__name__,
        "weights": weights_digest(body),
        "pool": pool,
        "preprocessing": to_dict(predictor.preprocessing),
    }
