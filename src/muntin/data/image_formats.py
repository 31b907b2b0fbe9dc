# SPDX-License-Identifier: Apache-2.0
"""Which files are images, and what to do about those of a format that is not read.

What Pillow can open is an image, by its own list of endings; a file without an ending is one if it
begins like one. Images of other formats are listed too, so that they are counted and named as
images that cannot be read, each with the way out.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

_COMMON = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Readers that start other programs (EPS), only exist on one system (WMF), or read nothing without
# a library of their own; MPEG is a video.
_NO_READERS = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC", "MCIDAS"))
_SEVERAL = "MPO"  # JPEGs in one file, which the reader of JPEG reads

_RAW = (".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dng", ".pef", ".srw")
_HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
_DICOM = (".dcm", ".dicom")
_OTHERS = (".jxl", ".exr", ".hdr", ".svg", ".eps", ".wmf", ".emf", ".czi", ".lif", ".nd2", ".xcf")
_WAYS_OUT = {
    **dict.fromkeys(_HEIF, "pip install 'muntin[heif]', or convert it to JPEG"),
    **dict.fromkeys((".avif", ".avifs"), "pip install 'pillow>=11.3', or convert it to PNG"),
    **dict.fromkeys(_RAW, "develop it, a camera's raw data, to TIFF or JPEG"),
    **dict.fromkeys(_DICOM, "pip install 'muntin[dicom]', or convert it to PNG or TIFF"),
    **dict.fromkeys(_OTHERS, "convert it to PNG or TIFF"),
}

_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|II\+\0|RIFF....WEBP|\0\0\0\x0cjP  "
    rb"|(?P<dcm>.{128}DICM)|(?P<heic>....ftyp(?:hei[cmsx]|hevc|mif1|msf1))|(?P<avif>....ftypavi[fs])",
    re.DOTALL,
)
_HEAD = 132  # bytes
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]{0,9}$")
_limit_lock = threading.Lock()


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Name the formats that are read, in Pillow's words, in the order in which they are tried."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    known = (name for name in (*_COMMON, *Image.ID) if name in Image.OPEN)
    return tuple(dict.fromkeys(name for name in known if name not in _NO_READERS))


def open_header(file: io.BytesIO | io.BufferedReader, formats: tuple[str, ...] = ()) -> Image.Image:
    """Open an image and read its header; its number of pixels is checked by the caller.

    Pillow's own limit, which is global, is lifted for as long as that takes.
    """
    chosen = formats or readable_formats()
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(file, formats=chosen)
        finally:
            Image.MAX_IMAGE_PIXELS = before


@functools.cache
def format_of_suffix(suffix: str) -> str:
    """Name the format that an ending such as ".jpg" stands for; "" where it is not read."""
    if suffix.lower() in _DICOM:
        return "DICOM" if find_spec("pydicom") else ""
    formats = (*readable_formats(), _SEVERAL)
    name = Image.EXTENSION.get(suffix.lower(), "")
    return name if name in formats else ""


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Give the endings, in lower case, of images that are read, and of those that are not."""
    readable_formats()  # registers them
    return tuple(dict.fromkeys((*filter(format_of_suffix, Image.EXTENSION), *_WAYS_OUT)))


def is_image(name: str, folder: Path | None = None) -> bool:
    """Whether a file is an image: by its ending, or, in a folder and without one, by its head."""
    if name.lower().endswith(image_suffixes()):
        return True
    if folder is None or _SUFFIX.search(name):
        return False
    from muntin.untrusted import open_regular  # seldom needed, and deep below

    with contextlib.suppress(OSError, ValueError), open_regular(folder / name) as file:
        return _BEGINNINGS.match(file.read(_HEAD)) is not None
    return False


def is_camera_raw(name: str) -> bool:
    """Whether a file is the raw data of a camera: most look like a TIFF, of a thumbnail only."""
    return name.lower().endswith(_RAW)


def way_out(name: str, data: bytes = b"") -> str:
    """Say what to do about an image of a format that is not read; "" for any other file.

    Examples:
        >>> way_out("a/IMG_1.CR2"), way_out("a.jpg")
        ("develop it, a camera's raw data, to TIFF or JPEG", '')
    """
    found = None if is_camera_raw(name) else _BEGINNINGS.match(data[:_HEAD])
    suffix = f".{found.lastgroup or 'jpg'}" if found else Path(name.lower()).suffix
    return "" if format_of_suffix(suffix) else _WAYS_OUT.get(suffix, "")
