# SPDX-License-Identifier: Apache-2.0
"""Images for drawings: three bands, chosen by their numbers, as red, green and blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from muntin.data.decoding import open_image, read_image
from muntin.data.deep_images import count_bands, read_bands
from muntin.data.value_ranges import OWN, apply_range
from muntin.errors import ConfigError
from muntin.shapes import UInt8


def open_bands(image: Any, bands: Sequence[int] = ()) -> UInt8[np.ndarray, "H W 3"]:  # noqa: ANN401
    """Open an image with as much contrast as it has: of the first three bands, or of others.

    Args:
        image: As for `open_image`.
        bands: Three numbers of bands, from 1, as red, green and blue; or one, as grey.

    Raises:
        ConfigError: There is no such band.
        DataError: The image cannot be read.
    """
    if not bands:
        return open_image(image)
    values = image if isinstance(image, np.ndarray) else None
    if isinstance(image, str | Path | bytes):
        data = image if isinstance(image, bytes) else read_image(image)
        values = read_bands(data) if count_bands(data) > 3 else None
    values = open_image(image) if values is None or values.ndim == 2 else values
    count = values.shape[2]
    if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
        message = (
            f"bands (--bands) must be one number or three, such as 4,3,2, from 1 to {count}, got "
            f"{','.join(map(str, bands))}."
        )
        raise ConfigError(message)
    chosen = values[..., [band - 1 for band in bands]]
    shown = chosen if chosen.dtype == np.uint8 else apply_range(chosen, OWN)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))
