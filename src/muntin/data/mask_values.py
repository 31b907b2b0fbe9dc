# SPDX-License-Identifier: Apache-2.0
"""From the bytes of a mask file, or from objects, to the class of each pixel.

Values are not scaled; of a palette, the encoding takes the index or the colour. They are compared
exactly, except where masks were stored with loss: see `MaskEncoding.tolerance`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from muntin.data.archives import read_bytes
from muntin.data.decoding import refuse_large
from muntin.data.image_formats import open_header
from muntin.errors import DataError
from muntin.run_lengths import decode_mask, to_run_lengths
from muntin.samples import Entry, Listing, MaskEncoding, Objects
from muntin.shapes import Int, Size
from muntin.targets import IGNORED

_LOSSY = ("JPEG", "MPO", "AVIF", "WEBP")  # the last one also without loss
_INDEXED = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


class LabelFile(NamedTuple):
    """A mask, read: class number of each pixel, and pixels of each value that is no class."""

    labels: Int[np.ndarray, "H W"]
    strange: dict[int, int]


Stored = Literal["index", "color", "alpha"]
"""How a file holds the class of a pixel."""


class MaskContent(NamedTuple):
    """What one mask holds: pixels of each value by the way to read it, "index" only if it can.

    `inside` counts those that lie in the middle of 3 x 3 pixels of one value: what smoothing and
    lossy formats add lies along edges and has hardly any. `palette` is that of a GIF, whose writers
    number colours as they like.
    """

    pixels: dict[Stored, Counter[int]]
    inside: dict[Stored, Counter[int]]
    palette: dict[int, int]
    lossy: bool


def read_values(data: bytes, *, where: str, kind: Stored) -> Int[np.ndarray, "H W"]:
    """Read the values of a mask file: one number a pixel.

    Values are colours (0xRRGGBB), opacities from 0 to 255, or else indices: of a palette, or the
    grey value. An image of three equal channels is grey; any other that has colours where indices
    are wanted is refused.
    """
    return _values(_open(data, where), where, kind)


def _open(data: bytes, where: str) -> Image.Image:
    try:
        image = open_header(io.BytesIO(data))
        refuse_large(image.size, where)
        image.load()
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
    return image


def _values(image: Image.Image, where: str, kind: Stored) -> NDArray[np.int32]:
    if kind == "alpha":
        return np.asarray(image.convert("RGBA"))[..., 3].astype(np.int32)
    if kind == "index" and image.mode in _INDEXED:
        return np.asarray(image).astype(np.int32)
    rounding = 8 if image.format in _LOSSY else 0
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns that it drops the transparency
    pixels = np.asarray(image.convert("RGB")).astype(np.int32)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if kind == "color":
        return red << 16 | green << 8 | blue
    if max(abs(red - green).max(), abs(red - blue).max()) <= rounding:
        return green
    message = (
        f"The mask {where!r} must hold class numbers, got colours. Name them in "
        f'a classes.json beside the images: {{"road": "#6EC1E4", ...}}.'
    )
    raise DataError(message)


def look_into(data: bytes, *, where: str) -> MaskContent:
    """Count what a mask file holds, in every way in which it can be read."""
    image = _open(data, where)
    kinds: list[Stored] = ["index", "color"]
    if "A" in image.getbands():
        kinds.append("alpha")
    pixels: dict[Stored, Counter[int]] = {}
    inside: dict[Stored, Counter[int]] = {}
    for kind in kinds:
        try:
            values = _values(image, where, kind)
        except DataError:
            continue  # colours alone
        pixels[kind] = Counter(count_values(values))
        inside[kind] = Counter(count_values(_inside(values)))
    palette: dict[int, int] = {}
    if image.format == "GIF" and image.mode == "P":
        index, color = (_values(image, where, kind).ravel() for kind in kinds[:2])
        palette = dict(zip(index.tolist(), color.tolist(), strict=True))
    lossy = image.format in _LOSSY and not (image.format == "WEBP" and b"VP8 " not in data[:4096])
    return MaskContent(pixels, inside, palette, lossy)


def _inside(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Give the values in the middle of 3 x 3 equal ones."""
    same = (values[:, :-2] == values[:, 1:-1]) & (values[:, 1:-1] == values[:, 2:])
    rows = values[:, 1:-1]
    whole = same[:-2] & same[1:-1] & same[2:]
    whole &= (rows[:-2] == rows[1:-1]) & (rows[1:-1] == rows[2:])
    return rows[1:-1][whole]


def count_values(values: Int[np.ndarray, "..."]) -> dict[int, int]:
    """Give the number of pixels of each value."""
    if values.size and values.min() >= 0 and values.max() < 2**16:
        counts = np.bincount(values.ravel())
        found = np.flatnonzero(counts)
        return dict(zip(found.tolist(), counts[found].tolist(), strict=True))
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def measure_distances(
    first: Sequence[int], second: Sequence[int], kind: str
) -> Int[np.ndarray, "N M"]:
    """Give the distances of values: for colours, the largest difference of a channel."""
    shifts = np.array([16, 8, 0] if kind == "color" else [0])
    bits = 255 if kind == "color" else -1
    a, b = (np.array(one, np.int64)[:, None] >> shifts & bits for one in (first, second))
    distances: NDArray[np.int64] = abs(a[:, None] - b[None]).max(axis=2)
    return distances


def read_labels(data: bytes, encoding: MaskEncoding, *, where: str) -> LabelFile:
    """Read a mask file, whole in `data`, as classes; values of no class are ignored too."""
    assert encoding.kind != "objects", "masks of objects have no file"
    values = read_values(data, where=where, kind=encoding.kind)
    known = np.array([*encoding.values, *encoding.ignored], np.int64)
    labels = np.r_[np.arange(len(encoding.values)), np.full(len(encoding.ignored), IGNORED)]
    if encoding.tolerance:
        found, places = np.unique(values, return_inverse=True)
        distances = measure_distances(found.tolist(), known.tolist(), encoding.kind)
        near = labels[distances.argmin(axis=1)]
        near = np.where(distances.min(axis=1) <= encoding.tolerance, near, IGNORED)
        return LabelFile(labels=near[places].reshape(values.shape).astype(np.int16), strange={})
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
