# SPDX-License-Identifier: Apache-2.0
"""From the bytes of an image file to 8-bit RGB, through Pillow.

EXIF orientation is applied. Of several frames the first is taken. Transparency is dropped, not
composited, as torchvision and timm do, hence what published weights were trained with. 16-bit grey
is divided by 257 and rounded; integers beyond 16 bits are stretched from lowest to highest. Floats
within [0, 1] are multiplied by 255, within [0, 255] rounded, others stretched; NaN is 0. Of 16-bit
RGB, Pillow keeps the high byte; it converts CMYK and the like without a colour profile.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from muntin.errors import DataError, first_line
from muntin.shapes import UInt8

MAX_PIXELS = 500_000_000
"""Images with more pixels are refused: a few kB can unpack to fill the memory."""

# Not every reader that Pillow has: some start other programs (EPS).
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_limit_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInfo:
    """Format of a file before it was converted to 8-bit RGB, in Pillow's names ("MPO", "I;16").

    The EXIF orientation is 1 to 8; 1 = as stored.
    """

    format: str
    mode: str
    orientation: int = 1


def decode(
    data: bytes, *, where: str, shrink_hint: int | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """Decode an image file, whole in `data`, to writable and contiguous pixels.

    With `shrink_hint`, a JPEG that is at least twice as large as needed is decoded at 1/2, 1/4 or
    1/8 of its size, such that no side becomes shorter than this many pixels. Faster, and
    approximate: other pixels than decoding in full and resizing.
    """
    return decode_with_facts(data, where=where, shrink_hint=shrink_hint)[0]


def decode_with_facts(
    data: bytes, *, where: str, shrink_hint: int | None = None
) -> tuple[UInt8[np.ndarray, "H W 3"], ImageInfo]:
    """Decode an image file and describe its format; see `decode`."""
    if not data:
        message = f"An image must hold data, got 0 bytes in {where!r}. Fetch it again or remove it."
        raise DataError(message)
    try:
        with open_header(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                message = (
                    f"An image must have at most {MAX_PIXELS // 10**6} million pixels, "
                    f"got {height} x {width} in {where!r}. Make it smaller or cut it into tiles."
                )
                raise DataError(message)
            if shrink_hint is not None and image.format in ("JPEG", "MPO"):
                # Shorter sides than the hint are never made: both are kept at least as long.
                image.draft(image.mode, (shrink_hint, shrink_hint))
            return _read(image)
    except DataError:
        raise
    except Exception as error:  # each of Pillow's readers has its own ways to fail
        message = (
            f"{where!r} must be an image that can be read (JPEG, PNG, BMP, GIF, WebP, TIFF, PPM), "
            f"got {len(data)} bytes that cannot: {_first_line(error)}. "
            f"Fetch it again or remove it."
        )
        raise DataError(message) from error


def open_image(image: str | Path | Image.Image | np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Bring what a user may hold to an 8-bit RGB array; never a view of what was given.

    The EXIF orientation of a PIL image is applied. An array is uint8, H W (grey), H W 1, H W 3
    (RGB, not BGR) or H W 4 (RGBA; A is dropped).
    """
    if isinstance(image, str | Path):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            message = (
                f"There must be an image file at {str(image)!r}, got: {error.strerror}. "
                f"Check the path."
            )
            raise DataError(message) from error
        return decode(data, where=str(image))
    if isinstance(image, Image.Image):
        try:
            return _read(image)[0]
        except Exception as error:
            message = f"The PIL image must be readable, got: {_first_line(error)}. Open it again."
            raise DataError(message) from error
    if isinstance(image, np.ndarray):
        return _from_array(image)
    message = (
        f"An image must be a path, a PIL image or a uint8 array (H W 3, RGB), "
        f"got {type(image).__name__}. Convert it to one of these."
    )
    raise DataError(message)


def _from_array(image: np.ndarray) -> np.ndarray:
    channels = image.shape[2] if image.ndim == 3 else 1
    if (
        image.dtype != np.uint8
        or image.ndim not in (2, 3)
        or channels not in (1, 3, 4)
        or not image.size
    ):
        message = (
            f"An image array must be uint8 with sides H W, H W 1, H W 3 (RGB) or H W 4 (RGBA), "
            f"got {image.dtype} with sides {image.shape}. Convert it first "
            f"(floats in [0, 1]: multiply by 255 and round; C H W: transpose)."
        )
        raise DataError(message)
    pixels = image.reshape(*image.shape[:2], channels)[..., :3]
    return _to_rgb(Image.fromarray(pixels[..., 0] if channels == 1 else pixels))


def open_header(file: io.BytesIO | Path) -> Image.Image:
    """Open an image and read its header; `MAX_PIXELS` is checked by the caller.

    Pillow's own limit, which is global, is lifted for as long as that takes.
    """
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(file, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _read(image: Image.Image) -> tuple[np.ndarray, ImageInfo]:
    stored = image.mode
    image.load()  # order matters: of a TIFF, Pillow itself applies the orientation here
    orientation = _orientation(image)
    facts = ImageInfo(format=image.format or "", mode=stored, orientation=orientation)
    if orientation != 1:
        image = image.transpose(_UPRIGHT[orientation])
    return _to_rgb(image), facts


def _orientation(image: Image.Image) -> int:
    if image.format in ("JPEG", "MPO") and not image.info.keys() & {"exif", "xmp"}:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF; the image itself is fine
        return 1
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(np.asarray(image), image.mode))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns that it drops the transparency
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    if mode == "F":
        values = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        if low >= 0 and high <= 1:
            values = values * 255
        elif low < 0 or high > 255:
            values = (values - low) * 255 / ((high - low) or 1)
        return np.rint(values).astype(np.uint8)
    wide = values.astype(np.int64)
    low, high = int(wide.min()), int(wide.max())
    if mode == "I" and low >= 0 and high <= 255:
        return wide.astype(np.uint8)
    if low >= 0 and high <= 65535:
        return ((wide + 128) // 257).astype(np.uint8)
    return np.rint((wide - low) * 255 / (high - low)).astype(np.uint8)


def _first_line(error: Exception) -> str:
    # Pillow's sentence names a memory address instead of the file.
    text = first_line(error)
    return "unknown format" if text.startswith("cannot identify") else text
