# SPDX-License-Identifier: Apache-2.0
"""What Pillow opens is read in every layout; what it cannot is named with the way out."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.decoding import decode, open_image
from muntin.data.detection import check_detect, list_detect
from muntin.data.entry_images import read_pixels
from muntin.data.image_formats import (
    format_of_suffix,
    image_suffixes,
    is_image,
    readable_formats,
    way_out,
)
from muntin.data.listing import check_classify, list_classify
from muntin.data.semantic import check_semantic, list_semantic
from muntin.data.transforms import Preprocessing
from muntin.errors import DataError, MuntinWarning
from muntin.prediction.batch import find_images, read_images

PIXELS = np.stack(np.broadcast_arrays(np.arange(24)[:, None] * 9, np.arange(36) * 6, 90), -1)
PIXELS = PIXELS.astype(np.uint8)
# What the Pillow that is installed can write of what it reads.
WRITTEN = {
    suffix: name
    for suffix, name in {
        ".avif": "AVIF", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".mpo": "MPO", ".jpe": "JPEG",
        ".tga": "TGA", ".pnm": "PPM", ".dib": "DIB", ".pcx": "PCX", ".sgi": "SGI",
        ".qoi": "QOI", ".dds": "DDS", "": "PNG",
    }.items()
    if Image.init() is None or (name in Image.SAVE and (name in Image.OPEN or name == "MPO"))
}  # fmt: skip
UNREAD = {".cr2": "TIFF", ".dcm": "", ".jxl": "", ".svg": ""}
# An image of an iPhone is HEIC whatever it is called; 12 bytes tell.
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
has_heif = "HEIF" in readable_formats()


def write(place: Path, kind: str = "JPEG") -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind in ("", "HEIC"):
        place.write_bytes(HEIC if kind else b"of another format")
    else:
        Image.fromarray(PIXELS).save(place, kind)


def coco(root: Path, names: list[str], size=(24, 36)) -> Path:
    images = [
        {"id": n, "file_name": name, "height": size[0], "width": size[1]}
        for n, name in enumerate(names)
    ]
    things = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 3, 10, 8], "iscrowd": 0, "area": 80}
        for n in range(len(names))
    ]
    values = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "a"}]}
    (root / "all.json").write_text(json.dumps(values))
    return root


@pytest.mark.parametrize(("suffix", "kind"), WRITTEN.items())
def test_read_in_every_layout(tmp_path, suffix, kind):
    names = [f"{place}/{number}{suffix}" for place in "ab" for number in range(2)]
    for name in names:
        write(tmp_path / "classes" / name, kind)
        write(tmp_path / "coco" / "images" / name.replace("/", ""), kind)
        label = tmp_path / "yolo" / "labels" / f"{name.replace('/', '')[:2]}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.2 0.2\n")
        write(tmp_path / "yolo" / "images" / name.replace("/", ""), kind)
    (tmp_path / "yolo" / "classes.txt").write_text("a\n")
    coco(tmp_path / "coco", [name.replace("/", "") for name in names])
    assert len(list_classify(tmp_path / "classes").train) == 4
    for folder in ("coco", "yolo"):
        found = list_detect(tmp_path / folder)
        assert len(found.train) == 4
        assert not found.problems
    assert check_classify(tmp_path / "classes").ok
    paths = find_images([tmp_path / "classes"])
    assert len(paths) == 4
    assert {image.size for image in read_images(paths)} == {(24, 36)}
    assert dict(check_classify(tmp_path / "classes").counts)["misnamed"] == (4 if not suffix else 0)


@pytest.mark.parametrize(("suffix", "kind"), [*UNREAD.items(), (".heic", "HEIC"), (".jpg", "HEIC")])
def test_formats_that_are_not_read_are_named(tmp_path, suffix, kind):
    if kind == "HEIC" and has_heif:
        pytest.skip("pillow-heif reads it")
    if format_of_suffix(suffix) == "DICOM":
        pytest.skip("pydicom reads it")
    advice = {"HEIC": r"muntin\[heif\]"}.get(kind, way_out(f"x{suffix}"))
    names = ["a/0.png", "b/1.png", f"a/2{suffix}", f"b/3{suffix}"]
    for name in names:
        write(tmp_path / "classes" / name, "PNG" if name.endswith(".png") else kind)
        write(tmp_path / "coco" / Path(name).name, "PNG" if name.endswith(".png") else kind)
    coco(tmp_path / "coco", [Path(name).name for name in names])
    for report in (check_classify(tmp_path / "classes"), check_detect(tmp_path / "coco")):
        faults = [one for one in report.problems if one.severity == "error"]
        assert len(faults) == 2
        assert all(one.file.endswith(suffix) and "not read" in one.what for one in faults)
        assert dict(report.counts)["unreadable"] == 2
        assert not any("not there" in one.what for one in report.problems)
    pre = Preprocessing(img_size=(24, 36), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.warns(MuntinWarning, match=f"2 of 4.*not read: .*{advice}"):
        ImageCache(list_classify(tmp_path / "classes").train, pre, DataConfig())
    with pytest.warns(MuntinWarning, match=advice):
        found = list(read_images(find_images([tmp_path / "classes"]), strict=False))
    assert len(found) == 2
    with pytest.raises(DataError, match=advice):
        open_image(tmp_path / "classes" / names[2])


def test_what_is_an_image(tmp_path):
    write(tmp_path / "0001", "PNG")
    write(tmp_path / "frame.001", "JPEG")
    (tmp_path / "README").write_text("GIF")
    (tmp_path / "notes.txt").write_bytes((tmp_path / "0001").read_bytes())
    (tmp_path / "clip.mpg").write_bytes(b"\0\0\1\xba")
    seen = {path.name for path in tmp_path.iterdir() if is_image(path.name, tmp_path)}
    assert seen == {"0001", "frame.001"}
    assert {path.name for path in find_images([tmp_path])} == seen
    assert not is_image("0001"), "by its name alone"
    assert not {"EPS", "WMF", "HDF5", "MPEG"} & set(readable_formats())
    assert not {".pdf", ".mpg", ".h5", ".npy", ".txt", ".json"} & set(image_suffixes())


# -- annotations made before an image was turned ---------------------------------------------


def turned(orientation: int, how: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, how, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["PNG", "TIFF"])
@pytest.mark.parametrize("annotated", ["stored", "upright"])
def test_coco_sizes_tell_the_orientation(tmp_path, orientation, how, annotated):
    """The box lies on the same pixels, whichever way its tool saw the image."""
    name = f"a.{how.lower()}"
    (tmp_path / name).write_bytes(turned(orientation, how))
    upright = decode((tmp_path / name).read_bytes(), where=name)
    swapped = orientation >= 5
    assert upright.shape[:2] == ((36, 24) if swapped else (24, 36))
    size = (24, 36) if annotated == "stored" else upright.shape[:2]
    listing = list_detect(coco(tmp_path, [name], size)).train
    pixels, facts = read_pixels(listing.source, listing.entries[0], (0.0, 1.0))
    expected = PIXELS if swapped and annotated == "stored" else upright
    assert np.array_equal(pixels, expected)
    assert facts.kept_as_stored == (swapped and annotated == "stored")
    pre = Preprocessing(img_size=(36, 36), mean=(0.5,) * 3, std=(0.5,) * 3, fit="letterbox")
    kept = ImageCache(listing, pre, DataConfig()).load(0)
    assert kept.size == expected.shape[:2]
    report = check_detect(tmp_path)
    assert report.ok
    assert any("annotated before" in line for line in report.lines) == facts.kept_as_stored


@pytest.mark.parametrize("stored", [True, False])
def test_masks_tell_the_orientation(tmp_path, stored):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for number in range(2):
        (tmp_path / "images" / f"{number}.png").write_bytes(turned(6, "PNG"))
        mask = np.zeros((24, 36) if stored else (36, 24), np.uint8)
        mask[:, :9] = 1
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    listing = list_semantic(tmp_path).train
    pre = Preprocessing(img_size=(64, 64), mean=(0.5,) * 3, std=(0.5,) * 3, fit="sliding_window")
    kept = ImageCache(listing, pre, DataConfig()).load(0)
    assert kept.size == ((24, 36) if stored else (36, 24)) == kept.target.labels.shape
    if stored:
        assert np.array_equal(kept.pixels.permute(1, 2, 0).numpy(), PIXELS)
    assert check_semantic(tmp_path).ok


def test_another_size_is_still_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(turned(6, "PNG"))
    coco(tmp_path, ["a.png"], (24, 30))
    report = check_detect(tmp_path)
    assert not report.ok
    assert any("24 x 30" in one.what for one in report.problems)
