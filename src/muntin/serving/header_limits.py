# SPDX-License-Identifier: Apache-2.0
"""Images that are small and take long to read: parts without end before or between the pixels."""

from __future__ import annotations

import struct

_JPEG = b"\xff\xd8"
MOST_PARTS = 1000
_BYTES_A_PART = 1024
"""A larger file may have a part more for each of so many bytes."""

MOST_SCANNED = 2e9
"""Pixels times the scans of a JPEG, each of which goes over all of them."""


def find_parts(data: bytes) -> str:
    """Say of which parts an image file has too many to read even its header; "" for none.

    Examples:
        >>> find_parts(bytes.fromhex("ffd8") + bytes.fromhex("fffe0002") * 5000)
        'more than 1019 segments'
    """
    most = MOST_PARTS + len(data) // _BYTES_A_PART
    if data.startswith(_JPEG):
        if _count_segments(data, most) > most:
            return f"more than {most} segments"
    elif data.startswith(b"\x89PNG\r\n\x1a\n") and _count_chunks(data, most) > most:
        return f"more than {most} chunks"
    return ""


def find_scans(data: bytes, pixels: int) -> str:
    """Say of how many scans an image file of so many pixels is, if they take long; "" if not."""
    scans = data.count(b"\xff\xda") if data.startswith(_JPEG) else 0
    return (
        f"{scans} scans of {pixels} pixels" if scans > 1 and scans * pixels > MOST_SCANNED else ""
    )


def _count_segments(data: bytes, most: int) -> int:
    """Count segments and fill bytes of a JPEG before its pixels, and stop after `most`."""
    place, count = 2, 0
    while count <= most and place + 4 <= len(data):
        count += 1
        if data[place] != 0xFF or data[place + 1] == 0xDA:
            break
        if data[place + 1] == 0xFF:
            place += 1
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return count


def _count_chunks(data: bytes, most: int) -> int:
    """Count the chunks of a PNG, and stop after `most`."""
    place, count = 8, 0
    while count <= most and place + 8 <= len(data):
        count += 1
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IEND":
            break
        place += 12 + length
    return count
