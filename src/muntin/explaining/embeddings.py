# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The images of a folder and their embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from muntin.data.archives import read_bytes
from muntin.data.batches import stack_images
from muntin.data.decoding import decode
from muntin.data.image_fitting import fit
from muntin.data.listing import list_classify
from muntin.data.transforms import normalise, to_tensor
from muntin.errors import DataError, MuntinWarning
from muntin.explaining.context import Context
from muntin.prediction.sources import find_images
from muntin.samples import Entry, Listing
from muntin.shapes import Float

__all__ = ["Gallery", "QueriedGallery", "embed_folder", "query_gallery"]

MAX_IMAGES = 300
"""Maximum number of images of a folder that are embedded."""

BATCH_SIZE = 16
THUMBNAIL = 96
"""Pixels of the longer side."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gallery:
    """Embeddings and thumbnails of the images of a folder.

    Attributes:
        paths: Paths of the images.
        vectors: (N, C) `muntin.features.Backbone.embed` of each image, normalised to length 1.
        class_ids: (N) Class of each image; -1 if unknown.
        class_names: Names of the classes.
        thumbnails: One (h, w, 3) uint8 array per image.
        num_total: Number of images in the folder; at most `MAX_IMAGES` of them are embedded.
    """

    paths: tuple[str, ...]
    vectors: Float[np.ndarray, "N C"]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    thumbnails: tuple[NDArray[np.uint8], ...]
    num_total: int

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueriedGallery(Gallery):
    """A gallery without the explained image, which is its query.

    Attributes:
        query: (C) Embedding of the explained image.
    """

    query: Float[np.ndarray, " C"]

    @property
    def similarities(self) -> Float[np.ndarray, " N"]:
        """Cosine similarity of each image with the query."""
        return self.vectors @ self.query


def query_gallery(context: Context, gallery: Gallery) -> QueriedGallery:
    """Embed the explained image as the query of a gallery.

    Args:
        context: The model that embedded the folder, and the explained image, which is removed
            from the gallery if it is part of the folder.
        gallery: The result of `embed_folder`.

    Raises:
        DataError: The gallery has no other image.
    """
    own_path = Path(context.path).resolve() if context.path else None
    kept = [i for i, path in enumerate(gallery.paths) if Path(path).resolve() != own_path]
    if not kept:
        message = "folder must contain an image other than the explained one, got none."
        raise DataError(message)
    return QueriedGallery(
        paths=tuple(gallery.paths[i] for i in kept),
        vectors=gallery.vectors[kept],
        query=_to_unit(_embed_batch(context, context.images))[0],
        class_ids=gallery.class_ids[kept],
        class_names=gallery.class_names,
        thumbnails=tuple(gallery.thumbnails[i] for i in kept),
        num_total=gallery.num_total - (len(gallery) - len(kept)),
    )


def embed_folder(context: Context, folder: Path | str, *, limit: int = MAX_IMAGES) -> Gallery:
    """Embed the images of a folder.

    Args:
        context: Provides the model, which must have a backbone.
        folder: Any dataset that `muntin train classify` reads (class folders, with or without
            splits, an archive, a CSV file), or any folder of images.
        limit: Maximum number of images; from larger folders, evenly spaced ones are taken.

    Returns:
        The images, sorted by path.

    Raises:
        DataError: The folder contains no readable image.
    """
    rows, class_names = _list(folder)
    chosen = [rows[place] for place in _spread(len(rows), limit)]
    pre = context.pre
    paths: list[str] = []
    ids: list[int] = []
    thumbnails: list[NDArray[np.uint8]] = []
    # Without a fixed size, images of equal shape are batched together.
    groups: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for source, path, class_id in chosen:
        try:
            pixels = decode(read_bytes(source, path), where=path)
        except DataError as error:
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=2)
            continue
        image = to_tensor(pixels, pre.in_chans)
        fitted = fit(image, (pixels.shape[0], pixels.shape[1]), pre)
        groups.setdefault(tuple(fitted.shape), []).append((len(paths), fitted))
        thumbnails.append(_shrink(pixels))
        paths.append(str(Path(source) / path))
        ids.append(class_id)
    if not paths:
        message = f"folder must contain a readable image, got none in {str(folder)!r}."
        raise DataError(message)
    return Gallery(
        paths=tuple(paths),
        vectors=_embed(context, groups, len(paths)),
        class_ids=np.array(ids, np.int64),
        class_names=class_names,
        thumbnails=tuple(thumbnails),
        num_total=len(rows),
    )


def _list(folder: Path | str) -> tuple[list[tuple[str, str, int]], tuple[str, ...]]:
    """(source, path in it, class) of every image, and the class names."""
    try:
        sets = list_classify(folder)
    except DataError:
        found = [(str(path.parent), path.name, -1) for path in find_images([folder])]
        return found, ()
    listings: Sequence[Listing] = list(sets.parts.values())
    names = listings[0].class_names
    rows = [(one.source, entry.path, _class_of(entry)) for one in listings for entry in one.entries]
    return sorted(rows), names


def _class_of(entry: Entry) -> int:
    return entry.class_ids[0] if entry.class_ids else -1


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` evenly spaced indices."""
    return sorted(set(np.linspace(0, count - 1, min(count, limit)).round().astype(int).tolist()))


def _embed(
    context: Context, groups: dict[Any, list[tuple[int, Tensor]]], count: int
) -> NDArray[np.float32]:
    vectors: dict[int, NDArray[np.float32]] = {}
    for group in groups.values():
        for start in range(0, len(group), BATCH_SIZE):
            part = group[start : start + BATCH_SIZE]
            stacked = stack_images([image for _, image in part], context.pre)
            sizes = torch.tensor([image.shape[1:] for _, image in part])
            found = _embed_batch(context, normalise(stacked, context.pre, sizes))
            unit = _to_unit(found)
            vectors.update({place: row for (place, _), row in zip(part, unit, strict=True)})
    return np.stack([vectors[place] for place in range(count)])


def _embed_batch(context: Context, images: Tensor) -> Tensor:
    backbone: Any = context.backbone
    with torch.inference_mode():
        vectors: Tensor = backbone.embed(images.to(context.images.device))
    return vectors


def _to_unit(vectors: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()
    return unit


def _shrink(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return np.asarray(image)
