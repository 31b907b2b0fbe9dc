# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a mask file, or from objects, to the class of each pixel.

Values are never rounded, mixed or scaled; of a palette, the encoding takes the index or the colour.
"""

from __future__ import annotations

import io
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from muntin.data.archives import read_bytes
from muntin.data.decoding import MAX_PIXELS, open_header
from muntin.errors import DataError
from muntin.run_lengths import decode_mask, to_run_lengths
from muntin.samples import Entry, Listing, MaskEncoding, Objects
from muntin.shapes import Int, Size
from muntin.targets import IGNORED

_INDEXED = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


class LabelFile(NamedTuple):
    """A mask, read: class number of each pixel, and pixels of each value that is no class."""

    labels: Int[np.ndarray, "H W"]
    strange: dict[int, int]


def read_values(data: bytes, *, where: str, as_colors: bool) -> Int[np.ndarray, "H W"]:
    """Read the values of a mask file: one number a pixel.

    Values are colours (0xRRGGBB), or else indices: of a palette, or the grey value. An image of
    three equal channels is grey; any other that has colours where indices are wanted is refused.
    """
    try:
        with open_header(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                message = f"A mask must have at most {MAX_PIXELS} pixels, got more in {where!r}."
                raise DataError(message)
            image.load()
            return _values(image, where, as_colors)
    except DataError:
        raise
    except Exception as error:  # each of Pillow's readers has its own ways to fail
        # The text of this one names the object in memory.
        unknown = isinstance(error, UnidentifiedImageError)
        message = (
            f"The mask {where!r} must be an image that can be read (PNG is best), got {len(data)} "
            f"bytes that cannot: {'no format is recognised' if unknown else error}. Make it again "
            f"or remove it with its image."
        )
        raise DataError(message) from error


def _values(image: Image.Image, where: str, as_colors: bool) -> NDArray[np.int32]:
    if as_colors or image.mode not in _INDEXED:
        pixels = np.asarray(image.convert("RGB")).astype(np.int32)
        red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
        if as_colors:
            return red << 16 | green << 8 | blue
        if (red == green).all() and (red == blue).all():
            return red
        message = (
            f"The mask {where!r} must hold class numbers, got colours. Name them in "
            f'a classes.json beside the images: {{"road": "#6EC1E4", ...}}.'
        )
        raise DataError(message)
    return np.asarray(image).astype(np.int32)


def has_colors(data: bytes, *, where: str) -> bool:
    """Whether a mask can only be read as colours: more than one channel, and not all equal."""
    try:
        read_values(data, where=where, as_colors=False)
    except DataError:
        read_values(data, where=where, as_colors=True)  # raises for broken files
        return True
    return False


def count_values(values: Int[np.ndarray, "H W"]) -> dict[int, int]:
    """Give the number of pixels of each value."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def read_labels(data: bytes, encoding: MaskEncoding, *, where: str) -> LabelFile:
    """Read a mask file, whole in `data`, as classes; values of no class are ignored too."""
    values = read_values(data, where=where, as_colors=encoding.kind == "color")
    known = np.array([*encoding.values, *encoding.ignored], np.int64)
    labels = np.r_[np.arange(len(encoding.values)), np.full(len(encoding.ignored), IGNORED)]
    order = np.argsort(known)
    places = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
    found = order[places]
    right = known[found] == values
    result = np.where(right, labels[found], IGNORED).astype(np.int16)
    strange = {} if right.all() else count_values(values[~right][None])
    return LabelFile(labels=result, strange=strange)


def draw_objects(objects: Objects, size: Size, encoding: MaskEncoding) -> Int[np.ndarray, "H W"]:
    """Draw the classes of all pixels; where objects overlap, the smaller one is seen.

    `encoding` holds the number that objects of each class have; -1 for the background. Where there
    is no object, pixels are -1 if the background is no class; so are those in the box of an
    object without a mask, or of a faulty annotation.
    """
    label_of = {value: label for label, value in enumerate(encoding.values)}
    background = label_of.get(-1, IGNORED)
    labels = np.full(size, background, np.int16)
    for box, mask in zip(objects.boxes, objects.masks, strict=False):
        if mask is None:
            left, top, right, bottom = box
            rows, columns = slice(int(top), ceil(bottom)), slice(int(left), ceil(right))
            labels[rows, columns] = IGNORED
    for place in np.argsort(-objects.areas, kind="stable"):
        mask = objects.masks[place]
        if mask is not None:
            bitmap = decode_mask(to_run_lengths(mask, size))
            labels[bitmap] = label_of.get(int(objects.class_ids[place]), background)
    return labels


def read_mask(listing: Listing, entry: Entry) -> LabelFile:
    """Read the mask of an image of a listing, or draw it from its objects."""
    assert listing.encoding is not None, "masks have an encoding"
    if entry.objects is not None:
        assert entry.size is not None, "images with objects have a size"
        return LabelFile(draw_objects(entry.objects, entry.size, listing.encoding), {})
    data = read_bytes(listing.source, entry.mask)
    return read_labels(data, listing.encoding, where=entry.mask)
