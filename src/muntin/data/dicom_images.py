# SPDX-License-Identifier: Apache-2.0
"""Images of the DICOM standard (radiology), through pydicom.

Stored values become those of the modality by slope and intercept (PS3.3, C.7.6.16.2.9): Hounsfield
units of a CT. Where low values are bright (MONOCHROME1), they are negated. What the window of a
file says is for the eye: drawings use it, a network sees `data.range`.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muntin.errors import missing_extra
from muntin.untrusted import check_budget

_START = 128  # bytes before the signature
_COPIES = 24  # bytes a pixel, at the peak of reading


def is_dicom(data: bytes) -> bool:
    """Whether a file is one, by its signature."""
    return data[_START : _START + 4] == b"DICM"


def read_dicom(data: bytes, *, shown: bool = False) -> tuple[NDArray[Any], int]:
    """Read the values of the first frame, (H, W) or (H, W, 3) of colours; and count the frames.

    Those to be `shown` are cut off at the window of the file, if it has one.

    Raises:
        MissingExtra: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise missing_extra("pydicom", "dicom", "reading DICOM") from error  # noqa: EM101
    found: Any = pydicom.dcmread(io.BytesIO(data))
    frames = int(found.get("NumberOfFrames", 1) or 1)
    check_budget(_COPIES * int(found.Rows) * int(found.Columns), "a DICOM image")
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(found, index=0)  # colours as RGB
    if pixels.ndim == 3:
        return pixels, frames
    values = apply_modality_lut(pixels, found)
    if shown and ("WindowCenter" in found or "VOILUTSequence" in found):
        values = apply_voi_lut(values, found)
    exact = np.float64 if values.dtype.itemsize > 4 else np.float32
    values = values.astype(exact) if values.dtype.kind == "f" else values
    dark_is_high = found.PhotometricInterpretation == "MONOCHROME1"
    return np.negative(values.astype(np.float64)) if dark_is_high else values, frames
