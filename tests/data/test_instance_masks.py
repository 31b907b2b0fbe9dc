# SPDX-License-Identifier: Apache-2.0
"""Objects in mask files: a number or a colour each, or a file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.detection import check_detect, list_detect
from muntin.data.mask_values import read_mask
from muntin.data.semantic import list_semantic
from muntin.errors import DataError
from muntin.run_lengths import decode_mask, to_run_lengths

SIZE = (31, 45)  # height, width
BOXES = ((3, 4, 12, 20), (15, 2, 30, 9), (20, 12, 44, 31))  # left, top, right, bottom edge
VOC = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + 252 * [9, 9, 9]


def picture(path: Path, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], (90, 80, 70)).save(path)


def drawn(*values, dtype=np.uint8):
    """Box n has the value n."""
    pixels = np.zeros((*SIZE, *np.shape(values)[1:]), dtype)
    for (left, top, right, bottom), value in zip(BOXES, values, strict=False):
        pixels[top:bottom, left:right] = value
    return pixels


def mask(path: Path, pixels, palette=None, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette(palette)
    image.save(path, **options)


def boxes(data, part="train", place=0):
    objects = data.parts[part].entries[place].objects
    found = [tuple(box) for box in objects.boxes.astype(int).tolist()]
    for box, outline in zip(found, objects.masks, strict=False):
        bitmap = decode_mask(to_run_lengths(outline, SIZE))
        left, top, right, bottom = box
        assert bitmap.sum() == bitmap[top:bottom, left:right].sum() > 0
    return dict(zip(found, (data.train.class_names[i] for i in objects.class_ids), strict=True))


@pytest.mark.parametrize("values", [(1, 2, 3), (1, 255, 7), (1, 300, 60000)])
def test_numbers_in_one_mask(tmp_path, values):
    """PennFudan; 255 is the border of VOC's objects where others are numbered too."""
    dtype = np.uint16 if max(values) > 255 else np.uint8
    for stem in ("P1", "P2"):
        picture(tmp_path / "PNGImages" / f"{stem}.png")
        mask(tmp_path / "PedMasks" / f"{stem}_mask.png", drawn(*values, dtype=dtype))
    data = list_detect(tmp_path, masks=True)
    wanted = {box: "object" for box, value in zip(BOXES, values, strict=True) if value != 255}
    assert boxes(data, place=1) == wanted
    assert "instance masks" in data.note
    assert [*boxes(list_detect(tmp_path))] == [*wanted]
    assert check_detect(tmp_path, masks=True).ok


@pytest.mark.parametrize("layout", ["{0}/images/{0}.png {0}/masks/{1}.png",
                                    "images/{0}.png masks/{0}/{1}.png",
                                    "train/images/{0}.png train/masks/{0}_{1}.png"])  # fmt: skip
@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "JPEG", "quality": 80}])
def test_a_file_an_object(tmp_path, layout, options):
    image_at, mask_at = layout.split(" ")
    for number in range(2):
        stem = f"a{number}"
        picture(tmp_path / image_at.format(stem))
        for place in range(number + 2):
            one = drawn(*(255 * (place == n) for n in range(3)))
            mask(tmp_path / mask_at.format(stem, 10 + place), one, **options)
    picture(tmp_path / image_at.format("unseen"))
    (tmp_path / "classes.txt").write_text("background\nnucleus\n")
    data = list_detect(tmp_path, masks=True)
    exact = options["format"] == "PNG"
    assert [len(entry.objects) for entry in data.train.entries] == [2, 3]
    assert data.train.class_names == ("nucleus",)
    if exact:
        assert boxes(data, place=1) == dict.fromkeys(BOXES, "nucleus")
    assert "1 image without annotations" in data.note
    semantic = list_semantic(tmp_path).train
    assert semantic.class_names == ("background", "nucleus")
    labels = read_mask(semantic, semantic.entries[1]).labels
    assert (labels != drawn(1, 1, 1)).mean() < (0.001 if exact else 0.05)


@pytest.mark.parametrize("tool", ["CVAT", "VOC", "labelme"])
def test_masks_of_classes_beside_those_of_objects(tmp_path, tool):
    for stem in ("p1", "p2", "p3"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        where = f"{stem}.png"
        if tool == "CVAT":
            class_mask = drawn((51, 221, 255), (250, 50, 83), (51, 221, 255))
            mask(tmp_path / "SegmentationClass" / where, class_mask)
            objects = drawn((128, 0, 0), (0, 128, 0), (128, 128, 0))
            mask(tmp_path / "SegmentationObject" / where, objects)
        else:
            folder = "SegmentationClassPNG" if tool == "labelme" else "SegmentationClass"
            mask(tmp_path / folder / where, drawn(2, 1, 2), VOC)
            objects = drawn(1, 2, 3)
            objects[BOXES[0][1], BOXES[0][0]] = 255  # the border, whatever its class
            objects[0] = 255
            mask(tmp_path / "SegmentationObject" / where, objects, VOC)
    if tool == "CVAT":
        lines = "# label:color_rgb:parts:actions\nb:51,221,255::\nbackground:0,0,0::\na:250,50,83::"
        (tmp_path / "labelmap.txt").write_text(lines)
    else:
        (tmp_path / "class_names.txt").write_text("_background_\na\nb\n")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p1\np3\n")
    (lists / "val.txt").write_text("p2\n")
    (tmp_path / "Annotations").mkdir()
    box = "<xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax>"
    xml = f"<annotation><object><name>a</name><bndbox>{box}</bndbox></object></annotation>"
    (tmp_path / "Annotations" / "p1.xml").write_text(xml)
    data = list_detect(tmp_path, masks=True)
    assert {part: len(listing) for part, listing in data.parts.items()} == {"train": 2, "val": 1}
    assert data.train.class_names == ("a", "b")
    assert boxes(data) == dict(zip(BOXES, "bab", strict=True))
    assert list_detect(tmp_path).note.startswith("VOC")


def test_what_is_no_mask_of_objects(tmp_path):
    for number in range(3):
        picture(tmp_path / "images" / f"{number}.png")
        mask(tmp_path / "masks" / f"{number}.png", drawn(255, 255))
    with pytest.raises(DataError, match=r"0 and 255 .*semantic"):
        list_detect(tmp_path, masks=True)
    for number in range(3):
        mask(tmp_path / "masks" / f"{number}.png", drawn(9, 4))
    data = list_detect(tmp_path, masks=True)
    assert any("semantic" in one.what for one in data.problems)
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    with pytest.raises(DataError, match=r"2 classes.*semantic"):
        list_detect(tmp_path, masks=True)


def test_broken_masks_leave_their_image_out(tmp_path):
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png", size=(9, 9) if number == 2 else SIZE)
        mask(tmp_path / "masks" / f"{number}.png", drawn(1, 2))
    (tmp_path / "masks" / "1.png").write_bytes(b"broken")
    mask(tmp_path / "masks" / "3.png", drawn())
    data = list_detect(tmp_path, masks=True)
    assert [entry.path for entry in data.train.entries] == ["images/0.png", "images/3.png"]
    assert [len(entry.objects) for entry in data.train.entries] == [2, 0]
    assert {one.file for one in data.problems} >= {"images/1.png", "images/2.png"}


def test_a_run_of_one_class_gives_its_name(tmp_path):
    picture(tmp_path / "images" / "1.png")
    mask(tmp_path / "masks" / "1.png", drawn(1, 2))
    assert list_detect(tmp_path, class_names=("cell",)).train.class_names == ("cell",)
