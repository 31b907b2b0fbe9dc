# SPDX-License-Identifier: Apache-2.0
"""Images of more than three bands, of 16 bits and of DICOM, as they are read, changed and drawn."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import muntin
from muntin.data.band_selection import open_bands
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.decoding import Decoding, decode_with_facts, open_image
from muntin.data.deep_images import count_bands
from muntin.data.dense_transforms import SegmentationAugmentConfig
from muntin.data.entry_images import measure_range
from muntin.data.joint_transforms import adjust_bands, jitter_colors
from muntin.data.listing import check_classify, list_classify
from muntin.data.transforms import Preprocessing, Sample, normalise, resize, to_shown
from muntin.data.value_ranges import PixelReading
from muntin.errors import ConfigError, DataError
from muntin.targets import LabelMap
from tests.bands import BANDS, CLASSES, values_of, write_bands
from tests.data.deep_files import png_16, tiff

WHOLE = PixelReading((0, 65535), BANDS, 16)
PRE = Preprocessing(
    img_size=(16, 16), mean=(0.5,) * BANDS, std=(0.2,) * BANDS, in_chans=BANDS, bits=16
)


def tensor_of(values) -> torch.Tensor:
    return torch.from_numpy(open_image(tiff(values), WHOLE)).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("bands", [4, 5, 13])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("form", [{}, {"planar": True}, {"order": ">"}, {"deflate": True}])
def test_all_bands_are_read(bands, kind, form):
    values = np.random.default_rng(0).integers(0, 200, (9, 7, bands)).astype(kind)
    data = tiff(values, **form)
    assert count_bands(data) == bands
    how = Decoding(value_range=(0, 255), bands=bands, bits=16)
    pixels, facts = decode_with_facts(data, where="x.tif", how=how)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels, values, atol=1e-4)
    assert str(bands) in facts.mode
    # And the first three of them, as before.
    assert open_image(data, (0, 255)).shape == (9, 7, 3)


def test_another_number_of_bands_is_refused_with_both_numbers():
    data = tiff(values_of(0, 0)[..., :4])
    with pytest.raises(DataError, match=r"5 bands.*4 bands"):
        open_image(data, WHOLE)
    with pytest.raises(DataError, match=r"5 bands.*3 bands"):
        open_image(png_16(values_of(0, 0)[..., :3]), WHOLE)
    with pytest.raises(DataError, match="5"):
        open_image(np.zeros((4, 4, 3), np.uint8), WHOLE)
    with pytest.raises(DataError, match="upright"):
        open_image(tiff(values_of(0, 0), orientation=6), WHOLE)


@pytest.mark.parametrize("make", [png_16, tiff])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_value_of_16_bits_stays_apart(make, channels):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    stored = values if channels == 1 else np.stack([values, values[::-1], values.T], axis=2)
    pixels = open_image(make(stored), PixelReading((0, 65535), 3, 16))
    assert pixels.shape == (256, 256, 3)
    assert len(np.unique(pixels[..., 0])) == 65536
    expected = stored.astype(np.float64) * (255 / 65535)
    expected = np.repeat(expected[..., None], 3, 2) if channels == 1 else expected
    assert np.abs(pixels - expected).max() < 1e-4
    assert np.array_equal(open_image(make(stored), (0, 65535)), np.rint(pixels))


def test_images_of_8_bits_among_deep_ones_keep_their_scale():
    import PIL.Image

    file, pixels = io.BytesIO(), np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    PIL.Image.fromarray(pixels).save(file, "PNG")
    found = open_image(file.getvalue(), PixelReading((1000, 2000), 3, 16))
    assert found.dtype == np.float32
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_orientation_is_the_same_with_16_bits(orientation):
    values = np.random.default_rng(1).integers(0, 65535, (6, 9, 3)).astype(np.uint16)
    data = tiff(values, orientation=orientation)
    few, many = open_image(data, (0, 65535)), open_image(data, PixelReading((0, 65535), 3, 16))
    assert np.array_equal(few, np.rint(many))


def test_low_bits_reach_the_network_through_every_step():
    values = np.full((32, 32, BANDS), 3000, np.uint16)
    other = values.copy()
    other[..., 2] += 1
    for step in (
        lambda x: x,
        lambda x: resize(x, (16, 16), "bilinear"),
        lambda x: resize(x, (48, 40), "bicubic"),
        lambda x: augmented(x, AugmentConfig(crop_scale=1.0, flip=0.0, jitter=0.2)),
        lambda x: segmented(x, SegmentationAugmentConfig(jitter=0.3)),
        lambda x: whole_batch(x),
    ):
        first, second = (step(tensor_of(one)) for one in (values, other))
        assert first.dtype == torch.float32
        inputs = [normalise(one[None], PRE) for one in (first, second)]
        assert (inputs[0][:, 2] != inputs[1][:, 2]).all()
        assert torch.equal(inputs[0][:, 0], inputs[1][:, 0])


def augmented(image, config):
    return config.augment(Sample(image, (32, 32), None), PRE, 5).pixels


def segmented(image, config):
    labels = LabelMap(torch.zeros(32, 32, dtype=torch.int16))
    return config.augment(Sample(image, (32, 32), labels), PRE, 5).pixels


def whole_batch(image):
    draws = np.full((1, 11), 0.4)
    return AugmentConfig(erase=0.0).augment_batch(image[None], draws, PRE)[0]


def test_augmentation_of_bands_changes_no_colours_but_brightness_and_contrast():
    image = tensor_of(values_of(0, 0))
    config = AugmentConfig(crop_scale=1.0, crop_ratio=1.0, flip=0.0, auto="trivialaugment")
    for seed in range(4):
        found = config.augment(Sample(image, (16, 16), None), PRE, seed).pixels
        assert found.shape == image.shape
    changed = adjust_bands(torch.tensor([[[10.0, 30.0]], [[100.0, 200.0]]]), 1.5, 0.5)
    assert changed.flatten().tolist() == pytest.approx([22.5, 37.5, 176.25, 228.75])
    whole = adjust_bands(torch.tensor([[[10, 30]]] * 4, dtype=torch.uint8), 1.0, 2.0)
    assert whole.dtype == torch.uint8
    assert whole[0].flatten().tolist() == [0, 40]
    assert torch.equal(jitter_colors(image, 0.0, np.random.default_rng(0)), image)
    assert (jitter_colors(image, 0.9, np.random.default_rng(3)) != image).any()


def test_bands_are_measured_one_by_one(tmp_path):
    listing = list_classify(write_bands(tmp_path / "set")).train
    measured = measure_range(listing)
    assert measured.bands == BANDS
    assert measured.bits == 16
    low, high = measured.value_range
    every = np.stack([values_of(c, n) for c in (0, 1) for n in range(6)]).astype(float)
    scaled = ((every - low) / (high - low)).clip(0, 1).reshape(-1, BANDS)
    assert measured.mean == pytest.approx(scaled.mean(axis=0), abs=2e-3)
    assert measured.std == pytest.approx(scaled.std(axis=0), abs=2e-3)


def test_bands_of_turned_files_are_not_measured(tmp_path):
    for number in range(2):
        (tmp_path / "ab"[number]).mkdir()
        data = tiff(values_of(0, number), orientation=6)
        (tmp_path / "ab"[number] / "0.tif").write_bytes(data)
    assert measure_range(list_classify(tmp_path).train).bands == 3


def test_check_names_images_of_another_number_of_bands(tmp_path):
    data = write_bands(tmp_path / "set")
    (data / CLASSES[0] / "odd.tif").write_bytes(tiff(values_of(0, 9)[..., :4]))
    report = check_classify(data)
    faults = [one for one in report.problems if one.severity == "error"]
    assert [one.file for one in faults] == ["dry/odd.tif"]
    assert "5 bands" in faults[0].what
    assert "4 bands" in faults[0].what
    assert any("5 bands" in line for line in report.lines)


def test_drawings_show_chosen_bands():
    values = np.zeros((8, 8, BANDS), np.uint16)
    for band in range(BANDS):
        values[..., band] = 1000 * band
    shown = open_bands(tiff(values), (5, 1, 3))
    assert shown.dtype == np.uint8
    assert shown[0, 0].tolist() == [255, 0, 128]
    assert (open_bands(values, (5, 1, 3)) == shown).all()
    grey = open_bands(tiff(values + np.arange(8, dtype=np.uint16)[:, None]), (2,))
    assert (grey[..., 0] == grey[..., 2]).all()
    assert open_bands(tiff(values)).shape == (8, 8, 3)
    for wrong in ((6, 1, 1), (0, 1, 2), (1, 2)):
        with pytest.raises(ConfigError, match="from 1 to 5"):
            open_bands(tiff(values), wrong)
    assert to_shown(torch.full((5, 2, 2), 99.6)).tolist() == [[[100] * 3] * 2] * 2


def test_drawings_choose_bands_of_packed_images(tmp_path):
    folder, out = write_bands(tmp_path / "set", each=1), tmp_path / "packed"
    muntin.pack("classify", folder, out)
    listing = list_classify(out).train
    path = listing.entries[0].path
    shown = open_bands(out / path, (4, 1, 2))
    assert (shown == open_bands(folder / path, (4, 1, 2))).all()
    with pytest.raises(DataError):
        open_bands(tmp_path / "none.tif", (1,))


def dicom(values: np.ndarray, **tags) -> bytes:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    one = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    one.Rows, one.Columns = values.shape
    one.BitsAllocated, one.BitsStored, one.HighBit = 16, 16, 15
    one.SamplesPerPixel, one.PixelRepresentation = 1, int(values.dtype.kind == "i")
    one.PhotometricInterpretation = "MONOCHROME2"
    one.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(one, name, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, one, enforce_file_format=True)
    return file.getvalue()


def test_dicom_has_values_of_its_modality():
    values = np.array([[0, 1024], [2024, 3024]], np.uint16)
    scale = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    data = dicom(values, **scale)
    how = Decoding(value_range=(-1024, 2000), bits=16)
    pixels, facts = decode_with_facts(data, where="x.dcm", how=how)
    assert facts.format == "DICOM"
    expected = (values.astype(float) - 1024 + 1024) * 255 / 3024
    assert np.allclose(pixels[..., 1], expected, atol=1e-3)
    window = dicom(values, WindowCenter=500, WindowWidth=1000, **scale)
    assert np.allclose(decode_with_facts(window, where="x.dcm", how=how)[0], pixels)
    shown = open_image(window)  # for drawings: what the window shows
    assert shown[..., 0].tolist() == [[0, 0], [255, 255]]
    dark = open_image(dicom(values, PhotometricInterpretation="MONOCHROME1"))
    assert dark[0, 0, 0] > dark[1, 1, 0]


def test_broken_dicom_is_named():
    data = dicom(np.zeros((8, 8), np.uint16))
    with pytest.raises(DataError, match=r"x\.dcm"):
        decode_with_facts(data[:-50], where="x.dcm")
