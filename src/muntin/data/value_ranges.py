# SPDX-License-Identifier: Apache-2.0
"""From values of more than 8 bits to 8 bits, by one range for a whole set of images.

Images stay uint8 in caches, augmentation and batches, at a quarter of the memory of floats: 256
levels are what published weights have learnt from. They are therefore spread over the values that a
set has, and over no others: `data.range` gives every level to the values that matter.

A range is (low, high): low and what lies below becomes 0, high and what lies above 255. What is not
finite is 0. An infinite limit is measured in the image itself; `UNSET` is the rule of runs without
a range, which depends on type and values of each image: 16 bits are divided by 257; integers beyond
them are stretched from lowest to highest; floats within [0, 1] are multiplied by 255, within
[0, 255] rounded, others stretched.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muntin.shapes import UInt8

ValueRange = tuple[float, float]

UNSET: ValueRange = (0.0, 0.0)
OWN: ValueRange = (-math.inf, math.inf)
"""For drawings: as much contrast as an image has."""


class PixelReading(NamedTuple):
    """How the values of files become pixels.

    Attributes:
        value_range: Values of more than 8 bits that become 0 and 255.
        bands: Channels that are read, from the first one on; 3 is RGB.
        bits: 8 = uint8; 16 = float32 on the same scale from 0 to 255, of which nothing is rounded.
    """

    value_range: ValueRange = UNSET
    bands: int = 3
    bits: Literal[8, 16] = 8


AnyReading = ValueRange | PixelReading
"""Of a range alone, 8 bits of three channels are read."""


def as_reading(how: AnyReading) -> PixelReading:
    """Complete what a caller says of how values are read."""
    return how if isinstance(how, PixelReading) else PixelReading(how)


LEVELS = 256
_TAIL = 0.1  # percent of the values at each end that may lie far out
_MARGIN = 0.1  # of the range; nearer values are no outliers
_FILL_LOW = -999.0
_FILL_HIGH = (32767.0, 65535.0, 2.0**31 - 1, 2.0**32 - 1)
_HUGE = 1e9


def robust_range(values: NDArray[np.generic]) -> ValueRange:
    """Measure the range of values: the middle 99.8 %, and what lies within a tenth beyond it.

    Left out are what is not finite, and what stands for missing data: -9999, 65535 and the like,
    where they are further from all other values than these are from each other.

    Examples:
        >>> robust_range(np.r_[np.arange(800.0, 1201), np.full(99, -9999.0), np.nan])
        (800.0, 1200.0)
    """
    finite = np.asarray(values, np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0
    lowest, highest = _without_fill(np.unique(finite))
    finite = finite[(finite >= lowest) & (finite <= highest)]
    low, high = (float(value) for value in np.percentile(finite, (_TAIL, 100 - _TAIL)))
    if low < high:
        margin = _MARGIN * (high - low)
        lowest, highest = max(lowest, low - margin), min(highest, high + margin)
    return lowest, highest if highest > lowest else lowest + 1


def _without_fill(levels: NDArray[np.float64]) -> ValueRange:
    """The lowest and the highest of sorted values that stand for what was measured."""
    while len(levels) > 16:
        if levels[0] <= _FILL_LOW and levels[1] - levels[0] > levels[-1] - levels[1]:
            levels = levels[1:]
        elif (levels[-1] in _FILL_HIGH or levels[-1] >= _HUGE) and (
            levels[-1] - levels[-2] > levels[-2] - levels[0]
        ):
            levels = levels[:-1]
        else:
            break
    return float(levels[0]), float(levels[-1])


def used_levels(values: NDArray[np.generic], value_range: ValueRange) -> int:
    """Count the levels, of 256, over which 98 % of the values are spread."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    if not known.size:
        return 0
    low, high = apply_range(np.percentile(known, (1, 99)), value_range).tolist()
    return int(high - low + 1)


def apply_range(values: NDArray[np.generic], value_range: ValueRange) -> UInt8[np.ndarray, "..."]:
    """Turn values to 8 bits by a range whose limits may be infinite."""
    return np.rint(scale_values(values, value_range)).astype(np.uint8)


def scale_values(values: NDArray[np.generic], value_range: ValueRange) -> NDArray[Any]:
    """Bring values to 0 to 255 by a range, without rounding."""
    low, high = value_range
    if math.isinf(low) or math.isinf(high):
        own = robust_range(values)
        low, high = own[0] if math.isinf(low) else low, own[1] if math.isinf(high) else high
    exact = np.dtype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
    scaled: NDArray[Any] = values.astype(exact)
    scaled = (scaled - exact.type(low)) * exact.type(255 / ((high - low) or 1))
    if scaled.dtype.kind == "f":
        scaled[~np.isfinite(scaled)] = 0
    return scaled.clip(0, 255)


def apply_type_rule(values: NDArray[np.generic], *, is_16_bit: bool) -> UInt8[np.ndarray, "..."]:
    """Turn the values of one image to 8 bits as runs without a range do."""
    if values.dtype.kind == "f":
        reals = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
        low, high = float(reals.min()), float(reals.max())
        if low >= 0 and high <= 1:
            reals = reals * 255
        elif low < 0 or high > 255:
            reals = (reals - low) * 255 / ((high - low) or 1)
        return np.rint(reals).astype(np.uint8)
    wide = values.astype(np.int64)
    low, high = int(wide.min()), int(wide.max())
    if not is_16_bit and low >= 0 and high <= 255:
        return wide.astype(np.uint8)
    if low >= 0 and high <= 65535:
        return ((wide + 128) // 257).astype(np.uint8)
    return np.rint((wide - low) * 255 / (high - low)).astype(np.uint8)
