# SPDX-License-Identifier: Apache-2.0
"""Images of a listing as they are decoded, and the range of their values of more than 8 bits."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muntin.data.archives import read_bytes
from muntin.data.decoding import Decoding, ImageInfo, decode_values, decode_with_facts
from muntin.data.deep_images import count_bands
from muntin.data.image_formats import format_of_suffix
from muntin.data.value_ranges import (
    LEVELS,
    UNSET,
    AnyReading,
    ValueRange,
    as_reading,
    robust_range,
    scale_values,
    used_levels,
)
from muntin.errors import DataError, MuntinWarning
from muntin.samples import Entry, Listing
from muntin.shapes import Real, Size

MAX_IMAGES = 256
"""Images, spread evenly over a set, whose values are measured."""

_SIDE = 128  # rows and columns of values that are taken of each
_FEW = 16  # levels
_LEAST_STD = 0.001
_EIGHT_BITS = frozenset(("JPEG", "MPO", "BMP", "GIF", "WEBP", "AVIF"))


def read_pixels(
    source: str,
    entry: Entry,
    value_range: AnyReading,
    *,
    size: Size | None = None,
    shrink_hint: int | None = None,
) -> tuple[Real[np.ndarray, "H W bands"], ImageInfo]:
    """Decode the image of an entry, so that its annotations, or else a mask of `size`, fit.

    `value_range` may say more than that of the values (`PixelReading`).

    Raises:
        DataError: It cannot be read.
    """
    how = Decoding(
        **as_reading(value_range)._asdict(), size=size or entry.size, shrink_hint=shrink_hint
    )
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

    `bands` are those of most images; of more than three, `mean` and `std` are of each, in [0, 1].
    `note` says what becomes of the values, `warning` that this uses few levels; "" if not so.
    """

    value_range: ValueRange = UNSET
    bands: int = 3
    bits: Literal[8, 16] = 8
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    note: str = ""
    warning: str = ""


def measure_range(listing: Listing, given: ValueRange = UNSET) -> MeasuredRange:
    """Measure the range of the images of more than 8 bits, or judge the `given` one; and bands."""
    counts: Counter[int] = Counter()
    thin: list[NDArray[Any]] = []
    for entry in listing.entries[:: -(-len(listing) // MAX_IMAGES) or 1]:
        if format_of_suffix(f".{entry.path.rpartition('.')[2]}") in _EIGHT_BITS:
            continue
        with contextlib.suppress(DataError):  # reading the data names it
            data = read_bytes(listing.source, entry.path)
            bands = count_bands(data)
            counts[bands] += 1
            # Every so many of the values: files of hundreds of images do not fit into memory.
            if (values := decode_values(data, bands)) is not None:
                rows, columns = (-(-side // _SIDE) for side in values.shape[:2])
                thin.append(values[::rows, ::columns].copy())
    bands = counts.most_common(1)[0][0] if counts else 3
    found = [one for one in thin if one.shape[2:] == (bands,)]
    if bands == 3:
        found = [one if one.ndim == 2 else one[..., :3] for one in thin]
    deep = [one for one in found if one.dtype != np.uint8]
    measured = _judge_range([one.astype(np.float64).ravel() for one in deep], given)
    # Where none can be read as bands (turned, or compressed as JPEG), three are read.
    return _measure_bands(measured, found, bands) if bands > 3 and found else measured


def _measure_bands(measured: MeasuredRange, found: list[NDArray[Any]], bands: int) -> MeasuredRange:
    """Add mean and standard deviation of each band, as the network will see its values."""
    scaled = [
        values if values.dtype == np.uint8 else scale_values(values, measured.value_range)
        for values in found
    ]
    pixels = np.concatenate(
        [values.reshape(-1, bands).astype(np.float64) / 255 for values in scaled]
    )
    note = f"{bands} bands, each normalised by its own mean and standard deviation (data.mean)"
    return replace(
        measured,
        bands=bands,
        mean=tuple(pixels.mean(axis=0).round(5).tolist()),
        std=tuple(pixels.std(axis=0).round(5).clip(min=_LEAST_STD).tolist()),
        note=f"{note}; {measured.note}" if measured.note else note,
    )


def _judge_range(found: list[NDArray[np.float64]], given: ValueRange) -> MeasuredRange:
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
        bits=16,
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
