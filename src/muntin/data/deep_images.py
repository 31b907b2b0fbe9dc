# SPDX-License-Identifier: Apache-2.0
"""The values of images of more than 8 bits, which Pillow holds for one channel only, and of DICOM.

Of several channels it drops all but the high byte (PNG, TIFF) or opens no file (TIFF of floats, of
signed integers, of more bands). Its decompressors can still be used. Of a PNG the two bytes of each
value are read one after the other. A TIFF is read as if each of its bytes were a grey pixel.

Images of the DICOM standard (radiology) are read through pydicom. Stored values become those of the
modality by slope and intercept (PS3.3, C.7.6.16.2.9): Hounsfield units of a CT. Where low values
are bright (MONOCHROME1), they are negated. What the window of a file says is for the eye: drawings
use it, a network sees `data.range`.
"""

from __future__ import annotations

import contextlib
import io
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, TiffImagePlugin

from muntin.data.image_formats import open_header
from muntin.errors import missing_extra
from muntin.untrusted import check_budget

_TYPES = {1: "u", 2: "i", 3: "f"}
_NO_DATA = 42113  # of GDAL
_PLACES = (273, 279, 324, 325)  # offsets and lengths of strips and of tiles
_COPIES = 3  # of the values, at the peak of reading
# The raw mode that reads the other byte of each value.
_OTHER_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def has_deep_mode(mode: str) -> bool:
    """Whether one of Pillow's modes has more than 8 bits a channel."""
    return mode == "F" or mode.startswith("I")


def is_deep(image: Any) -> bool:  # noqa: ANN401 (tags and tiles are of some image files)
    """Whether a file that Pillow opened holds more than 8 bits a channel."""
    if image.format == "TIFF" and max(image.tag_v2.get(258, (1,))) > 8:
        return True
    return has_deep_mode(image.mode) or (image.format == "PNG" and ";16" in image.tile[0][3])


_NO_BANDS = (3, 5, 6, 8, 9, 10)  # photometric interpretations of palettes, inks and light


def count_bands(data: bytes) -> int:
    """Count the bands of a file without its alpha; 3 for RGB, grey and all that is no TIFF."""
    try:
        tags = _read_tags(data)
    except Exception:  # no TIFF, or a broken one
        return 3
    count, extra = tags.get(277, 1), tags.get(338, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    plain = tags.get(262) in _NO_BANDS
    return 3 if plain else max(3, count - sum(kind in (1, 2) for kind in extra))


def tiff_size(data: bytes) -> tuple[int, int] | None:
    """Give (width, height) of a TIFF, which Pillow may not know; None if it is none."""
    try:
        tags = _read_tags(data)
        return int(tags[256]), int(tags[257])
    except Exception:  # no TIFF, or a broken one
        return None


def read_bands(data: bytes) -> NDArray[Any] | None:
    """Read all bands of a TIFF as stored, (H, W, bands); None if it is no such file."""
    values = read_tiff(data, bands=count_bands(data))
    return None if values is None or values.ndim == 2 else values


def _read_tags(data: bytes) -> Any:  # noqa: ANN401
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if _is_big(data) else 8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    tags.load(file)
    return tags


def read_deep(image: Any, data: bytes) -> NDArray[Any]:  # noqa: ANN401
    """Read the values of a file for which `is_deep`, as stored: (H, W) or (H, W, 3).

    What the file says to be missing data is NaN.
    """
    if image.format == "TIFF" and (found := read_tiff(data)) is not None:
        return found
    if has_deep_mode(image.mode):
        return np.asarray(image)
    if image.format != "PNG":
        return np.asarray(image.convert("RGB")).astype(np.uint16) * 257
    raw = image.tile[0][3]
    again: Any = open_header(io.BytesIO(data), ("PNG",))
    make = getattr(ImageFile, "_Tile", lambda *parts: parts)
    again.tile = [make(*again.tile[0][:3], _OTHER_BYTE.get(raw, "RGBA"))]
    low = np.asarray(again).astype(np.uint16)
    if raw not in _OTHER_BYTE:  # grey and alpha: two values of two bytes
        return low[..., 0] << 8 | low[..., 1]
    return (np.asarray(image).astype(np.uint16) << 8 | low)[..., :3]


class _Layout(NamedTuple):
    """How the values of a TIFF lie: rows of whole runs, `bands` values a pixel, in planes."""

    height: int
    width: int
    kind: np.dtype[Any]
    bands: int
    planes: int
    run: int
    predictor: int

    @property
    def runs(self) -> int:
        return -(-self.width // self.run)

    @property
    def run_bytes(self) -> int:
        return self.run * self.bands * self.kind.itemsize


def read_tiff(data: bytes, *, bands: int = 3) -> NDArray[Any] | None:
    """Read a TIFF of whole bytes a value, as stored; None if it is broken, or of another kind.

    Of fewer than three bands the first is read, of more the first `bands`, which are not turned:
    those of one whose orientation is not as stored are not read, if there are more than three.

    Raises:
        ValueError: It needs more than the budget of memory.
    """
    try:
        tags = _read_tags(data)
        layout = _layout_of(tags, "<" if data[:2] == b"II" else ">")
    except Exception:  # no TIFF, or a broken one, which Pillow will name
        return None
    if layout is None or (bands > 3 and tags.get(274, 1) != 1):
        return None
    size = layout.height * layout.width * layout.planes * layout.bands * layout.kind.itemsize
    check_budget(_COPIES * size, f"a TIFF of {layout.height} x {layout.width}")
    try:
        planes = [_read_plane(data, tags, layout, plane) for plane in range(layout.planes)]
    except Exception:  # the same
        return None
    values = np.concatenate(planes, axis=2)
    with contextlib.suppress(ValueError):
        missing = float(str(tags.get(_NO_DATA, "")).strip("\0 "))
        values = np.where(values == missing, np.nan, values)
    return values[..., 0] if values.shape[2] < 3 else values[..., :bands]


def _is_big(data: bytes) -> bool:
    return data[2:4] in (b"+\0", b"\0+")


def _layout_of(tags: Any, order: str) -> _Layout | None:  # noqa: ANN401
    bits, kinds, bands = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(277, 1)
    height, width, kind = tags.get(257, 0), tags.get(256, 0), _TYPES.get(kinds[0], "")
    allowed = {"": (), "f": (16, 32, 64)}.get(kind, (8, 16, 32, 64))
    plain = tags.get(266, 1) == 1 and tags.get(262) != 3 and tags.get(259, 1) not in (6, 7)
    if len({*bits}) + len({*kinds}) != 2 or bits[0] not in allowed or not plain:
        return None
    if width * height * bands * bits[0] < 8:
        return None
    planes, dtype = bands if tags.get(284, 1) == 2 else 1, np.dtype(f"{order}{kind}{bits[0] // 8}")
    run, predictor = tags.get(322, width), tags.get(317, 1)
    return _Layout(height, width, dtype, bands // planes, planes, run, predictor)


def _read_plane(data: bytes, tags: Any, layout: _Layout, plane: int) -> NDArray[Any]:  # noqa: ANN401
    """One plane as (H, W, bands), through a copy of the file whose tags call each byte a pixel."""
    row = layout.runs * layout.run_bytes
    inline = {256: row, 258: 8, 262: 1, 274: 1, 277: 1, 284: 1, 317: 1, 339: 1}
    inline |= {322: layout.run_bytes} if 322 in tags else {}
    order = "<" if data[:2] == b"II" else ">"
    head, entry, count, word = (8, 20, "Q", "Q") if _is_big(data) else (4, 12, "H", "I")
    (start,) = struct.unpack_from(order + word, data, head)
    (number,) = struct.unpack_from(order + count, data, start)
    patched, first = bytearray(data), start + struct.calcsize(order + count)
    for place in range(first, first + entry * number, entry):
        (tag,) = struct.unpack_from(order + "H", data, place)
        if tag in inline:
            struct.pack_into(order + "H" + word + "I", patched, place + 2, 4, 1, inline[tag])
        elif tag == 338:  # extra samples: made a text that nobody reads
            struct.pack_into(order + "HH" + word, patched, place, 337, 2, 1)
        elif tag in _PLACES and layout.planes > 1:
            each = len(tags[tag]) // layout.planes
            mine = tags[tag][plane * each : (plane + 1) * each]
            value = mine[0] if each == 1 else len(patched)
            kind = 4 if word == "I" else 16
            struct.pack_into(order + "H" + word * 2, patched, place + 2, kind, each, value)
            patched += struct.pack(f"{order}{each}{word}", *mine)
    with open_header(io.BytesIO(bytes(patched)), ("TIFF",)) as grey:
        rows = np.asarray(grey).reshape(layout.height, layout.runs, layout.run_bytes)
    return _undo_predictor(rows, layout).reshape(layout.height, -1, layout.bands)[:, : layout.width]


def _undo_predictor(rows: NDArray[np.uint8], layout: _Layout) -> NDArray[Any]:
    """(H, runs, bytes) to (H, runs, pixels, bands) of values."""
    kind, shape = layout.kind, (*rows.shape[:2], layout.run, layout.bands)
    native = kind.newbyteorder("=")
    if layout.predictor == 3:  # differences of bytes, the high bytes of a run first
        flat = rows.reshape(*rows.shape[:2], -1, layout.bands).cumsum(axis=2, dtype=np.uint8)
        bytes_last = flat.reshape(*rows.shape[:2], kind.itemsize, -1).swapaxes(2, 3)
        values = np.ascontiguousarray(bytes_last).view(kind.newbyteorder(">"))
        return values.reshape(shape).astype(native)
    values = np.ascontiguousarray(rows).view(kind).reshape(shape).astype(native)
    if layout.predictor == 2:
        whole = np.dtype(f"u{kind.itemsize}")
        return values.view(whole).cumsum(axis=2, dtype=whole).view(native)
    return values


_BEFORE_SIGNATURE = 128  # bytes
_DICOM_PEAK = 24  # bytes a pixel, while reading


def is_dicom(data: bytes) -> bool:
    """Whether a file is one, by its signature."""
    return data[_BEFORE_SIGNATURE : _BEFORE_SIGNATURE + 4] == b"DICM"


def read_dicom(data: bytes, *, shown: bool = False) -> tuple[NDArray[Any], int]:
    """Read the values of the first frame, (H, W) or (H, W, 3) of colours; and count the frames.

    Those to be `shown` are cut off at the window of the file, if it has one.

    Raises:
        MissingExtra: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise missing_extra("pydicom", "dicom", "reading DICOM") from error  # noqa: EM101
    found: Any = pydicom.dcmread(io.BytesIO(data))
    frames = int(found.get("NumberOfFrames", 1) or 1)
    check_budget(_DICOM_PEAK * int(found.Rows) * int(found.Columns), "a DICOM image")
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(found, index=0)  # colours as RGB
    if pixels.ndim == 3:
        return pixels, frames
    values = apply_modality_lut(pixels, found)
    if shown and ("WindowCenter" in found or "VOILUTSequence" in found):
        values = apply_voi_lut(values, found)
    exact = np.float64 if values.dtype.itemsize > 4 else np.float32
    values = values.astype(exact) if values.dtype.kind == "f" else values
    dark_is_high = found.PhotometricInterpretation == "MONOCHROME1"
    return np.negative(values.astype(np.float64)) if dark_is_high else values, frames
