# SPDX-License-Identifier: Apache-2.0
"""Which files are images, and what to do about those of a format that is not read.

What Pillow can open is an image, by its own list of endings; a file without a known ending is one
if it begins like one. Images of other formats are listed too, so that they are counted and named
as images that cannot be read, each with the way out.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import threading
from pathlib import Path

from PIL import Image

_COMMON = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
# Readers that start other programs (EPS), only exist on one system (WMF), or read nothing without
# a library of their own; MPEG is a video.
_NO_READERS = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC", "MCIDAS"))

_SEVERAL = "MPO"  # JPEGs in one file, which the reader of JPEG reads

_RAW = (".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dng", ".pef", ".srw")
_HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
_AVIF = (".avif", ".avifs")
_CONVERT = "convert it to PNG or TIFF"
_WAYS_OUT = {
    **dict.fromkeys(_HEIF, "pip install 'muntin[heif]', or convert it to JPEG"),
    **dict.fromkeys(_AVIF, "pip install 'pillow>=11.3', or convert it to PNG"),
    **dict.fromkeys(_RAW, "a camera's raw data: develop it to TIFF or JPEG"),
    **dict.fromkeys((".dcm", ".dicom"), "DICOM: convert it to 16-bit PNG or TIFF"),
    **dict.fromkeys((".jxl", ".exr", ".hdr", ".svg", ".eps", ".wmf", ".emf"), _CONVERT),
    **dict.fromkeys((".czi", ".lif", ".nd2", ".vsi", ".mrxs", ".xcf", ".jxr", ".bpg"), _CONVERT),
}

_BEGINNINGS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|II\+\0|MM\0\+|RIFF....WEBP"
    rb"|(?P<heif>....ftyp(?:hei[cmsx]|hevc|mif1|msf1))|(?P<avif>....ftypavi[fs])"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.DOTALL,
)
HEAD = 12
"""Bytes at the beginning of a file that tell an image."""

_limit_lock = threading.Lock()

_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9_]{0,9}$|\.(?:7z|3gp|001)$")


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Name the formats that are read, in Pillow's words, in the order in which they are tried."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    known = (name for name in (*_COMMON, *Image.ID) if name in Image.OPEN)
    return tuple(dict.fromkeys(name for name in known if name not in _NO_READERS))


def open_header(file: io.BytesIO | Path, formats: tuple[str, ...] = ()) -> Image.Image:
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
    formats = readable_formats()
    name = Image.EXTENSION.get(suffix.lower(), "")
    return name if name in (*formats, _SEVERAL) else ""


@functools.cache
def image_suffixes() -> tuple[str, ...]:
    """Give the endings, in lower case, of images that are read, and of those that are not."""
    readable_formats()  # registers them
    found = filter(format_of_suffix, Image.EXTENSION)
    return tuple(dict.fromkeys((*found, *_WAYS_OUT)))


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its ending, read or not."""
    return name.lower().endswith(image_suffixes())


def has_no_suffix(name: str) -> bool:
    """Whether only the first bytes of a file can tell what it is."""
    return _SUFFIX.search(name) is None


def read_head(path: Path) -> bytes:
    """Read the first `HEAD` bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def is_image_file(path: Path) -> bool:
    """Whether a path is an image: by its ending, and without one by its first bytes."""
    if is_image_name(path.name):
        return True
    return has_no_suffix(path.name) and path.is_file() and begins_like_image(read_head(path))


def begins_like_image(head: bytes) -> bool:
    """Whether the first `HEAD` bytes are those of an image."""
    return _BEGINNINGS.match(head) is not None


def is_camera_raw(name: str) -> bool:
    """Whether a file is the raw data of a camera: most look like a TIFF, of a thumbnail only."""
    return name.lower().endswith(_RAW)


def way_out(name: str, head: bytes = b"") -> str:
    """Say what to do about an image of a format that is not read; "" for any other file.

    Example:
        >>> way_out("a/IMG_1.CR2")
        "a camera's raw data: develop it to TIFF or JPEG"
        >>> way_out("a.jpg")
        ''
    """
    found = _BEGINNINGS.match(head)
    kind = found.lastgroup if found else None
    suffix = f".{kind}" if kind else Path(name.lower()).suffix
    if (found and not kind) or format_of_suffix(suffix):
        return ""
    return _WAYS_OUT.get(suffix, "")
