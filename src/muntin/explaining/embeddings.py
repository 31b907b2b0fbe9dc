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

MOST = 300
"""Images of a folder that are looked at."""

AT_ONCE = 16
THUMBNAIL = 96
"""Pixels of the longer side."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gallery:
    """The images of a folder.

    Attributes:
        paths: Their files.
        vectors: (N, C) What `muntin.features.Backbone.embed` gives for each, of length 1.
        class_ids: (N) Class of each; -1 where nobody says it.
        class_names: Their names.
        thumbnails: (h, w, 3) uint8 each.
        num_total: Images in the folder, of which `MOST` at most are looked at.
    """

    paths: tuple[str, ...]
    vectors: Float[np.ndarray, "N C"]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    thumbnails: tuple[NDArray[np.uint8], ...]
    num_total: int

    def __len__(self) -> int:
        """Images."""
        return len(self.paths)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class QueriedGallery(Gallery):
    """The other images of a folder, beside the one that is explained.

    Attributes:
        own: (C) The vector of the image that is explained.
    """

    own: Float[np.ndarray, " C"]

    @property
    def similarities(self) -> Float[np.ndarray, " N"]:
        """Cosine similarity of each image with the one that is explained."""
        return self.vectors @ self.own


def query_gallery(context: Context, library: Gallery) -> QueriedGallery:
    """Put the image that is explained beside the images of a folder.

    Args:
        context: The model that embedded the folder, and the image; where that lies in the folder,
            it is left out of it.
        library: What `embed_folder` gave.

    Raises:
        DataError: No image is left.
    """
    here = Path(context.path).resolve() if context.path else None
    kept = [place for place, path in enumerate(library.paths) if Path(path).resolve() != here]
    if not kept:
        message = "there must be an image in the folder beside the explained one, got none."
        raise DataError(message)
    return QueriedGallery(
        paths=tuple(library.paths[place] for place in kept),
        vectors=library.vectors[kept],
        own=_to_unit(_look(context, context.images))[0],
        class_ids=library.class_ids[kept],
        class_names=library.class_names,
        thumbnails=tuple(library.thumbnails[place] for place in kept),
        num_total=library.num_total - (len(library) - len(kept)),
    )


def embed_folder(context: Context, folder: Path | str, *, most: int = MOST) -> Gallery:
    """Read the images of a folder and embed them.

    Args:
        context: Its model, which must have a backbone.
        folder: Class folders, also as parts or packed, a CSV as `muntin train classify` takes it,
            or any folder of images.
        most: Images that are looked at; of more, every so many-th.

    Returns:
        The images in the order of their paths.

    Raises:
        DataError: There are no images.
    """
    rows, class_names = _list(folder)
    chosen = [rows[place] for place in _spread(len(rows), most)]
    pre = context.pre
    paths: list[str] = []
    ids: list[int] = []
    thumbnails: list[NDArray[np.uint8]] = []
    groups: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for source, path, class_id in chosen:
        try:
            pixels = decode(read_bytes(source, path), where=path)
        except DataError as error:
            warnings.warn(f"left out: {error}", MuntinWarning, stacklevel=2)
            continue
        image = to_tensor(pixels, pre.in_chans)
        fitted = fit(image, (pixels.shape[0], pixels.shape[1]), pre)
        groups.setdefault(tuple(fitted.shape), []).append((len(paths), fitted))
        thumbnails.append(_shrink(pixels))
        paths.append(str(Path(source) / path))
        ids.append(class_id)
    if not paths:
        message = f"there must be an image in {str(folder)!r} that can be read, got none."
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
    """(source, path in it, class) of every image, and the names of the classes."""
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


def _spread(count: int, most: int) -> list[int]:
    """Evenly spread places."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


def _embed(
    context: Context, groups: dict[Any, list[tuple[int, Tensor]]], count: int
) -> NDArray[np.float32]:
    vectors: dict[int, NDArray[np.float32]] = {}
    for group in groups.values():
        for start in range(0, len(group), AT_ONCE):
            part = group[start : start + AT_ONCE]
            stacked = stack_images([image for _, image in part], context.pre)
            sizes = torch.tensor([image.shape[1:] for _, image in part])
            found = _look(context, normalise(stacked, context.pre, sizes))
            unit = _to_unit(found)
            vectors.update({place: row for (place, _), row in zip(part, unit, strict=True)})
    return np.stack([vectors[place] for place in range(count)])


def _look(context: Context, images: Tensor) -> Tensor:
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
