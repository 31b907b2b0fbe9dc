# SPDX-License-Identifier: Apache-2.0
"""PNG and TIFF files of any type and number of channels, written by hand."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png_16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits: H W, or H W with 2 (alpha), 3 or 4 channels; rows are filtered by 1."""
    height, width = values.shape[:2]
    channels = values.reshape(height, width, -1).shape[2]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8).astype(np.int16)
    shifted = np.pad(rows, ((0, 0), (2 * channels, 0)))[:, : rows.shape[1]]
    body = b"".join(b"\x01" + line.tobytes() for line in (rows - shifted).astype(np.uint8))
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def tiff(
    values: np.ndarray, *, order="<", planar=False, deflate=False, predictor=1, rows=5,
    orientation=1, no_data="",
) -> bytes:  # fmt: skip
    """A TIFF in strips of a few rows: H W, or H W and channels."""
    values = values.reshape(*values.shape[:2], -1)
    height, width, bands = values.shape
    planes = np.moveaxis(values, 2, 0)[..., None] if planar else values[None]
    parts = [
        _strip(plane[start : start + rows], order, predictor)
        for plane in planes
        for start in range(0, height, rows)
    ]
    parts = [zlib.compress(part) for part in parts] if deflate else parts
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    offsets = np.cumsum([8, *(len(part) for part in parts)])
    tags = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [8 * values.itemsize] * bands),
        (259, "H", [8 if deflate else 1]), (262, "H", [2 if bands == 3 else 1]),
        (273, "I", offsets[:-1]), (274, "H", [orientation]), (277, "H", [bands]),
        (278, "I", [rows]), (279, "I", [len(part) for part in parts]),
        (284, "H", [2 if planar else 1]), (317, "H", [predictor]),
    ]  # fmt: skip
    if bands > 3:
        tags.append((338, "H", [0] * (bands - 1)))
    tags.append((339, "H", [kind] * bands))
    if no_data:
        tags.append((42113, "s", [f"{no_data}\0".encode()]))
    return _join(b"".join(parts), tags, order)


def _strip(values: np.ndarray, order: str, predictor: int) -> bytes:
    stored = values.astype(values.dtype.newbyteorder(order))
    if predictor == 2:
        whole = values.view(f"u{values.itemsize}")
        return (
            np.diff(whole, axis=1, prepend=whole.dtype.type(0))
            .astype(f"{order}u{values.itemsize}")
            .tobytes()
        )
    if predictor == 3:
        rows, _, bands = values.shape
        big = values.astype(values.dtype.newbyteorder(">")).reshape(rows, -1, 1)
        split = big.view(np.uint8).swapaxes(1, 2).reshape(rows, -1, bands)
        return np.diff(split, axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes()
    return stored.tobytes()


def _join(body: bytes, tags: list, order: str) -> bytes:
    start = 8 + len(body)
    extra = start + 2 + 12 * len(tags) + 4
    entries, more = b"", b""
    for tag, letter, content in tags:
        data = (
            content[0]
            if letter == "s"
            else struct.pack(f"{order}{len(content)}{letter}", *map(int, content))
        )
        number = {"H": 3, "I": 4, "s": 2}[letter]
        count = len(data) if letter == "s" else len(content)
        entries += struct.pack(order + "HHI", tag, number, count)
        if len(data) <= 4:
            entries += data.ljust(4, b"\0")
        else:
            entries += struct.pack(order + "I", extra + len(more))
            more += data + b"\0" * (len(data) % 2)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, start)
    return head + body + struct.pack(order + "H", len(tags)) + entries + b"\0" * 4 + more
