# SPDX-License-Identifier: Apache-2.0
import inspect
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from muntin.data.decoding import Decoding, decode, decode_with_facts, open_image
from muntin.data.listing import check_classify
from muntin.data.mask_values import read_values
from muntin.data.trees import read_size
from muntin.data.value_ranges import UNSET
from muntin.errors import DataError, MuntinWarning
from muntin.ops.torchvision_operators import decode_file
from tests.data.deep_files import tiff

SMOOTH = np.stack(
    np.broadcast_arrays(
        np.linspace(20, 220, 24)[:, None],
        np.linspace(200, 30, 36)[None, :],
        np.linspace(0, 90, 36)[None, :],
    ),
    axis=-1,
).astype(np.uint8)


def packed(image: Image.Image, how: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, how, **settings)
    return file.getvalue()


def smooth_jpeg(**settings: object) -> bytes:
    return packed(Image.fromarray(SMOOTH), "JPEG", quality=95, **settings)


@pytest.mark.parametrize("how", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact(how):
    pixels = decode(packed(Image.fromarray(SMOOTH), how), where="x")
    assert np.array_equal(pixels, SMOOTH)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("how", ["JPEG", "WEBP"])
def test_lossy_formats_are_near(how):
    pixels = decode(packed(Image.fromarray(SMOOTH), how, quality=95), where="x")
    assert np.abs(pixels.astype(int) - SMOOTH).mean() < 4


def test_grey_becomes_three_equal_channels():
    grey = SMOOTH[..., 0]
    pixels = decode(packed(Image.fromarray(grey), "PNG"), where="x")
    assert np.array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


def test_transparency_is_dropped_and_the_colour_below_kept():
    alpha = np.zeros((24, 36, 1), np.uint8)
    data = packed(Image.fromarray(np.concatenate((SMOOTH, alpha), axis=2)), "PNG")
    assert np.array_equal(decode(data, where="x"), SMOOTH)
    data = packed(Image.fromarray(SMOOTH[..., 0]).convert("LA"), "PNG")
    assert np.array_equal(decode(data, where="x")[..., 1], SMOOTH[..., 0])


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palette_is_looked_up_without_a_warning(transparency):
    ids = np.arange(24 * 36).reshape(24, 36).astype(np.uint8) % 3
    image = Image.fromarray(ids).convert("P")
    colours = [[255, 0, 0], [0, 200, 0], [0, 0, 100]]
    image.putpalette(np.array(colours, np.uint8).tobytes())
    settings = {} if transparency is None else {"transparency": transparency}
    pixels, facts = decode_with_facts(packed(image, "PNG", **settings), where="x")
    assert facts.mode == "P"
    assert np.array_equal(pixels, np.array(colours, np.uint8)[ids])


def test_black_and_white():
    image = Image.fromarray(SMOOTH).convert("1")
    pixels = decode(packed(image, "PNG"), where="x")
    assert set(np.unique(pixels)) == {0, 255}


@pytest.mark.parametrize("how", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(how):
    values = np.array([[0, 257, 128 * 257, 65535, 128, 129]], np.uint16)
    data = packed(Image.fromarray(values), how)
    pixels, facts = decode_with_facts(data, where="x", how=Decoding(value_range=UNSET))
    assert facts.mode.startswith("I;16")
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255, 0, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 100, 255]], [0, 100, 255]),
        ([[0, 257, 65535]], [0, 1, 255]),
        ([[-100, 0, 100]], [0, 128, 255]),
        ([[100000, 150000, 200000]], [0, 128, 255]),
    ],
)
def test_32_bit_integers(values, expected):
    image = Image.fromarray(np.array(values, np.int32))
    pixels = decode(packed(image, "TIFF"), where="x", value_range=UNSET)
    assert pixels[0, :, 2].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 0.5, 1]], [0, 128, 255]),
        ([[0, 99.6, 255]], [0, 100, 255]),
        ([[-1, 0, 1]], [0, 128, 255]),
        ([[0, 500, 1000]], [0, 128, 255]),
        ([[0, np.nan, 1]], [0, 0, 255]),
        ([[3000, 3000, 3000]], [0, 0, 0]),
    ],
)
def test_float_images(values, expected):
    image = Image.fromarray(np.array(values, np.float32))
    pixels = decode(packed(image, "TIFF"), where="x", value_range=UNSET)
    assert pixels[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_that_are_not_finite_are_told(kind):
    values = np.array([[0, np.nan, 1, np.inf]], kind)
    data = tiff(values) if kind == np.float64 else packed(Image.fromarray(values), "TIFF")
    for limits, outside in ((UNSET, 0), ((0.0, 1.0), 0.5), ((-1.0, 0.5), 0.75)):
        facts = decode_with_facts(data, where="x", how=Decoding(value_range=limits))[1]
        assert (facts.unknown, facts.outside) == (True, outside)


def test_cmyk_jpeg_keeps_its_colours():
    data = packed(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    pixels, facts = decode_with_facts(data, where="x")
    assert facts.mode == "CMYK"
    assert np.abs(pixels.astype(int) - SMOOTH).mean() < 8
    # Pillow writes Adobe's inverted kind; marker and inversion belong together.
    assert b"Adobe" in data


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(how, orientation):
    upright = SMOOTH
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    stored = Image.fromarray(np.ascontiguousarray(back(upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"quality": 95} if how in ("JPEG", "WEBP") else {}
    pixels = decode(packed(stored, how, exif=exif, **settings), where="x")
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 4


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_broken_exif_does_not_matter(exif):
    assert decode(smooth_jpeg(exif=exif), where="x").shape == SMOOTH.shape


def test_of_several_frames_the_first_is_taken():
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (50, 200)]
    data = packed(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(decode(data, where="x"), np.full((8, 8, 3), 50))


@pytest.mark.parametrize(("suffix", "mode"), [("tif", "RGB"), ("tif", "I;16"), ("webp", "RGB")])
def test_further_pages_are_told_once(tmp_path: Path, suffix, mode):
    pages = [Image.fromarray(np.full((20, 20), value, np.uint16)) for value in (9, 200)]
    pages = pages if mode == "I;16" else [page.convert("L").convert(mode) for page in pages]
    folder = tmp_path / "data"
    for number in range(6):
        place = folder / "ab"[number % 2] / f"{number}.{suffix}"
        place.parent.mkdir(parents=True, exist_ok=True)
        pages[0].save(place, save_all=number < 2, append_images=pages[1:] * (number < 2))
    (line,) = (one for one in check_classify(folder).lines if "pages" in one)
    assert line.startswith("2 images of several pages")
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        for path in sorted(folder.rglob("*.*")):
            open_image(path)
    assert [one.category for one in caught] == [MuntinWarning]


def test_empty_file():
    with pytest.raises(DataError, match=r"must hold data, got 0 bytes in 'a/b.jpg'"):
        decode(b"", where="a/b.jpg")


def test_truncated_jpeg():
    data = smooth_jpeg()
    with pytest.raises(DataError, match=r"'cut\.jpg' must .* (?i:truncated)"):
        decode(data[: len(data) * 2 // 3], where="cut.jpg")


def test_truncated_png():
    data = packed(Image.fromarray(SMOOTH), "PNG")
    with pytest.raises(DataError, match=r"'cut\.png' must be"):
        decode(data[: len(data) // 2], where="cut.png")


def test_text_renamed():
    with pytest.raises(DataError, match=r"'note\.jpg' .* got 12 bytes .* unknown format"):
        decode(b"not an image", where="note.jpg")


def test_eps_is_refused():
    """Pillow would start Ghostscript for it."""
    with pytest.raises(DataError, match=r"unknown format"):
        decode(packed(Image.fromarray(SMOOTH), "EPS"), where="x.eps")


@pytest.mark.parametrize("pixels", [24 * 36 // 3, 24 * 36 - 1])
def test_pillows_own_limit_is_lifted_and_restored(monkeypatch, pixels):
    """Below half the image Pillow raises; below the image it warns."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
    assert decode(smooth_jpeg(), where="x").shape == SMOOTH.shape
    assert pixels == Image.MAX_IMAGE_PIXELS


def test_bomb_is_refused_without_being_unpacked():
    data = bytearray(packed(Image.new("1", (8, 8)), "PNG"))
    struct.pack_into(">II", data, 16, 30000, 20000)  # the size in its header
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    with pytest.raises(DataError, match=r"at most 500 million pixels, got 20000 x 30000"):
        decode(bytes(data), where="x")


def test_an_image_within_the_limit_may_exceed_the_budget(monkeypatch):
    """As the message says, the variable raises the limit."""
    data = packed(Image.new("1", (600, 400)), "PNG")
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "1M")
    with pytest.raises(DataError, match=r"'x\.png'.*400 x 600 .*MUNTIN_MAX_MEMORY"):
        decode(data, where="x.png")
    monkeypatch.setenv("MUNTIN_MAX_MEMORY", "8M")
    assert decode(data, where="x.png").shape == (400, 600, 3)


@pytest.mark.parametrize(
    ("hint", "side"), [(None, 400), (201, 400), (200, 200), (60, 100), (9, 50)]
)
def test_shrink_hint_never_goes_below(hint, side):
    large = Image.fromarray(SMOOTH).resize((600, 400), Image.Resampling.BICUBIC)
    pixels = decode(packed(large, "JPEG", quality=95), where="x", shrink_hint=hint)
    assert min(pixels.shape[:2]) == side
    want = np.asarray(large.resize(pixels.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(pixels - want).mean() < 3


def test_shrink_hint_leaves_other_formats_alone():
    assert decode(packed(Image.fromarray(SMOOTH), "PNG"), where="x", shrink_hint=2).shape[0] == 24


def test_open_image_takes_paths_images_and_arrays(tmp_path: Path):
    path = tmp_path / "an image \u00e9.PNG"
    Image.fromarray(SMOOTH).save(path)
    alpha = np.dstack((SMOOTH, SMOOTH[..., :1]))
    for given in (path, str(path), Image.fromarray(SMOOTH), Image.open(path), SMOOTH, alpha):
        assert np.array_equal(open_image(given), SMOOTH)
    for grey in (SMOOTH[..., 0], SMOOTH[..., :1]):
        assert np.array_equal(open_image(grey)[..., 2], SMOOTH[..., 0])
    flipped = SMOOTH[:, ::-1]
    assert np.array_equal(open_image(flipped), flipped)


def test_open_image_copies():
    given = SMOOTH.copy()
    open_image(given)[:] = 0
    assert np.array_equal(given, SMOOTH)


def test_open_image_applies_exif_of_pil_images():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(smooth_jpeg(exif=exif)))
    assert open_image(image).shape == (36, 24, 3)


def test_open_image_errors(tmp_path: Path):
    with pytest.raises(DataError, match=r"image file at .*none\.jpg.*No such file"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match=r"image file at"):
        open_image(tmp_path)
    with pytest.raises(DataError, match=r"PIL image .* got list"):
        inspect.unwrap(open_image)([1, 2])  # past the checks of shapes
    with pytest.raises(DataError, match=r"got float64 with sides"):
        open_image(np.zeros((4, 4, 3)))
    for shape in ((3, 4, 5), (4,), (1, 4, 4, 3), (0, 4, 3)):
        with pytest.raises(DataError, match=r"uint8 .* H W"):
            open_image(np.zeros(shape, np.uint8))
    data = packed(Image.effect_noise((200, 200), 90), "JPEG")
    cut = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(DataError, match=r"PIL image .* got: .*truncated"):
        open_image(cut)


def test_large_images_are_opened_without_a_word(monkeypatch, tmp_path: Path):
    """Warnings are errors here; Pillow gives one above its limit, and an error above twice that."""
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    for limit in (500, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert decode(data, where="a.png").shape == (20, 30, 3)
        assert read_size(str(tmp_path), "a.png") == (20, 30)
        assert read_values(data, where="a.png", kind="index").shape == (20, 30)
        assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
def test_arrays_are_never_viewed(channels):
    sides = (4, 5, channels) if channels else (4, 5)
    given = np.arange(np.prod(sides), dtype=np.uint8).reshape(sides)
    given.flags.writeable = False
    found = open_image(given)
    grey = channels in (0, 1)
    assert (found == (given.reshape(4, 5, 1) if grey else given[..., :3])).all()
    assert found.shape == (4, 5, 3)
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert not np.shares_memory(found, given)


NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
OF_PILLOW = [
    *(("JPEG", {"subsampling": n, "quality": q, "progressive": p})
      for n in (0, 1, 2) for q in (30, 95) for p in (False, True)),
    ("JPEG", {"restart_marker_blocks": 2, "optimize": True}),
    ("JPEG", {"icc_profile": b"no profile", "comment": "words", "dpi": (72, 72)}),
    ("PNG", {}), ("PNG", {"dpi": (72, 72)}), ("PNG", {"compress_level": 0}),
    ("WEBP", {"quality": 40}), ("WEBP", {"lossless": True}),
]  # fmt: skip


@pytest.mark.parametrize(("how", "settings"), OF_PILLOW)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(37, 53), (8, 16), (1, 1), (1, 40), (31, 2)])
def test_the_bits_are_those_of_pillow(how, settings, mode, size):
    image = Image.fromarray(np.ascontiguousarray(NOISE[: size[0], : size[1]])).convert(mode)
    data = packed(image, how, **settings)
    with Image.open(io.BytesIO(data)) as opened:
        wanted = np.array(opened.convert("RGB"))
    pixels = decode(data, where="x")
    assert np.array_equal(pixels, wanted)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    found = decode_file(how, data, size)
    assert found is None or np.array_equal(found.permute(1, 2, 0), wanted)


def test_what_is_left_to_pillow():
    data = smooth_jpeg()
    assert decode_file("JPEG", data, (24, 36)) is not None
    assert decode_file("JPEG", data, (36, 24)) is None
    assert decode_file("JPEG", data[:-40], (24, 36)) is None
    png = packed(Image.fromarray(SMOOTH), "PNG")
    assert decode_file("PNG", png, (24, 36)) is None, "its decoder ends the process"


def test_damage_has_one_verdict():
    """Whatever is changed in a file: an error, or what Pillow makes of it."""
    rng = np.random.default_rng(1)
    for how in ("JPEG", "WEBP"):
        data = packed(Image.fromarray(NOISE), how)
        for _ in range(150):
            bad = bytearray(data)
            for place in rng.integers(len(bad), size=int(rng.integers(1, 4))):
                bad[place] = rng.integers(256)
            bad = bytes(bad[: int(rng.choice([len(bad), len(bad), rng.integers(len(bad))]))])
            with warnings.catch_warnings(action="ignore"):
                try:
                    wanted = pillow(bad)
                except Exception:
                    with pytest.raises(DataError, match=r"'x' must be|must hold data"):
                        decode(bad, where="x")
                else:
                    assert wanted is None or np.array_equal(decode(bad, where="x"), wanted)


def pillow(data: bytes) -> np.ndarray | None:
    """Decode RGB and grey of 8 bits by Pillow alone, upright; None for all other images."""
    with Image.open(io.BytesIO(data)) as opened:
        mode = opened.mode
        opened.load()
        if mode not in ("RGB", "L"):
            return None
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))
