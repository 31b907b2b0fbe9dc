# SPDX-License-Identifier: Apache-2.0
"""The values of images of more than 8 bits, which Pillow holds for one channel only.

Of several channels it drops all but the high byte (PNG, TIFF) or opens no file (TIFF of floats, of
signed integers, of more bands). Its decompressors can still be used. Of a PNG the two bytes of each
value are read one after the other. A TIFF is read as if each of its bytes were a grey pixel.
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from muntin.data.image_formats import open_header
from muntin.shapes import Size

_TYPES = {1: "u", 2: "i", 3: "f"}
_NO_DATA = 42113  # of GDAL
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # of strips, of tiles
_MAX_BYTES = 2**31

# The raw mode that reads the other byte of each value.
_OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def has_deep_mode(mode: str) -> bool:
    """Whether one of Pillow's modes has more than 8 bits a channel."""
    return mode == "F" or mode.startswith("I")


def is_deep(image: Image.Image) -> bool:
    """Whether a file that Pillow opened holds more than 8 bits a channel."""
    if has_deep_mode(image.mode):
        return True
    if image.format == "TIFF":
        tags: Any = image
        return max(tags.tag_v2.get(258, (1,))) > 8
    return image.format == "PNG" and ";16" in _raw_mode(image)


def read_deep(image: Image.Image, data: bytes) -> NDArray[Any]:
    """Read the values of a file for which `is_deep`, as stored: (H, W) or (H, W, channels).

    What the file says to be missing data is NaN.
    """
    if image.format == "TIFF" and (found := read_tiff(data)) is not None:
        return found
    if has_deep_mode(image.mode):
        return np.asarray(image)
    if image.format == "PNG":
        return _read_png(image, data)
    return np.asarray(image.convert("RGB")).astype(np.uint16) * 257


def _raw_mode(image: Any) -> str:  # noqa: ANN401 (an image file has tiles, an image has none)
    tiles = getattr(image, "tile", None)
    args = tiles[0][3] if tiles else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""


def _read_png(image: Any, data: bytes) -> NDArray[np.uint16]:  # noqa: ANN401
    raw = _raw_mode(image)
    if raw not in _OTHER_BYTE:  # grey and alpha: two values of two bytes
        grey = np.asarray(_reread(data, image, "RGBA")).astype(np.uint16)
        return grey[..., 0] << 8 | grey[..., 1]
    low = np.asarray(_reread(data, image, _OTHER_BYTE[raw])).astype(np.uint16)
    return (np.asarray(image).astype(np.uint16) << 8 | low)[..., :3]


def _reread(data: bytes, like: Image.Image, raw_mode: str) -> Image.Image:
    other: Any = open_header(io.BytesIO(data), ("PNG",))
    make = getattr(ImageFile, "_Tile", lambda *parts: parts)
    other.tile = [make(*other.tile[0][:3], raw_mode)]
    other.load()
    assert other.mode == like.mode, "only the bytes differ"
    return other


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the values of a TIFF lie: runs of `run` pixels, `bands` values a pixel, in planes."""

    size: Size
    kind: np.dtype[Any]
    bands: int
    planes: int
    run: int
    predictor: int

    @property
    def padded(self) -> int:
        """Pixels of a row in whole runs."""
        return -(-self.size[1] // self.run) * self.run


def read_tiff(data: bytes) -> NDArray[Any] | None:
    """Read a TIFF of whole bytes a value, as stored; None if it is none, or another kind."""
    tags = _read_tags(data)
    layout = None if tags is None else _layout_of(tags, data[:2] == b"II")
    if tags is None or layout is None:
        return None
    planes = [_read_plane(data, tags, layout, plane) for plane in range(layout.planes)]
    values = planes[0] if layout.planes == 1 else np.concatenate(planes, axis=2)
    with contextlib.suppress(ValueError):
        missing = float(str(tags.get(_NO_DATA, "")).strip("\0 "))
        values = np.where(values == missing, np.nan, values)
    return values[..., 0] if values.shape[2] < 3 else values[..., :3]


def _is_big(data: bytes) -> bool:
    return data[2:4] in (b"+\0", b"\0+")


def _read_tags(data: bytes) -> Any:  # noqa: ANN401 (the tags of Pillow)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if _is_big(data) else 8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # no TIFF, or a broken one, which Pillow will name
        return None
    return tags


def _layout_of(tags: Any, little: bool) -> _Layout | None:  # noqa: ANN401
    bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
    bands, planar, width = tags.get(277, 1), tags.get(284, 1), tags.get(256, 0)
    kind = _TYPES.get(kinds[0])
    known = len({*bits}) == len({*kinds}) == 1 and tags.get(266, 1) == 1 and tags.get(262) != 3
    allowed = (16, 32, 64) if kind == "f" else (8, 16, 32, 64)
    height = tags.get(257, 0)
    if kind is None or not known or bits[0] not in allowed or not 0 < width * height <= 10**9:
        return None
    if width * height * bands * bits[0] // 8 > _MAX_BYTES or tags.get(259, 1) in (6, 7):
        return None
    planes = bands if planar == 2 else 1
    return _Layout(
        (height, width), np.dtype(f"{'<' if little else '>'}{kind}{bits[0] // 8}"),
        bands // planes, planes, tags.get(322, width), tags.get(317, 1),
    )  # fmt: skip


def _read_plane(data: bytes, tags: Any, layout: _Layout, plane: int) -> NDArray[Any]:  # noqa: ANN401
    """One plane as (H, W, bands), through a copy of the file whose tags call each byte a pixel."""
    step = layout.bands * layout.kind.itemsize
    inline = {256: layout.padded * step, 258: 8, 262: 1, 274: 1, 277: 1, 284: 1, 317: 1, 339: 1}
    if 322 in tags:
        inline[322] = layout.run * step
    patched = bytearray(data)
    order, big = "<" if data[:2] == b"II" else ">", _is_big(data)
    head, entry, count, word = (8, 20, "Q", "Q") if big else (4, 12, "H", "I")
    start = struct.unpack_from(order + word, data, head)[0]
    number = struct.unpack_from(order + count, data, start)[0]
    first = start + struct.calcsize(order + count)
    for place in range(first, first + entry * number, entry):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        if tag in inline:
            struct.pack_into(order + "HH" + word + "I", patched, place, tag, 4, 1, inline[tag])
        elif tag == 338:  # extra samples: made a text that nobody reads
            struct.pack_into(order + "HH" + word, patched, place, 337, 2, 1)
        elif tag in (*_OFFSETS, *_COUNTS) and layout.planes > 1:
            length, array = struct.unpack_from(order + word * 2, data, place + 4)
            each, letter = length // layout.planes, {3: "H", 4: "I", 16: "Q"}[kind]
            width = struct.calcsize(letter)
            struct.pack_into(order + word, patched, place + 4, each)
            if each * width > struct.calcsize(word):
                value = array + plane * each * width
                struct.pack_into(
                    order + word, patched, place + entry - struct.calcsize(word), value
                )
            else:  # few enough to stand in place of their address
                few = tags[tag][plane * each : (plane + 1) * each]
                struct.pack_into(
                    f"{order}{each}{letter}", patched, place + entry - struct.calcsize(word), *few
                )
    with open_header(io.BytesIO(bytes(patched)), ("TIFF",)) as grey:
        rows = np.asarray(grey)
    runs = rows.reshape(layout.size[0], layout.padded // layout.run, layout.run * step)
    values = _undo_predictor(runs, layout)
    return values.reshape(layout.size[0], layout.padded, layout.bands)[:, : layout.size[1]]


def _undo_predictor(runs: NDArray[np.uint8], layout: _Layout) -> NDArray[Any]:
    """(H, runs of a row, bytes) to (H, runs, pixels, bands) of values."""
    kind, bands = layout.kind, layout.bands
    shape = (*runs.shape[:2], layout.run, bands)
    if layout.predictor == 3:  # differences of bytes, the high bytes of a run first
        flat = runs.reshape(*runs.shape[:2], -1, bands).cumsum(axis=2, dtype=np.uint8)
        split = flat.reshape(*runs.shape[:2], kind.itemsize, layout.run * bands)
        joined = np.ascontiguousarray(split.swapaxes(2, 3))
        return joined.view(kind.newbyteorder(">")).reshape(shape).astype(kind.newbyteorder("="))
    values = np.ascontiguousarray(runs).view(kind).reshape(shape)
    if layout.predictor == 2:
        whole = values.view(np.dtype(f"{kind.str[0]}u{kind.itemsize}"))
        summed = whole.cumsum(axis=2, dtype=whole.dtype.newbyteorder("="))
        return summed.view(kind.newbyteorder("="))
    return values.astype(kind.newbyteorder("="))
