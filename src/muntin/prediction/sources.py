# SPDX-License-Identifier: Apache-2.0
"""Inputs of prediction: paths, folders, patterns, arrays or PIL images, and their boxes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from muntin.data.decoding import open_image
from muntin.data.trees import IMAGE_SUFFIXES
from muntin.errors import DataError, MuntinWarning
from muntin.shapes import Size

ImageLike = str | Path | Image.Image | NDArray[np.uint8]
"""A path, a PIL image, or an (H, W, 3) uint8 RGB array."""


class LoadedImage(NamedTuple):
    """A decoded image, (H, W, 3) uint8 RGB; the path is empty for arrays and PIL images.

    `boxes` are (N, 4) left, top, right and bottom edges in pixels of given instances.
    """

    path: str
    pixels: NDArray[np.uint8]
    boxes: NDArray[np.float64] | None = None

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def find_images(places: Iterable[str | Path]) -> list[Path]:
    """List the image files behind paths, folders (searched recursively) and shell patterns.

    Files of a folder or a pattern are sorted by name; a place without images is a DataError.
    """
    found: list[Path] = []
    for text in places:
        place = Path(text)
        if not str(text).strip():
            message = f"a path to images must not be empty, got {str(text)!r}. Check the command."
            raise DataError(message)
        if place.is_dir():
            here = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        else:
            here = [place] if place.exists() else _match(place)
        if not here:
            what = f"none of {', '.join(IMAGE_SUFFIXES)}" if place.is_dir() else "nothing"
            message = f"no image found at {str(place)!r}: got {what}. Check the path."
            raise DataError(message)
        found += here
    return found


def _match(place: Path) -> list[Path]:
    """Files that a shell pattern matches; none for a path without one."""
    base = Path(place.anchor) if place.is_absolute() else Path()
    pattern = str(place.relative_to(base))
    if not any(sign in pattern for sign in "*?["):
        return []
    found = sorted(path for path in base.glob(pattern) if path.is_file())
    if not found:
        message = f"the pattern {str(place)!r} must match images, got no match. Check the pattern."
        raise DataError(message)
    return found


def read_images(
    images: ImageLike | Iterable[ImageLike],
    boxes: Iterable[Any] | None = None,
    *,
    strict: bool = True,
) -> Iterator[LoadedImage]:
    """Read images one at a time, in order; lazily.

    `boxes` are the instances in each image (of a single image: its boxes). Unless `strict`, an
    image that cannot be read is left out, with a warning that names it.
    """
    single = isinstance(images, (str, Path, Image.Image, np.ndarray))
    if not single and not isinstance(images, Iterable):
        message = (
            f"images must be a path, a PIL image, a uint8 array or a list of them, got "
            f"{type(images).__name__}."
        )
        raise DataError(message)
    many = cast("Iterable[ImageLike]", [images] if single else images)
    given = None if boxes is None else iter([boxes] if single else boxes)
    return _read(many, given, strict)


def _read(
    images: Iterable[ImageLike], given: Iterator[Any] | None, strict: bool
) -> Iterator[LoadedImage]:
    for image in images:
        path = str(image) if isinstance(image, (str, Path)) else ""
        boxes = None if given is None else next(given, None)
        if given is not None and boxes is None:
            message = f"boxes must be given for every image, got too few: {image!r} has none."
            raise DataError(message)
        try:
            pixels = open_image(image)
        except DataError as error:
            if strict:
                raise
            warnings.warn(f"skipped: {error}", MuntinWarning, stacklevel=4)
            continue
        yield LoadedImage(
            path, pixels, None if boxes is None else check_boxes(boxes, path or "an image")
        )


def check_boxes(boxes: Any, where: str) -> NDArray[np.float64]:  # noqa: ANN401 (of a user)
    """Convert boxes to an (N, 4) array of left, top, right and bottom edges in pixels."""
    try:
        rows = np.asarray(boxes, np.float64)
        rows = rows.reshape(-1, 4) if rows.size == 0 else rows
    except (TypeError, ValueError) as error:
        message = f"boxes must be rows of four numbers, got {boxes!r} for {where}."
        raise DataError(message) from error
    good = rows.ndim == 2 and rows.shape[1] == 4 and np.isfinite(rows).all()
    if not good or (rows[:, 2:] <= rows[:, :2]).any():
        message = (
            f"boxes must be rows of left, top, right and bottom edge in pixels, each right of and "
            f"below the other, got {np.asarray(boxes).tolist()!r} for {where}."
        )
        raise DataError(message)
    return rows
