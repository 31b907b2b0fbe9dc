# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.checking import Report
from muntin.data.detection import check_detect
from muntin.run_lengths import encode_mask
from muntin.synthetic.datasets import write_coco

SIZE = (64, 96)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(
        tmp_path, num_train=24, num_val=4, size=SIZE, max_objects=4, classes=("disc", "star")
    )


def change(folder: Path, edit, part: str = "train") -> None:
    """Edit the JSON of a part; what `edit` gives, if anything, replaces it."""
    place = folder / "annotations" / f"instances_{part}.json"
    data = json.loads(place.read_text())
    edit(data)
    place.write_text(json.dumps(data))


def add(folder: Path, *boxes: tuple[float, ...], **other) -> None:
    """Append annotations to the first image."""

    def edit(data):
        first = max(900, *(row["id"] for row in data["annotations"])) + 1
        for number, box in enumerate(boxes, first):
            row = {"id": number, "image_id": 1, "category_id": 1, "bbox": list(box)}
            data["annotations"].append(row | other)

    change(folder, edit)


def texts(report: Report) -> list[str]:
    return [f"{p.severity}: {p.file}: {p.what}" for p in report.problems]


@pytest.mark.parametrize("masks", [False, True])
def test_clean_set(folder, masks):
    report = check_detect(folder, masks=masks)
    assert report.ok
    assert report.problems == ()
    assert report.task == ("instance" if masks else "detect")
    rows = {
        part: json.loads((folder / f"annotations/instances_{part}.json").read_text())
        for part in ("train", "val")
    }
    total = sum(len(data["annotations"]) for data in rows.values())
    assert dict(report.counts) == {
        "pictures": 28,
        "train": 24,
        "val": 4,
        "classes": 2,
        "objects": total,
        "without_objects": 0,
        "unreadable": 0,
        "misnamed": 0,
        "duplicates": 0,
    }
    learnt = rows["train"]["annotations"]
    discs = sum(row["category_id"] == 1 for row in learnt)
    expected = f"train: 24 images, {len(learnt)} objects; disc {discs}, star {len(learnt) - discs}"
    assert expected in report.lines
    per_image = np.bincount([row["image_id"] for row in learnt])
    at_most = f"at most {per_image.max()} objects in an image"
    assert f"train: 0 images without objects, {at_most}" in report.lines
    small = np.mean([row["area"] < 32**2 for row in learnt])
    assert any(f"train: objects small {small:.0%}, medium " in line for line in report.lines)
    assert "sizes (height x width): all 64 x 96" in report.lines
    assert "pixel formats: RGB 28" in report.lines


def test_problems_of_the_listing_are_told(folder):
    add(folder, (1, 1, 0, 5), (500, 1, 5, 5))
    zero, outside = texts(check_detect(folder))
    assert zero.startswith("warning: train/00000.jpg: annotation 901 left out, of zero area")
    assert outside.startswith("warning: train/00000.jpg: annotation 902 left out, outside")


def test_unreadable_images_are_errors_and_come_first(folder):
    add(folder, (1, 1, 0, 5))
    (folder / "train/00005.jpg").write_text("hello")
    (folder / "val/00001.jpg").write_bytes(b"")
    report = check_detect(folder)
    assert not report.ok
    assert [(p.severity, p.file) for p in report.problems] == [
        ("error", "train/00005.jpg"),
        ("error", "val/00001.jpg"),
        ("warning", "train/00000.jpg"),
    ]
    assert dict(report.counts)["unreadable"] == 2


def test_other_size_than_the_annotations_say(folder):
    Image.new("RGB", (SIZE[0], SIZE[1])).save(folder / "train/00001.jpg")
    Image.new("RGB", (50, 40), "red").save(folder / "train/00002.jpg")
    turned, other = texts(check_detect(folder))
    assert turned.startswith("error: train/00001.jpg: 96 x 64 pixels (height x width)")
    assert "64 x 96" in turned
    assert "EXIF" in turned
    assert other.endswith(
        "40 x 50 pixels (height x width), annotated as 64 x 96, so its annotations are wrong"
    )


def test_thin_objects(folder):
    add(folder, (1, 1, 1, 50), (3, 3, 50, 1.5), (5, 5, 2, 2))
    (text,) = texts(check_detect(folder))
    assert text.startswith("warning: train/00000.jpg: 2 of ")
    assert text.endswith(" objects less than 2 pixels wide or high")


def test_same_image_in_two_parts_but_not_in_one(folder):
    for name in ("train/00003.png", "val/00003.png", "train/00007.png"):
        Image.new("RGB", (SIZE[1], SIZE[0])).save(folder / name)
    (text,) = texts(check_detect(folder))
    assert text.startswith("warning: train/00003.png: the same image is in train and val: ")


def test_one_folder_for_train_and_val_is_one_warning(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number,) * 3).save(tmp_path / f"images/{number}.png")
        (tmp_path / f"labels/{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [cat]\n")
    found = [text for text in texts(check_detect(tmp_path)) if "same image" in text]
    assert found == [
        "warning: images/0.png: the same image is in train and val, by the same name, as 2 images "
        "more"
    ]


def test_classes_without_objects(folder):
    def edit(data):
        data["categories"] += [{"id": 8, "name": "ring"}, {"id": 9, "name": "moon"}]
        data["annotations"][0].update(category_id=8, iscrowd=1)

    change(folder, edit)
    report = check_detect(folder)
    assert texts(report) == [
        "warning: train: no objects in train of ring, moon: nothing to learn for them"
    ]
    assert "train: crowds or difficult, neither learnt nor scored: 1" in report.lines


def test_nothing_is_left_of_train(folder):
    """Every image of it has an annotation that may be anywhere."""
    place = folder / "annotations/instances_train.json"
    values = json.loads(place.read_text())
    for row in values["annotations"]:
        row["bbox"] = [1, 2]
        row.pop("segmentation", None)
    place.write_text(json.dumps(values))
    report = check_detect(folder)
    assert not report.ok
    assert "no annotated object" in report.problems[0].what


def test_objects_without_a_mask_matter_only_when_masks_are_wanted(folder):
    add(folder, (1, 1, 20, 20))
    assert check_detect(folder).problems == ()
    (text,) = texts(check_detect(folder, masks=True))
    assert text == (
        "warning: train/00000.jpg: 1 of 4 objects without a mask: box and class are learnt"
    )


def test_masks_that_are_empty_or_elsewhere(folder):
    bitmap = np.zeros(SIZE, bool)
    add(folder, (1, 1, 20, 20), segmentation=encode_mask(bitmap))
    bitmap[50:60, 70:90] = True
    add(folder, (1, 2, 20, 20), segmentation=encode_mask(bitmap))
    add(folder, (1, 3, 20, 20), segmentation=[[70, 50, 90, 50, 90, 60]])
    empty, apart = texts(check_detect(folder, masks=True))
    assert empty.startswith("warning: train/00000.jpg: masks that cover no pixel: 1 of ")
    assert apart.startswith(
        "warning: train/00000.jpg: masks that lie elsewhere than their boxes: 2"
    )


def test_no_masks_at_all_is_an_error(data_root):
    report = check_detect(data_root / "bccd", masks=True)
    assert not report.ok
    assert "task detect" in report.problems[0].what


def test_images_without_objects_are_counted(folder):
    change(folder, lambda data: data["annotations"].clear(), part="val")
    report = check_detect(folder)
    assert report.ok
    assert dict(report.counts)["without_objects"] == 4
    assert "val: 4 images, 0 objects; disc 0, star 0" in report.lines


@pytest.mark.parametrize("name", ["coco_mini", "bccd"])
def test_real_sets(data_root, name):
    report = check_detect(data_root / name)
    assert report.ok
    assert not dict(report.counts)["unreadable"]


def test_annotation_of_the_nuclei_that_is_one_pixel_wide(data_root):
    report = check_detect(data_root / "nuclei", masks=True)
    assert report.ok
    assert dict(report.counts)["objects"] == 7517
    (text,) = texts(report)
    assert "1 of 26 objects less than 2 pixels wide or high" in text
