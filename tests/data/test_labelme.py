# SPDX-License-Identifier: Apache-2.0
"""LabelMe's JSONs against what was drawn, by hand."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from muntin.data.detection import check_detect, list_detect
from muntin.data.semantic import list_semantic
from muntin.errors import DataError
from muntin.run_lengths import decode_mask, mask_area, to_run_lengths

SIZE = (37, 53)


def write(root, stem, shapes, *, place="", written=None, **other):
    (root / place).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(root / place / f"{stem}.png")
    values = {
        "version": "5.0.1",
        "imagePath": written or f"{stem}.png",
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        "imageData": None,
        "shapes": shapes,
    }
    (root / place / f"{stem}.json").write_text(json.dumps({**values, **other}))
    return root


def shape(label, points, kind="polygon", group=None, **other):
    row = {"label": label, "points": points, "group_id": group, "shape_type": kind, "flags": {}}
    return {**row, **other}


def png(bitmap):
    data = io.BytesIO()
    Image.fromarray(bitmap).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


SQUARE = [[4, 5], [14, 5], [14, 13], [4, 13]]


def only(data):
    (entry,) = data.train.entries
    return entry.objects


SHAPES = {
    "polygon": (shape("cat", SQUARE), [4, 5, 14, 13], 80),
    "rectangle, the corners in any order": (
        shape("cat", [[14, 13], [4, 5]], "rectangle"), [4, 5, 14, 13], None,
    ),
    "circle": (shape("cat", [[20, 15], [20, 25]], "circle"), [10, 5, 30, 25], np.pi * 100),
    "mask": (
        shape("cat", [[7, 3], [9, 4]], "mask", mask=png(np.array([[0, 1, 1], [1, 1, 0]], bool))),
        [7, 3, 10, 5], 4,
    ),
    "an older file without a type": (
        {"label": "cat", "points": SQUARE, "line_color": None}, [4, 5, 14, 13], 80,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("drawn", "box", "area"), SHAPES.values(), ids=SHAPES)
def test_shapes(tmp_path, drawn, box, area):
    root = write(tmp_path, "1", [drawn, shape("dog", SQUARE)])
    data = list_detect(root)
    assert data.problems == ()
    assert data.note == "LabelMe, train 1 image, 2 objects of 2 classes"
    assert data.train.entries[0].size == SIZE
    assert only(data).class_ids.tolist() == [0, 1]
    assert np.allclose(only(data).boxes[0], box, atol=0.02)
    masks = only(list_detect(root, masks=True)).masks
    # A class of rectangles only has masks, as others have them here.
    area = 80 if area is None else area
    assert mask_area(to_run_lengths(masks[0], SIZE)) == pytest.approx(area, rel=0.03)


def test_shapes_of_a_group_are_one_object(tmp_path):
    far = [[x + 20, y + 10] for x, y in SQUARE]
    bits = shape("cat", [[1, 1], [1, 1]], "mask", 2, mask=png(np.ones((1, 1), bool)))
    root = write(
        tmp_path,
        "1",
        [
            shape("cat", SQUARE, group=1),
            shape("cat", far, group=1),
            shape("dog", far, group=1),
            shape("cat", far, group=2),
            bits,
            shape("nose", [[3, 3]], "point", 1),
            shape("tail", [[3, 3], [5, 6]], "linestrip"),
        ],
    )
    data = list_detect(root, masks=True)
    boxes = [[4, 5, 34, 23], [24, 15, 34, 23], [1, 1, 34, 23]]
    assert only(data).boxes.tolist() == boxes
    assert only(data).areas.tolist() == [160, 80, 81]
    assert data.train.class_names == ("cat", "dog")
    assert "2 shapes without area left out" in data.note


def test_rectangles_beside_outlines_of_their_class_are_boxes(tmp_path):
    shapes = [shape("cat", SQUARE), shape("cat", [[1, 1], [9, 9]], "rectangle")]
    data = list_detect(write(tmp_path, "1", shapes), masks=True)
    assert only(data).masks[1] is None
    shapes = [shape("cat", [[1, 1], [9, 9]], "rectangle")]
    data = list_detect(write(tmp_path, "1", shapes), masks=True)
    assert data.fault.endswith("none of 1 objects has a mask: use the task detect, which needs "
                               "boxes only")  # fmt: skip


FAULTS = {
    "no label": (shape("", SQUARE), "region"),
    "ignored": (shape("__ignore__", SQUARE), "region"),
    "two points": (shape("dog", SQUARE[:2]), "hidden"),
    "text": (shape("dog", [["a", 1], [2, 3], [4, 5]]), "hidden"),
    "nan": (shape("dog", [[float("nan"), 1], [2, 3], [4, 5]]), "hidden"),
    "no object": ("dog", "hidden"),
    "broken mask": (shape("dog", [[1, 1], [2, 2]], "mask", mask="?"), "hidden"),
    "background": (shape("_background_", SQUARE), "nothing"),
}


@pytest.mark.parametrize(("drawn", "outcome"), FAULTS.values(), ids=FAULTS)
def test_faulty_shapes_teach_no_background(tmp_path, drawn, outcome):
    root = write(tmp_path, "1", [shape("cat", [[20, 20], [30, 20], [30, 30]]), drawn])
    write(root, "2", [shape("cat", SQUARE)])
    data = list_detect(root)
    assert len(data.train) == (1 if outcome == "hidden" else 2)
    if outcome != "hidden":
        ids = data.train.entries[0].objects.class_ids.tolist()
        assert ids == ([0, -1] if outcome == "region" else [0])


def test_images_are_found_and_sorted(tmp_path):
    write(tmp_path, "1", [shape("cat", SQUARE)], place="train", written="..\\photos\\old.jpg")
    write(tmp_path, "1", [], place="val", written="C:\\a\\val\\1.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "val/2.png")
    (tmp_path / "val/3.json").write_text(json.dumps({"shapes": [], "imagePath": "3.png"}))
    (tmp_path / "val/4.json").write_text("{")
    (tmp_path / "notes.json").write_text("[1]")
    data = list_detect(tmp_path)
    assert [entry.path for entry in data.train.entries] == ["train/1.png"]
    assert [(entry.path, len(entry.objects)) for entry in data.val.entries] == [("val/1.png", 0)]
    assert "1 image without annotations left out" in data.note
    assert sorted(problem.file for problem in data.problems) == [
        "notes.json", "val/3.json", "val/4.json",
    ]  # fmt: skip


def test_one_file_and_a_folder_of_files_beside_the_images(tmp_path):
    write(tmp_path, "1", [shape("cat", SQUARE)], place="images", written="../images/1.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "images/1.json").rename(tmp_path / "labels/1.json")
    for place in (tmp_path, tmp_path / "labels/1.json"):
        data = list_detect(place)
        assert data.note.startswith("LabelMe, train 1 image, 1 object of 1 class")


def test_pixels_of_classes(tmp_path):
    root = write(tmp_path, "1", [shape("cat", SQUARE), shape("dog", [[20, 20], [30, 25]],
                                                             "rectangle")])  # fmt: skip
    data = list_semantic(root)
    assert data.train.class_names == ("background", "cat", "dog")
    report = check_detect(root, masks=True)
    assert report.ok
    assert "LabelMe" in report.lines[0]


def test_no_image_there(tmp_path):
    root = write(tmp_path, "1", [shape("cat", SQUARE)])
    (root / "1.png").unlink()
    with pytest.raises(DataError, match=r"the first is '1\.png' of '1\.json'"):
        list_detect(root)


def test_a_mask_over_the_edge_is_cut(tmp_path):
    drawn = shape("cat", [[50, 35], [55, 40]], "mask", mask=png(np.ones((6, 6), bool)))
    (mask,) = only(list_detect(write(tmp_path, "1", [drawn]), masks=True)).masks
    assert decode_mask(mask).sum() == 2 * 3
