# SPDX-License-Identifier: Apache-2.0
"""Images that are small and take long to read: parts without end before or between the pixels."""

from __future__ import annotations

import struct

MOST_PARTS = 1000
_BYTES_A_PART = 1024
"""A larger file may have a part more for each of so many bytes."""

MOST_SCANNED = 2e9
"""Pixels times the scans of a JPEG, each of which goes over all of them."""


def find_excess(data: bytes, pixels: int = 0) -> str:
    """Say of what an image file has too much; "" if it can be read in reasonable time.

    Args:
        data: The file.
        pixels: Of the image; 0 if they are not known yet.

    Example:
        >>> find_excess(bytes.fromhex("ffd8") + bytes.fromhex("fffe0002") * 5000)
        'more than 1019 segments'
    """
    most = MOST_PARTS + len(data) // _BYTES_A_PART
    if data.startswith(b"\xff\xd8"):
        if _count_segments(data, most) > most:
            return f"more than {most} segments"
        scans = data.count(b"\xff\xda")
        if scans > 1 and scans * pixels > MOST_SCANNED:
            return f"{scans} scans of {pixels} pixels"
    elif data.startswith(b"\x89PNG\r\n\x1a\n") and _count_chunks(data, most) > most:
        return f"more than {most} chunks"
    return ""


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
