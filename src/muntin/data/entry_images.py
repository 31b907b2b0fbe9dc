# SPDX-License-Identifier: Apache-2.0
"""Images of a listing as they are decoded, and the range of their values of more than 8 bits."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muntin.data.archives import read_bytes
from muntin.data.decoding import Decoding, ImageInfo, decode_values, decode_with_facts
from muntin.data.image_formats import format_of_suffix
from muntin.data.value_ranges import LEVELS, UNSET, ValueRange, robust_range, used_levels
from muntin.errors import DataError, MuntinWarning
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


def is_readable(source: str, entry: Entry) -> bool:
    """Whether the image of an entry can be decoded."""
    try:
        read_pixels(source, entry, UNSET)
    except (DataError, OSError):
        return False
    return True


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
    found: list[NDArray[np.float64]] = []
    for entry in listing.entries[:: -(-len(listing) // MAX_IMAGES) or 1]:
        if format_of_suffix(f".{entry.path.rpartition('.')[2]}") in _EIGHT_BITS:
            continue
        with contextlib.suppress(DataError):  # reading the data names it
            values = decode_values(read_bytes(listing.source, entry.path))
            if values is not None:
                rows, columns = (-(-side // _SIDE) for side in values.shape[:2])
                found.append(values[::rows, ::columns].astype(np.float64).ravel())
    if not found:
        note = "data.range has no effect here: no image has more than 8 bits"
        return MeasuredRange(value_range=given, note="" if given == UNSET else note)
    measured = robust_range(np.concatenate(found))
    chosen = measured if given == UNSET else given
    few = sum(used_levels(values, chosen) < _FEW for values in found)
    text = (
        f"{few} of {len(found)} images of more than 8 bits use fewer than {_FEW} of {LEVELS} "
        f"levels: data.range is {chosen[0]:g},{chosen[1]:g}, their values are {measured[0]:g} to "
        f"{measured[1]:g}. Set data.range to the values that matter"
    )
    return MeasuredRange(
        value_range=chosen,
        note=f"values {chosen[0]:g} to {chosen[1]:g} of images of more than 8 bits become 0 to 255 "
        "(data.range)",
        warning=text if 4 * few >= len(found) else "",
    )


def choose_range(train: Listing, val: Listing, given: ValueRange) -> MeasuredRange:
    """Measure the range of `train`; warn where it or `val` uses little of it, or of a given one."""
    found = measure_range(train, given)
    others = found if val is train else measure_range(val, found.value_range)
    for text in dict.fromkeys(filter(None, (found.warning, others.warning))):
        warnings.warn(text, MuntinWarning, stacklevel=3)
    return found
