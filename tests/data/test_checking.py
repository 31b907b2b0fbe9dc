# SPDX-License-Identifier: Apache-2.0
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.checking import CheckedImage, CheckedImages, Report
from muntin.data.decoding import ImageInfo
from muntin.data.duplicates import ImageHash
from muntin.data.grouping import MAX_HASHED
from muntin.data.listing import check_classify
from muntin.samples import Entry


def save(place: Path, seed: int, size: tuple[int, int] = (16, 20)) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(place)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(
        f"{part}/{kind}/{number}.png"
        for part in ("train", "val")
        for kind in ("cats", "dogs")
        for number in range(3)
    ):
        save(tmp_path / name, seed)
    return tmp_path


def texts(report: Report) -> list[str]:
    return [f"{p.severity}: {p.file}: {p.what}" for p in report.problems]


def test_clean_set(folder):
    report = check_classify(folder)
    assert report.ok
    assert report.problems == ()
    assert dict(report.counts) == {
        "pictures": 12,
        "train": 6,
        "val": 6,
        "classes": 2,
        "unreadable": 0,
        "misnamed": 0,
        "duplicates": 0,
    }
    assert "train: 6 images; cats 3, dogs 3" in report.lines
    assert "sizes (height x width): all 16 x 20" in report.lines
    assert "pixel formats: RGB 12" in report.lines


def test_every_unreadable_file_is_named(folder):
    (folder / "train/cats/empty.jpg").touch()
    (folder / "train/dogs/note.jpg").write_text("hello")
    data = (folder / "val/cats/0.png").read_bytes()
    (folder / "val/cats/cut.png").write_bytes(data[: len(data) // 2])
    report = check_classify(folder)
    assert not report.ok
    assert {p.file for p in report.problems if p.severity == "error"} == {
        "train/cats/empty.jpg",
        "train/dogs/note.jpg",
        "val/cats/cut.png",
    }
    assert dict(report.counts)["unreadable"] == 3


def test_same_image_in_train_and_val(folder):
    pixels = Image.open(folder / "train/cats/1.png")
    pixels.save(folder / "val/cats/again.bmp")
    report = check_classify(folder)
    assert report.ok
    (text,) = texts(report)
    assert text == (
        "warning: train/cats/1.png: the same image is in train and val: 'val/cats/again.bmp'"
    )


def test_same_image_in_two_classes(folder):
    Image.open(folder / "train/cats/1.png").save(folder / "train/dogs/again.png")
    (text,) = texts(check_classify(folder))
    assert "train/cats/1.png: the same image has another class as 'train/dogs/again" in text


def test_a_table_that_names_an_image_twice(folder):
    rows = "train/cats/1.png,cats\ntrain/cats/1.png,dogs\ntrain/dogs/1.png,dogs\n"
    (folder / "labels.csv").write_text("path,class\n" + rows)
    found = [text for text in texts(check_classify(folder / "labels.csv")) if "same image" in text]
    assert found == [
        "warning: train/cats/1.png: the same image has another class further down in the table"
    ]


def test_same_bytes_other_sides_are_not_the_same_image(folder):
    for name, size in (("a", (8, 18)), ("b", (18, 8))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / f"train/cats/{name}.png")
    report = check_classify(folder)
    assert dict(report.counts)["duplicates"] == 0
    assert "sizes (height x width): from 8 x 8 to 18 x 20" in report.lines


def test_small_classes_imbalance_and_tiny_images(tmp_path):
    for number in range(21):
        save(tmp_path / f"cats/{number}.png", number)
    save(tmp_path / "dogs/0.png", 99, size=(7, 30))
    tiny, few, uneven = texts(check_classify(tmp_path))
    assert tiny == "warning: dogs/0.png: only 7 x 30 pixels (height x width)"
    assert "dogs: class 'dogs' has 1 image in train" in few
    assert "class 'cats' has 21 images and 'dogs' has 1" in uneven


def test_misnamed_and_turned_images_are_counted(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(folder / "train/cats/x.png", "JPEG", exif=exif)
    report = check_classify(folder)
    assert report.ok
    assert dict(report.counts)["misnamed"] == 1
    assert any("1 image rotated" in line for line in report.lines)
    assert any(line.startswith("1 image with a suffix") for line in report.lines)
    assert "pixel formats: RGB 12, L 1" in report.lines


def test_values_that_are_not_finite_are_counted(folder):
    values = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    values[:4] = np.nan
    Image.fromarray(values).save(folder / "train/cats/x.tif")
    assert any(line.startswith("1 image with values that are not") for line in
               check_classify(folder).lines)  # fmt: skip


def test_groups_in_two_parts_and_blank_classes(tmp_path):
    rows = ["path,class,group,split"]
    for number in range(8):
        save(tmp_path / f"{number}.png", number)
        part = "train" if number < 6 else "val"
        name = "" if number == 5 else "ab"[number % 2]
        rows.append(f"{number}.png,{name},g{number % 5},{part}")
    (tmp_path / "set.csv").write_text("\n".join(rows))
    blank, *groups = texts(check_classify(tmp_path / "set.csv"))
    assert "train: 1 image without a class and none with several" in blank
    assert [text.split(",")[0] for text in groups] == [
        "warning: g1: group 'g1' is in train and val",
        "warning: g2: group 'g2' is in train and val",
    ]


def test_wrong_layout_is_a_report(tmp_path):
    report = check_classify(tmp_path)
    assert not report.ok
    assert texts(report)[0].startswith(f"error: {tmp_path}: No images in")


def test_json(folder):
    (folder / "train/cats/empty.jpg").touch()
    report = json.loads(json.dumps(check_classify(folder).to_dict()))
    assert report["task"] == "classify"
    assert report["ok"] is False
    assert report["counts"]["pictures"] == 13
    assert report["problems"][0]["severity"] == "error"
    assert report["problems"][0]["file"] == "train/cats/empty.jpg"


def test_little_is_kept_of_many_images():
    """As of a million: what looks alike is forgotten, equal pixels are found."""
    count, facts, held = MAX_HASHED + 20_000, ImageInfo(format="PNG", mode="RGB"), CheckedImages()
    entries = [Entry(path=f"{number}.png") for number in range(count)]

    def images() -> Iterator[CheckedImage]:
        for number, entry in enumerate(entries):
            digest = (number % (count - 1)).to_bytes(16, "big")
            found = ImageHash(digest, np.zeros(256, np.float32))
            yield CheckedImage(part="train", entry=entry, hash=found, size=(9, 9), facts=facts)

    tracemalloc.start()
    seen = sum(1 for _ in held.watch(images()))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == count
    # Places, a digest, and names that pathlib keeps, unless it has them already; a hash has 1,200.
    assert kept / count < 300
    assert held.hashes is None
    assert held.find_twins() == [[0, count - 1]]


@pytest.mark.slow
def test_cifar(data_root):
    place = data_root / "cifar10_jpeg" / "train.zip"
    if not place.is_file():
        pytest.skip(f"no {place}")
    report = check_classify(place)
    assert report.ok
    assert dict(report.counts)["pictures"] == 50000
