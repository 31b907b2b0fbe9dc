# SPDX-License-Identifier: Apache-2.0
"""Images of a listing as they are decoded, and the range of their values of more than 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.data.archives import read_bytes
from muntin.data.decoding import Decoding, ImageInfo, decode_values, decode_with_facts
from muntin.data.image_formats import format_of_suffix
from muntin.data.value_ranges import LEVELS, UNSET, ValueRange, robust_range, used_levels
from muntin.errors import DataError
from muntin.samples import Entry, Listing
from muntin.shapes import Size, UInt8

MAX_IMAGES = 256
"""Images, spread evenly over a set, whose values are measured."""

_SIDE = 128  # rows and columns of values that are taken of each
_FEW = 16  # levels
_EIGHT_BITS = frozenset(("JPEG", "MPO", "BMP", "GIF", "WEBP", "AVIF"))


def read_pixels(
    source: str,
    entry: Entry,
    value_range: ValueRange,
    *,
    size: Size | None = None,
    shrink_hint: int | None = None,
) -> tuple[UInt8[np.ndarray, "H W 3"], ImageInfo]:
    """Decode the image of an entry, so that its annotations, or else a mask of `size`, fit.

    Raises:
        DataError: It cannot be read.
    """
    how = Decoding(value_range=value_range, size=size or entry.size, shrink_hint=shrink_hint)
    return decode_with_facts(read_bytes(source, entry.path), where=entry.path, how=how)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRange:
    """The range of a set, `UNSET` where no image has more than 8 bits.

    `note` says what becomes of the values, `warning` that this uses few levels; "" if not so.
    """

    value_range: ValueRange = UNSET
    note: str = ""
    warning: str = ""


def measure_range(listing: Listing, given: ValueRange = UNSET) -> MeasuredRange:
    """Measure the range of the images of more than 8 bits, or judge the `given` one."""
    found: list[NDArray[Any]] = []
    entries = listing.entries
    for entry in entries[:: -(-len(entries) // MAX_IMAGES) or 1]:
        if format_of_suffix(f".{entry.path.rpartition('.')[2]}") in _EIGHT_BITS:
            continue
        try:
            values = decode_values(read_bytes(listing.source, entry.path))
        except DataError:  # reading the data names it
            continue
        if values is not None:
            rows, columns = (-(-side // _SIDE) for side in values.shape[:2])
            found.append(values[::rows, ::columns].astype(np.float64).ravel())
    if not found:
        return MeasuredRange()
    measured = robust_range(np.concatenate(found))
    chosen = measured if given == UNSET else given
    low, high = (f"{value:g}" for value in chosen)
    note = f"images of more than 8 bits: values {low} to {high} become 0 to 255 (data.range)"
    few = sum(used_levels(values, chosen) < _FEW for values in found)
    text = ""
    if 4 * few >= len(found):
        text = (
            f"{few} of {len(found)} images of more than 8 bits use fewer than {_FEW} of {LEVELS} "
            f"levels: data.range is {low},{high} and values are {measured[0]:g} to "
            f"{measured[1]:g}. Set data.range to the values that matter"
        )
    return MeasuredRange(value_range=chosen, note=note, warning=text)
