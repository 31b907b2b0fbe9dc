# SPDX-License-Identifier: Apache-2.0
"""Images of every format that can be written here, damaged; sizes that lie; bombs."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from muntin.data.image_formats import readable_formats
from tests.golden.material import DATA, OLD
from tests.hostile import mutations
from tests.hostile.harness import Case, Place

MODES = ("RGB", "L", "1", "P")
COMMON = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")


@functools.cache
def _formats() -> dict[str, tuple[str, bytes]]:
    """Format to an ending and a small file of it, where Pillow writes and reads it."""
    found = {}
    Image.init()
    endings = {kind: suffix for suffix, kind in reversed(Image.EXTENSION.items())}
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    for kind in readable_formats():
        if kind not in Image.SAVE or kind not in endings:
            continue
        for mode in MODES:
            data = io.BytesIO()
            try:
                Image.fromarray(pixels).convert(mode).save(data, kind)
            except (OSError, ValueError, KeyError):
                continue
            found[kind] = (endings[kind], data.getvalue())
            break
    return found


def image_cases() -> Iterator[Case]:
    """Each format damaged, then PNG, TIFF and others made by hand."""
    for kind, (suffix, data) in _formats().items():
        yield _case(kind, "plain", suffix, partial(bytes, data), "accept")
        flips = 16 if kind in COMMON else 6
        for label, make in mutations.byte_mutations(kind, partial(bytes, data), flips):
            wrong = label in ("no-bytes", "one-byte", "zeros", "ones", "cut-2%")
            yield _case(kind, label, suffix, make, "refuse" if wrong else "either")
    for label, (width, height) in SIZES.items():
        lie = partial(png, width, height, pixels=b"")
        yield _case("PNG", f"says-{label}", ".png", lie, "refuse")
        yield _case("BMP", f"says-{label}", ".bmp", partial(_bmp, width, height), "refuse")
        yield _case("PPM", f"says-{label}", ".ppm", partial(_ppm, width, height), "refuse")
    for label, arguments in BOMBS.items():
        yield _case("PNG", f"bomb-{label}", ".png", partial(png, *arguments))
    for label, chunks in CHUNKS.items():
        yield _case("PNG", f"chunk-{label}", ".png", partial(png, 8, 8, more=chunks))
    for tag, values in TAGS.items():
        for value in values:
            yield _case("TIFF", f"tag-{tag}={value}", ".tif", partial(_tiff, {tag: value}))
    for label, text in PPMS.items():
        yield _case("PPM", label, ".ppm", partial(bytes, text))


def _case(kind: str, label: str, suffix: str, make: mutations.Make, expect: str = "either") -> Case:
    def build(place: Place) -> list[str]:
        folder = place.source / "ash"
        folder.mkdir()
        path = folder / f"0{suffix}"
        path.write_bytes(make())
        # By turns as an image to be predicted, and as one of a data set.
        if expect != "either" or zlib.crc32(label.encode()) % 2:
            return ["predict", str(OLD / "classify"), str(path), "--json"]
        good = DATA / "classify" / "train" / "disc" / "00000.png"
        (place.source / "oak").mkdir()
        for name in ("ash/1.png", "oak/1.png"):
            (place.source / name).write_bytes(good.read_bytes())
        return ["check", "classify", str(place.source), "--json"]

    group = kind if kind in COMMON else "other images"
    return Case(name=f"image/{kind}/{label}", kind=group, build=build, expect=expect)


SIZES = {
    "nothing": (0, 0), "no-height": (10, 0), "31-bits": (2**31 - 1, 2**31 - 1),
    "31-bits-wide": (2**31 - 1, 1), "100000": (100_000, 100_000),
    "half-a-billion": (22_000, 22_000), "thin": (1, 499_999_999),
}  # fmt: skip
# Width, height, bits, kind of colour.
BOMBS = {
    "484-million-bits": (22_000, 22_000, 1, 0), "530-million-bits": (23_000, 23_000, 1, 0),
    "484-million-grey": (22_000, 22_000, 8, 0), "484-million": (22_000, 22_000, 8, 2),
    "column": (1, 60_000_000, 8, 0), "row": (60_000_000, 1, 8, 0), "thin": (1, 20_000, 8, 2),
}  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bits: int = 8, color: int = 2, *,
    more: bytes = b"", pixels: bytes | None = None,
) -> bytes:  # fmt: skip
    """A PNG of zeros, or of the pixels that are given."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    if pixels is None:
        line = bytes(1 + (width * {0: 1, 2: 3}[color] * bits + 7) // 8)
        packer, parts = zlib.compressobj(1), []
        for start in range(0, height, 64):
            parts.append(packer.compress(line * min(64, height - start)))
        packed = b"".join([*parts, packer.flush()])
    else:
        packed = zlib.compress(pixels)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


_EXIF = b"II*\0\x08\0\0\0\1\0"
CHUNKS = {
    "second-head": chunk(b"IHDR", struct.pack(">IIBBBBB", 9999, 9999, 8, 2, 0, 0, 0)),
    "text-bomb": chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2 * 10**8), 1)),
    "profile-bomb": chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(10**8), 1)),
    "profile-garbage": chunk(b"iCCP", b"p\0\0zz"), "unknown": chunk(b"ABCD", b"x"),
    "texts": chunk(b"tEXt", b"k\0" + b"v" * 1000) * 3000, "no-density": chunk(b"pHYs", bytes(9)),
    "exif-garbage": chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 200),
    "exif-99": chunk(b"eXIf", _EXIF + b"\x12\1\3\0\1\0\0\0\x63\0\0\0\0\0\0\0"),
    "exif-loop": chunk(b"eXIf", _EXIF + b"\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0"),
    "no-frames": chunk(b"acTL", bytes(8)), "frames": chunk(b"acTL", b"\x7f" + b"\xff" * 7),
    "transparency": chunk(b"tRNS", b"\1"), "palette": chunk(b"PLTE", b""),
    "length": struct.pack(">I", 2**31 - 1) + b"tEXt",
}  # fmt: skip


def _bmp(width: int, height: int) -> bytes:
    size = (width & 0x7FFFFFFF, height & 0x7FFFFFFF)
    info = struct.pack("<IiiHHIIiiII", 40, *size, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def _ppm(width: int, height: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (width, height)


PPMS = {
    "minus": b"P6\n-5 5\n255\n" + bytes(75), "depth-0": b"P6\n2 2\n0\n" + bytes(12),
    "words": b"P3\n2 2\n255\nfoo bar", "digits": b"P6\n" + b"9" * 100_000 + b" 2\n255\n",
    "floats": b"Pf\n4 4\n-1.0\n" + struct.pack("<16f", *[float("nan")] * 16),
}  # fmt: skip

_TIFF = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 273: 122, 277: 1, 278: 16, 279: 256}
TAGS: dict[int, tuple[int, ...]] = {
    256: (0, 2**31 - 1, 22_000), 257: (0, 2**31 - 1), 258: (0, 7, 64), 259: (5, 7, 8, 9999),
    262: (2, 3, 99), 273: (0, 10**8, 2**32 - 1), 277: (0, 60_000), 278: (0, 1), 279: (0, 2**32 - 1),
    274: (9,), 34665: (8,), 330: (8,), 322: (0,), 339: (3, 9),
}  # fmt: skip


def _tiff(changed: dict[int, int]) -> bytes:
    """A grey image of 16 x 16 with some fields changed; the last points to the first directory."""
    fields = {**_TIFF, **changed}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, fields[tag]) for tag in sorted(fields))
    directory = struct.pack("<H", len(fields)) + rows + struct.pack("<I", 8)
    return b"II*\0\x08\0\0\0" + directory + bytes(range(256))
