# SPDX-License-Identifier: Apache-2.0
"""From the bytes of an image file to 8-bit RGB, through Pillow.

EXIF orientation is applied. Of several frames the first is taken. Transparency is dropped, not
composited, as torchvision and timm do, hence what published weights were trained with. Values of
more than 8 bits become 8 by a range, or floats, see `muntin.data.value_ranges`; of more than three
channels the first three are read unless more are asked for, of two the first. Pillow converts CMYK
and the like without a profile.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from muntin.data.archives import read_packed
from muntin.data.deep_images import (
    count_bands,
    has_deep_mode,
    is_deep,
    is_dicom,
    read_bands,
    read_deep,
    read_dicom,
    read_tiff,
)
from muntin.data.image_formats import is_camera_raw, open_header, way_out
from muntin.data.value_ranges import (
    OWN,
    UNSET,
    AnyReading,
    ValueRange,
    apply_range,
    apply_type_rule,
    as_reading,
    scale_values,
)
from muntin.errors import DataError, MuntinWarning, first_line, where_to_look
from muntin.ops.torchvision_operators import decode_file
from muntin.shapes import Real, Size
from muntin.untrusted import MAX_PIXELS, check_budget, read_regular

# What decoding holds at its peak: Pillow's 4 and a source of 1, and two copies of 3 in numpy.
_BYTES_A_PIXEL = 11
FIRST_PAGE = "of images with several pages or frames, the first is read. Save the others as files"
_MOST = 0.95  # of the values
_ORIENTATION = 0x0112
# By orientation: whether left and right are exchanged, then quarter turns anticlockwise.
_UPRIGHT = {
    2: (True, 0), 3: (False, 2), 4: (True, 2), 5: (True, 1), 6: (False, 3), 7: (True, 3),
    8: (False, 1),
}  # fmt: skip
_BACK = {5: 5, 6: 8, 7: 7, 8: 6}


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Format of a file before it was converted to 8-bit RGB, in Pillow's names ("MPO", "I;16").

    The EXIF orientation is 1 to 8; 1 = as stored. With `kept_as_stored` it was not applied, as the
    annotations have the size before it. `outside` is the share of the values that their range
    does not hold, those that are not finite included; with `unknown`, some are not. With `several`,
    the file has further pages or frames, which are not read.
    """

    format: str
    mode: str
    orientation: int = 1
    kept_as_stored: bool = False
    outside: float = 0.0
    unknown: bool = False
    several: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How images are decoded.

    Attributes:
        value_range: Values of more than 8 bits that become 0 and 255; those of the image itself by
            default, `UNSET` for runs without.
        size: (height, width) that the annotations of the image have, None if unknown. Where the
            image has it before its EXIF orientation is applied, and not after, it is not applied.
        shrink_hint: A JPEG that is at least twice as large as needed is decoded at 1/2, 1/4 or 1/8
            of its size, such that no side becomes shorter than this many pixels. Faster, and
            approximate: other pixels than decoding in full and resizing.
        bands: As in `PixelReading`, and so are `bits`.
    """

    value_range: ValueRange = OWN
    size: Size | None = None
    shrink_hint: int | None = None
    bands: int = 3
    bits: Literal[8, 16] = 8


PLAIN = Decoding()


def decode(
    data: bytes, *, where: str, shrink_hint: int | None = None, value_range: AnyReading = OWN
) -> Real[np.ndarray, "H W bands"]:
    """Decode an image file, whole in `data`, to writable and contiguous pixels; see `Decoding`."""
    how = Decoding(**as_reading(value_range)._asdict(), shrink_hint=shrink_hint)
    return decode_with_facts(data, where=where, how=how)[0]


def decode_with_facts(
    data: bytes, *, where: str, how: Decoding = PLAIN
) -> tuple[Real[np.ndarray, "H W bands"], ImageInfo]:
    """Decode an image file and describe its format.

    Pixels are uint8, or float32 with 16 bits, see `PixelReading`.

    Raises:
        DataError: The file is empty, too large, broken, or of a format that is not read.
    """
    if not data:
        message = f"An image must hold data, got 0 bytes in {where!r}. Fetch it again or remove it."
        raise DataError(message)
    try:
        if is_camera_raw(where):
            raise OSError("unknown format")  # noqa: EM101
        return _decode(data, where, how)
    except DataError:
        raise
    except Exception as error:  # each of Pillow's readers has its own ways to fail
        advice = "Fetch it again or remove it."
        if other := way_out(where, data):
            advice = f"Its format is not read: {other}."
        message = (
            f"{where!r} must be an image that can be read (JPEG, PNG, TIFF, WebP or another format "
            f"of Pillow), got {len(data)} bytes that cannot: {_first_line(error)}. {advice}"
        )
        raise DataError(message) from error


def _decode(data: bytes, where: str, how: Decoding) -> tuple[np.ndarray, ImageInfo]:
    if how.bands > 3:
        return _decode_bands(data, where, how)
    if is_dicom(data):
        values, frames = read_dicom(data, shown=how.value_range == OWN)
        return _take_values(values, how, where, ImageInfo("DICOM", "", several=frames > 1))
    try:
        image = open_header(io.BytesIO(data))
    except UnidentifiedImageError:
        if (found := read_tiff(data)) is None:
            raise
        return _take_values(found, how, where, ImageInfo("TIFF", ""))
    with image:
        full = image.size
        if how.shrink_hint is not None and image.format in ("JPEG", "MPO"):
            # Shorter sides than the hint are never made: both are kept at least as long.
            image.draft(image.mode, (how.shrink_hint, how.shrink_hint))
        refuse_large(image.size, where)
        return _read(image, how, data if image.size == full else b"")


def _decode_bands(data: bytes, where: str, how: Decoding) -> tuple[np.ndarray, ImageInfo]:
    """Decode a TIFF of more than three bands; what is missing is 0."""
    found = count_bands(data)
    values = read_tiff(data, bands=found) if found == how.bands else None
    if values is None:
        message = (
            f"{where!r} must be a TIFF of {how.bands} bands that lies upright, as the others, got "
            f"{'one' if found == how.bands else f'{found} bands'} that is not. Convert it or "
            f"remove it, or read three bands of each: --set model.in_chans=3."
        )
        raise DataError(message)
    return _take_values(values, how, where, ImageInfo("TIFF", f"{found} bands of "))


def _take_values(
    values: np.ndarray, how: Decoding, where: str, facts: ImageInfo
) -> tuple[np.ndarray, ImageInfo]:
    """Give pixels of values that Pillow does not know, and complete what is known of the file."""
    refuse_large((values.shape[1], values.shape[0]), where)
    mode = f"{facts.mode}{values.dtype}"
    return _to_pixels(values, how), replace(facts, mode=mode, **_judge_values(values, how))


def _to_pixels(values: np.ndarray, how: Decoding, mode: str = "") -> np.ndarray:
    """Give (H, W, bands), where grey has three equal ones, of values as stored."""
    unset, deep = how.value_range == UNSET, values.dtype != np.uint8
    pixels = values
    if deep and how.bits == 16:
        pixels = scale_values(values, OWN if unset else how.value_range)
    elif deep and not unset:
        pixels = apply_range(values, how.value_range)
    elif deep:
        pixels = apply_type_rule(values, is_16_bit=mode.startswith("I;16"))
    pixels = pixels.astype(np.float32 if how.bits == 16 else np.uint8, copy=False)
    pixels = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels)


def refuse_large(size: tuple[int, int], where: str) -> None:
    """Refuse images of (width, height) too large, before memory for them is allocated.

    Raises:
        DataError: It has more than `MAX_PIXELS`.
        ValueError: Its pixels need more than the budget of memory.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        message = (
            f"An image must have at most {MAX_PIXELS // 10**6} million pixels, "
            f"got {height} x {width} in {where!r}. Make it smaller or cut it into tiles."
        )
        raise DataError(message)
    check_budget(width * height * _BYTES_A_PIXEL, f"an image of {height} x {width}")


def decode_values(data: bytes, bands: int = 3) -> np.ndarray | None:
    """Give the values of an image of more than 8 bits, (H, W) or (H, W, 3); None for any other.

    Of one of more than three `bands` in all, whatever bits it has.
    """
    try:
        if bands > 3:
            return read_bands(data)
        if is_dicom(data):
            return read_dicom(data)[0]
        try:
            with open_header(io.BytesIO(data)) as image:
                refuse_large(image.size, "")
                return read_deep(image, data) if is_deep(image) else None
        except UnidentifiedImageError:
            values = read_tiff(data)
            return None if values is None or values.dtype.itemsize == 1 else values
    except Exception:  # whoever decodes it names the fault
        return None


def open_image(
    image: str | Path | bytes | Image.Image | np.ndarray | Callable[[AnyReading], np.ndarray],
    value_range: AnyReading = OWN,
) -> Real[np.ndarray, "H W bands"]:
    """Bring what a user may hold to an array of pixels; never a view of what was given.

    A function gives the array itself, by what is asked for: a range, or more (`PixelReading`). The
    EXIF orientation of a PIL image is applied. An array is uint8, H W (grey), H W 1, H W 3 (RGB,
    not BGR) or H W 4 (RGBA; A is dropped), or has all bands; with a range, of any other numbers.
    """
    reading = as_reading(value_range)
    how = Decoding(**reading._asdict())
    if isinstance(image, str | Path):
        pixels, facts = decode_with_facts(read_image(image), where=str(image), how=how)
        if facts.several:  # the same text each time: it is shown once
            warnings.warn(FIRST_PAGE, MuntinWarning, stacklevel=3)
        if facts.outside > _MOST:
            low, high = how.value_range
            text = (
                f"{facts.outside:.0%} of the values of {str(image)!r} are outside {low:g} to "
                f"{high:g}, the range (data.range) that the run was trained with"
            )
            warnings.warn(text, MuntinWarning, stacklevel=3)
        return pixels
    if isinstance(image, bytes):
        return decode_with_facts(image, where="the bytes of an image", how=how)[0]
    if isinstance(image, Image.Image) and how.bands == 3:
        try:
            return _read(image, how)[0]
        except Exception as error:
            message = f"The PIL image must be readable, got: {_first_line(error)}. Open it again."
            raise DataError(message) from error
    if isinstance(image, np.ndarray):
        return _from_array(image, how)
    if callable(image):
        found = image(reading if (how.bands, how.bits) != (3, 8) else how.value_range)
        own = replace(how, value_range=UNSET) if found.dtype == np.float32 else how
        return _from_array(found, own)
    message = (
        f"An image must be a path, bytes, a PIL image or a uint8 array (H W 3, RGB), "
        f"got {type(image).__name__}. Convert it to one of these."
    )
    raise DataError(message)


def read_image(path: str | Path) -> bytes:
    """Read the file of an image, which may lie in an open packed data set.

    Raises:
        DataError: It cannot be read.
    """
    try:
        packed = read_packed(path)
        return read_regular(path) if packed is None else packed
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        message = (
            f"There must be an image file at {str(path)!r}, got: {reason}. "
            f"{where_to_look(path, 'a file')}"
        )
        raise DataError(message) from error


def _from_array(image: np.ndarray, how: Decoding) -> np.ndarray:
    channels, value_range = image.shape[2] if image.ndim == 3 else 1, how.value_range
    deep = value_range not in (UNSET, OWN) and image.dtype != np.uint8 and image.dtype.kind in "iuf"
    ready = how.bits == 16 and value_range == UNSET and image.dtype == np.float32
    allowed = (1, 3, 4) if how.bands == 3 else (how.bands,)
    if (
        (image.dtype != np.uint8 and not deep and not ready)
        or image.ndim not in (2, 3)
        or channels not in allowed
        or not image.size
    ):
        sides = "H W, H W 1, H W 3 (RGB) or H W 4 (RGBA)" if how.bands == 3 else f"H W {how.bands}"
        message = (
            f"An image array must be uint8 with sides {sides}, "
            f"got {image.dtype} with sides {image.shape}. Convert it first "
            f"(floats in [0, 1]: multiply by 255 and round; C H W: transpose)."
        )
        raise DataError(message)
    pixels = image.reshape(*image.shape[:2], channels)[..., : how.bands]
    if ready:
        return np.array(pixels)
    found = _to_pixels(pixels[..., 0] if channels == 1 else pixels, how)
    return found.copy() if np.may_share_memory(found, image) else found


def _read(image: Any, how: Decoding, data: bytes = b"") -> tuple[np.ndarray, ImageInfo]:  # noqa: ANN401
    kind, mode = image.format, image.mode
    several = kind in ("TIFF", "PNG", "WEBP") and bool(getattr(image, "is_animated", False))
    stored = _orientation(image) if kind == "TIFF" else 1
    values, plain = None, None if several else _decode_plain(image, data)
    if plain is None and data and how.value_range != UNSET and is_deep(image):
        values = read_deep(image, data)
    elif plain is None:
        image.load()
        values = np.asarray(image) if has_deep_mode(image.mode) else None
    turned = _orientation(image)  # order matters: of a TIFF, Pillow may have applied it by now
    if values is not None:
        pixels = _to_pixels(values, how, mode)
    else:
        pixels = _to_rgb(image) if plain is None else plain
        pixels = pixels.astype(np.float32) if how.bits == 16 else pixels
    if turned != 1:
        pixels = _turn(pixels, turned)
    orientation, size = turned if turned != 1 else stored, pixels.shape[1::-1]
    kept = how.size == size != size[::-1] and orientation in _BACK
    if kept:
        pixels, orientation = _turn(pixels, _BACK[orientation]), 1
    judged = {} if values is None else _judge_values(values, how)
    facts = ImageInfo(kind or "", mode, orientation, kept, several=several, **judged)
    return np.ascontiguousarray(pixels), facts


def _decode_plain(image: Any, data: bytes) -> np.ndarray | None:  # noqa: ANN401
    """Decode 8-bit RGB and grey with the bits of Pillow in less time; None where it has to."""
    if not data or image.mode not in ("RGB", "L"):
        return None
    found = decode_file(image.format, data, image.size[::-1])
    return None if found is None else found.permute(1, 2, 0).numpy()


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Bring pixels of an EXIF orientation upright."""
    mirrored, quarters = _UPRIGHT[orientation]
    return np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters)


def _judge_values(values: np.ndarray, how: Decoding) -> dict[str, Any]:
    """Those of `ImageInfo` that tell of values."""
    low, high = how.value_range
    measured = how.value_range not in (UNSET, OWN)
    inside = float(np.mean((values >= low) & (values <= high))) if measured else 1.0
    return {"outside": 1 - inside, "unknown": not np.isfinite(values).all()}


def _orientation(image: Image.Image) -> int:
    if image.format in ("JPEG", "MPO", "WEBP") and not image.info.keys() & {"exif", "xmp"}:
        return 1
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken EXIF; the image itself is fine
        return 1
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns that it drops the transparency
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _first_line(error: Exception) -> str:
    # Pillow's sentence names a memory address instead of the file.
    return re.sub("^cannot identify.*", "unknown format", first_line(error))
