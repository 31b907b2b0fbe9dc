# SPDX-License-Identifier: Apache-2.0
"""Values of more than 8 bits, of every type and number of channels, are read as stored."""

import io

import numpy as np
import pytest
from PIL import Image

from muntin.data.decoding import Decoding, decode, decode_values, decode_with_facts
from muntin.errors import DataError
from tests.data.deep_files import png_16, tiff

SHAPES = [(13, 7), (13, 7, 1), (13, 7, 2), (13, 7, 3), (13, 7, 4), (13, 7, 6)]


def values_of(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(3).random(shape)
    if np.dtype(kind).kind == "f":
        return (noise * 9 - 3).astype(kind)
    info = np.iinfo(kind)
    return (info.min + noise * (float(info.max) - info.min)).astype(kind)


def wanted(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values
    return values[..., :3] if values.shape[2] > 2 else values[..., 0]


@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[2:5])
def test_png(shape):
    values = values_of("uint16", shape)
    assert np.array_equal(decode_values(png_16(values)), wanted(values))


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int32", "f2", "f4", "f8"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"order": ">"},
        {"planar": True, "rows": 7},
        {"planar": True, "deflate": True, "rows": 4, "order": ">"},
        {"deflate": True, "predictor": 2},
        {"deflate": True, "predictor": 2, "order": ">", "rows": 99},
        {"deflate": True, "predictor": 3},
    ],
    ids=str,
)
def test_tiff(kind, how):
    if how.get("predictor") == 3 and np.dtype(kind).kind != "f":
        pytest.skip("for floats alone")
    for shape in SHAPES:
        values = values_of(kind, shape)
        found = decode_values(tiff(values, **how))
        assert found.dtype == values.dtype
        assert np.array_equal(found, wanted(values)), shape


def test_missing_data_named_by_the_file_is_nan():
    values = np.array([[5, -32000, 7, 9]], np.int16)
    found = decode_values(tiff(values, no_data="-32000"))
    assert np.array_equal(found, [[5, np.nan, 7, 9]], equal_nan=True)
    pixels = decode(tiff(values, no_data="-32000"), where="x", value_range=(-32000, 9))
    assert pixels[0, :, 0].tolist() == [255, 0, 255, 255]


@pytest.mark.parametrize("data", [png_16, tiff])
def test_colours_keep_their_balance(data):
    values = np.array([[[0, 1000, 2000], [4000, 2000, 500]]], np.uint16)
    pixels = decode(data(values), where="x", value_range=(0, 4000))
    assert pixels.tolist() == [[[0, 64, 128], [255, 128, 32]]]


def test_bands_of_8_bits_are_read_as_they_are():
    values = np.random.default_rng(0).integers(0, 256, (9, 8, 6), np.uint8)
    for value_range in ((0.0, 0.0), (5.0, 6.0)):
        pixels = decode(tiff(values), where="x", value_range=value_range)
        assert np.array_equal(pixels, values[..., :3])
    assert decode_values(tiff(values)) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["uint16", "f4"])
def test_orientation(orientation, kind):
    """As for 8 bits, which Pillow turns itself."""
    stored = np.arange(35, dtype=kind).reshape(5, 7)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored.astype(np.uint8)).save(file, "TIFF", exif=exif)
    upright = decode(file.getvalue(), where="x")
    how = Decoding(value_range=(0, 255))
    pixels, facts = decode_with_facts(tiff(stored, orientation=orientation), where="x", how=how)
    assert np.array_equal(pixels, upright)
    assert facts.orientation == orientation


@pytest.mark.parametrize("cut", [9, 60, 200])
def test_broken_files_are_errors(cut):
    values = np.random.default_rng(0).random((20, 20, 3)).astype(np.float32) * 1000
    for data in (png_16(values.astype(np.uint16)), tiff(values), tiff(values, deflate=True)):
        with pytest.raises(DataError, match=r"'b\.tif'"):
            decode(data[:cut], where="b.tif", value_range=(0.0, 1.0))
        assert decode_values(data[:cut]) is None
