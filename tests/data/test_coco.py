# SPDX-License-Identifier: Apache-2.0
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from muntin.data.detection import list_detect
from muntin.errors import DataError
from muntin.run_lengths import clean_segmentation, decode_mask, encode_mask, to_run_lengths

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
SQUARE = [[10, 10, 30, 10, 30, 20, 10, 20]]


def touch(root: Path, *names: str) -> Path:
    for name in names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return root


def write(place: Path, data: object, encoding: str = "utf-8") -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(data), encoding=encoding)
    return place


def image(number=1, name="1.jpg", size=(80, 100)) -> dict:
    return {"id": number, "file_name": name, "height": size[0], "width": size[1]}


def note(number=1, box=(10, 10, 20, 10), **other) -> dict:
    row = {"id": number, "image_id": 1, "category_id": 3, "bbox": list(box), "iscrowd": 0}
    return {**row, "area": 200, **other}


def coco(annotations=(), images=None, categories=CATEGORIES) -> dict:
    return {
        "images": [image()] if images is None else images,
        "annotations": list(annotations),
        "categories": categories,
    }


def one_set(root: Path, data: object) -> Path:
    """A JSON beside the images that it names."""
    names = [row["file_name"] for row in data["images"]]
    touch(root, *names)
    write(root / "instances.json", data)
    return root


def only(data):
    (entry,) = data.train.entries
    return entry.objects


def whats(data) -> list[str]:
    return [problem.what for problem in data.problems]


def test_one_image(tmp_path):
    rows = [note(1), note(2, (0, 0, 5, 6), category_id=7, area=3.5), note(3, iscrowd=1, area=9)]
    data = list_detect(one_set(tmp_path, coco(rows)))
    assert data.val is data.test is None
    assert data.problems == ()
    assert data.train.class_names == ("cat", "dog")
    assert data.train.multi_label
    (entry,) = data.train.entries
    assert (entry.path, entry.size, entry.class_ids) == ("1.jpg", (80, 100), (0, 1))
    objects = entry.objects
    assert objects.boxes.tolist() == [[10, 10, 30, 20], [0, 0, 5, 6], [10, 10, 30, 20]]
    assert objects.class_ids.tolist() == [0, 1, 0]
    assert objects.crowd.tolist() == [False, False, True]
    assert objects.areas.tolist() == [200, 3.5, 9]
    assert objects.masks == ()
    assert data.note == "COCO, train 1 image, 3 objects of 2 classes"


def test_crowds_give_a_image_no_class(tmp_path):
    data = list_detect(one_set(tmp_path, coco([note(iscrowd=1)])))
    assert data.train.entries[0].class_ids == ()


# name of the JSON, the image as it lies, file_name
LAYOUTS = {
    "official": ("annotations/instances_{}2017.json", "{}2017/1.jpg", "1.jpg"),
    "roboflow": ("{}/_annotations.coco.json", "{}/1.jpg", "1.jpg"),
    "one folder of images": ("{}.json", "images/{}_1.jpg", "{}_1.jpg"),
    "name with folder": ("annotations/{}.json", "images/{}/1.jpg", "{}/1.jpg"),
    "folders of another machine": ("ann_{}.json", "images/{}/1.jpg", "/data/x/1.jpg"),
    "backslashes": ("ann_{}.json", "{}/a/1.jpg", "D:\\set\\a\\1.jpg"),
    "address": ("instances_{}.json", "{}2017/1.jpg", "http://host.org/{}2017/1.jpg"),
    "capitals": ("{}.json", "{}/1.JPG", "1.jpg"),
    "deep": ("a/b/{}Set.json", "a/images/{}/1.jpg", "./1.jpg"),
    "beside images": ("annotations/instances_{}.json", "{}/images/1.jpg", "1.jpg"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_layouts(tmp_path, layout, val):
    for part in ("train", val, "test"):
        json_name, pixels, file_name = (text.format(part) for text in layout)
        touch(tmp_path, pixels)
        write(tmp_path / json_name, coco([note()], [image(name=file_name)]))
    data = list_detect(tmp_path)
    for part, listing in data.parts.items():
        (entry,) = listing.entries
        assert entry.path == layout[1].format(val if part == "val" else part)
    assert list(data.parts) == ["train", "val", "test"]


def test_archive(tmp_path):
    place = tmp_path / "set.zip"
    with zipfile.ZipFile(place, "w") as file:
        for part in ("train", "val"):
            file.writestr(f"coco/annotations/instances_{part}.json", json.dumps(coco([note()])))
            file.writestr(f"coco/{part}/1.jpg", b"")
    data = list_detect(place)
    assert [listing.source for listing in data.parts.values()] == [str(place)] * 2
    assert data.val.entries[0].path == "coco/val/1.jpg"


@pytest.mark.parametrize("name", ["annotations/instances_val2017.json", "val2017/x.json"])
def test_json_itself(tmp_path, monkeypatch, name):
    touch(tmp_path, "val2017/1.jpg", "train2017/1.jpg")
    place = write(tmp_path / name, coco([note()]))
    write(tmp_path / "annotations/instances_train2017.json", {})
    data = list_detect(place)
    assert data.val is None
    (entry,) = data.train.entries
    assert (Path(data.train.source) / entry.path).is_file()
    assert entry.path.endswith("1.jpg")
    monkeypatch.chdir(place.parent)
    assert len(list_detect(place.name).train) == 1


def test_part_alone_is_train_and_other_files_are_passed_over(tmp_path):
    touch(tmp_path, "val2017/1.jpg", ".hidden/1.jpg", "annotations/._instances_val2017.json")
    write(tmp_path / "annotations/instances_val2017.json", coco([note()]))
    write(tmp_path / "annotations/person_keypoints_val2017.json", coco([note()]))
    write(tmp_path / "annotations/captions_val2017.json", coco([{"caption": "a cat"}]))
    write(tmp_path / "notes.json", {"by": "me"})
    data = list_detect(tmp_path)
    assert list(data.parts) == ["train"]


def test_json_of_no_set_is_noted(tmp_path):
    touch(tmp_path, "train/1.jpg")
    for name in ("instances_train.json", "instances_everything.json"):
        write(tmp_path / name, coco([note()]))
    assert "left out, of no set: instances_everything.json" in list_detect(tmp_path).note


def test_same_names_in_train_and_val_are_not_mixed_up(tmp_path):
    images = [image(number, f"{number}.jpg") for number in range(4)]
    for part in ("train", "val"):
        write(tmp_path / f"instances_{part}.json", coco([note()], images))
    touch(tmp_path, "train/0.jpg", *(f"val/{number}.jpg" for number in range(4)))
    data = list_detect(tmp_path)
    assert [entry.path for entry in data.train.entries] == ["train/0.jpg"]
    assert len(data.val) == 4


def test_trainval_may_use_all_folders(tmp_path):
    touch(tmp_path, "train2014/1.jpg", "val2014/2.jpg")
    images = [image(1, "1.jpg"), image(2, "2.jpg")]
    write(tmp_path / "annotations/instances_trainval35k.json", coco([note()], images))
    assert len(list_detect(tmp_path).train) == 2


def test_same_name_in_two_folders_needs_its_folder(tmp_path):
    touch(tmp_path, "a/1.jpg", "c/1.jpg")
    images = [image(1, "a/1.jpg"), image(2, "b/1.jpg")]
    write(tmp_path / "x.json", coco([note()], images))
    data = list_detect(tmp_path)
    assert [entry.path for entry in data.train.entries] == ["a/1.jpg"]
    assert [problem.file for problem in data.problems] == ["b/1.jpg"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_names_and_byte_order_marks(tmp_path, encoding):
    name = "B\u00e4r \u718a.jpg"
    touch(tmp_path, "Ba\u0308r \u718a.jpg")
    data = coco([note()], [image(name=name)], [{"id": 3, "name": "B\u00e4r"}])
    write(tmp_path / "x_coco.json", data, encoding)
    listing = list_detect(tmp_path).train
    assert listing.class_names == ("B\u00e4r",)
    assert (tmp_path / listing.entries[0].path).is_file()


def test_ids_as_texts_and_floats(tmp_path):
    images = [{**image("7"), "height": "80", "width": 100.0}, image("x1", "2.jpg")]
    rows = [note(1, image_id=7, category_id="3"), note(2, image_id="x1", category_id=7.0)]
    data = list_detect(
        one_set(tmp_path, coco(rows, images, [{"id": "3", "name": "a"}, CATEGORIES[1]]))
    )
    assert data.problems == ()
    assert [entry.size for entry in data.train.entries] == [(80, 100)] * 2
    assert [entry.class_ids for entry in data.train.entries] == [(0,), (1,)]


def test_classes_follow_the_numbers_of_categories(tmp_path):
    rows = [{"id": 9, "name": "a"}, {"id": 1, "name": "c"}, {"id": 4, "name": " b "}]
    data = list_detect(one_set(tmp_path, coco([note(category_id=9)], categories=rows)))
    assert data.train.class_names == ("c", "b", "a")
    assert data.train.entries[0].class_ids == (2,)


def test_parts_with_other_numbers_agree_by_name(tmp_path):
    touch(tmp_path, "train/1.jpg", "val/1.jpg")
    write(tmp_path / "train.json", coco([note()]))
    other = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 5, "name": "owl"}]
    write(tmp_path / "val.json", coco([note(category_id=1)], categories=other))
    data = list_detect(tmp_path)
    assert data.train.class_names == data.val.class_names == ("cat", "dog", "owl")
    assert data.val.entries[0].class_ids == (1,)


@pytest.mark.parametrize("used", [False, True])
def test_leftover_of_roboflow(tmp_path, used):
    rows = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 3, "name": "RBC", "supercategory": "cells"},
    ]
    notes = [note(), *([note(2, category_id=0)] if used else [])]
    data = list_detect(one_set(tmp_path, coco(notes, categories=rows)))
    assert data.train.class_names == (("cells", "RBC") if used else ("RBC",))
    kept = list_detect(one_set(tmp_path, coco([note()])))
    assert kept.train.class_names == ("cat", "dog")  # not used, and no leftover


def test_classes_of_a_run(tmp_path):
    root = one_set(tmp_path, coco([note()]))
    data = list_detect(root, class_names=("owl", "cat"))
    assert data.train.class_names == ("owl", "cat")
    assert data.train.entries[0].class_ids == (1,)
    with pytest.raises(DataError, match=r"trained on \(dog\), got also cat"):
        list_detect(root, class_names=("dog",))


def test_images_without_objects_stay(tmp_path):
    images = [image(1, "1.jpg"), image(2, "2.jpg")]
    data = list_detect(one_set(tmp_path, coco([note()], images)), masks=False)
    bare = data.train.entries[1]
    assert bare.objects.boxes.shape == (0, 4)
    assert bare.class_ids == ()
    assert len(bare.objects) == 0


def test_no_annotation_at_all(tmp_path):
    data = list_detect(one_set(tmp_path, coco()))
    (problem,) = data.problems
    assert (problem.severity, problem.file) == ("error", "train")
    assert problem.what.startswith("no annotated object")
    assert data.train.num_classes == 2


BOXES = {
    "zero": ((10, 10, 0, 5), "of zero area: x from 10 to 10, y from 10 to 15"),
    "negative": ((10, 10, 4, -5), "of negative size: x from 10 to 14, y from 10 to 5"),
    "nan": ((10, math.nan, 4, 5), "not finite: x from 10 to 14, y from nan to nan"),
    "infinite": ((10, 1, math.inf, 5), "not finite: x from 10 to inf, y from 1 to 6"),
    "outside": (
        (100, 10, 5, 5),
        "outside the image: x from 100 to 105, y from 10 to 15; the image is 80 x 100 "
        "(height x width)",
    ),
    "three numbers": ((1, 2, 3), "without a box of four numbers: bbox [1, 2, 3]"),
    "no number": ((1, None, 3, 4), "without a box of four numbers: bbox [1, None, 3, 4]"),
    "none": ((), "without a box of four numbers: bbox []"),
}


@pytest.mark.parametrize(("box", "what"), BOXES.values(), ids=BOXES)
def test_faulty_boxes_are_left_out(tmp_path, box, what):
    rows = [note(1), note(2, (0, 0, 30, 30)), note(17, box)]
    data = list_detect(one_set(tmp_path, coco(rows)))
    problem = next(one for one in data.problems if one.severity == "warning")
    assert (problem.file, problem.severity) == ("1.jpg", "warning")
    assert problem.what == f"annotation 17 left out, {what}"
    assert "; 1 annotation left out: 1 " in data.note
    if "area" in what or "outside" in what:  # hides nothing
        assert only(data).crowd.tolist() == [False, False]
    elif "negative" in what:  # neither learnt nor scored
        objects = only(data)
        assert (objects.class_ids[2], objects.crowd.tolist()) == (-1, [False, False, True])
        assert objects.boxes[2].tolist() == [10, 5, 14, 10]
    else:  # anywhere in the image
        assert len(data.train) == 0
        assert "; 1 image left out with annotations that do not tell where they are" in data.note
        assert data.problems[0].severity == "error"


def test_other_faulty_annotations_are_left_out(tmp_path):
    rows = [
        *(note(1), note(2)),
        note(3, category_id=99),
        note(4, image_id=50),
        {"image_id": 1, "category_id": None, "bbox": [1, 2, 3, 4]},
        "text",
    ]
    data = list_detect(one_set(tmp_path, coco(rows)))
    assert only(data).class_ids.tolist() == [0, -1, -1]
    assert only(data).crowd.tolist() == [False, True, True]
    assert sorted((problem.file, problem.what) for problem in data.problems) == [
        ("1.jpg", "annotation 2 left out, duplicate: the same as annotation 1"),
        ("1.jpg", "annotation 3 left out, of an unknown class: category_id 99"),
        ("1.jpg", "annotations[4] left out, of an unknown class: category_id None"),
        (
            "instances.json",
            "annotation 4 left out, of an unknown image: image_id 50 is not in images",
        ),
        ("instances.json", "annotations[5] left out, not an object: a str"),
    ]
    assert "5 annotations left out: 2 of an unknown class, " in data.note
    assert "1 duplicate" in data.note


def test_boxes_over_the_edge_are_cut(tmp_path):
    rows = [note(1, (-1, 5, 10, 10)), note(2, (90, 70, 14.5, 10.5)), note(3, (-3, 0, 9, 9))]
    data = list_detect(one_set(tmp_path, coco(rows)))
    assert only(data).boxes.tolist() == [[0, 5, 9, 15], [90, 70, 100, 80], [0, 0, 6, 9]]
    (what,) = whats(data)
    assert what.startswith("boxes reach up to 4.5 pixels over the edge of the image, cut (")
    assert what.endswith("(annotation 2, annotation 3)")


def test_area_that_is_not_said(tmp_path):
    rows = [note(1, segmentation=SQUARE), note(2, (0, 0, 6, 7)), note(3, (1, 1, 5, 5), area="9")]
    for row in rows[:2]:
        del row["area"]
    root = one_set(tmp_path, coco(rows))
    assert only(list_detect(root)).areas.tolist() == [200, 42, 25]
    assert only(list_detect(root, masks=True)).areas.tolist() == [200, 42, 25]


def test_box_that_is_not_said_is_that_of_the_mask(tmp_path):
    mask = np.zeros((80, 100), bool)
    mask[4:7, 20:50] = True
    rows = [note(1, segmentation=SQUARE), note(2, segmentation=encode_mask(mask)), note(3)]
    for row in rows:
        del row["bbox"]
    rows[2]["segmentation"] = [[1, 2, 3]]
    root = one_set(tmp_path, coco(rows))
    data = list_detect(root)
    assert len(data.train) == 0
    assert "and its mask is of no use: an odd number of coordinates (3)" in whats(data)[1]
    write(root / "instances.json", coco(rows[:2]))
    assert only(list_detect(root)).boxes.tolist() == [[10, 10, 30, 20], [20, 4, 50, 7]]


# ---- masks


def test_masks_are_kept_only_when_asked_for(tmp_path):
    rows = [note(1, segmentation=SQUARE), note(2, (1, 1, 9, 9), segmentation=SQUARE[0])]
    root = one_set(tmp_path, coco(rows))
    assert only(list_detect(root)).masks == ()
    assert only(list_detect(root, masks=True)).masks == (SQUARE, SQUARE)


def rle(size=(80, 100), **other) -> dict:
    return {**encode_mask(np.ones(size, bool)), **other}


MASKS = {
    "odd": ([[1, 2, 3, 4, 5, 6, 7]], "an odd number of coordinates (7)"),
    "two points": ([[1, 2, 3, 4]], "fewer than 3 points"),
    "nan": ([[1, 2, 3, 4, 5, math.nan]], "a coordinate is not finite"),
    "text": ([[1, 2, 3, 4, 5, "x"]], "a coordinate is not a number"),
    "mixed": ([[1, 2, 3, 4, 5, 6], 7], "numbers and polygons are mixed"),
    "a number": (7, "a int is no mask"),
    "size": (
        rle((100, 80)),
        "run lengths of size [100, 80], the image has [80, 100] (height, width)",
    ),
    "cut off": (rle(counts="me;4j75J5N1N"), "the run lengths do not add up to the image"),
    "rubbish": (rle(counts="\x7f\u00e9"), "the run lengths do not add up to the image"),
    "unfinished": (rle(counts="nn"), "the run lengths do not add up to the image"),
    "too long": (rle(counts="oooooooooo1"), "the run lengths do not add up to the image"),
    "list": (rle(counts=[5, -5, 8000]), "the run lengths do not add up to the image"),
    "no counts": ({"size": [80, 100]}, "the run lengths do not add up to the image"),
    "far too long": (rle(counts=[10**9, 9 * 10**9]), "the run lengths do not add up to the image"),
}


@pytest.mark.parametrize(("mask", "what"), MASKS.values(), ids=MASKS)
def test_objects_with_broken_masks_are_boxes(tmp_path, mask, what):
    rows = [note(1, segmentation=SQUARE), note(2, (1, 1, 5, 5), segmentation=mask)]
    root = one_set(tmp_path, coco(rows))
    data = list_detect(root, masks=True)
    assert only(data).masks == (SQUARE, None)
    assert not only(data).crowd.any()
    named = f"annotation 2: its mask is broken, {what}; box and class are learnt"
    assert whats(data) == [named], "once"
    assert list_detect(root).problems == ()


def test_broken_run_lengths_without_a_box_hide_their_image(tmp_path):
    row = {**note(2, segmentation=rle(counts=[10**9, 9 * 10**9])), "bbox": None}
    data = list_detect(one_set(tmp_path, coco([note(1), row])), masks=True)
    assert len(data.train) == 0
    (told,) = [what for what in whats(data) if what.startswith("annotation 2 left out")]
    assert told.endswith("the run lengths do not add up to the image")


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("bbox", [[1, 1, 5, 5], None])
def test_an_image_said_to_be_larger_than_any(tmp_path, bbox, masks):
    counts = {"size": [100_000, 100_000], "counts": [10**9, 9 * 10**9]}
    data = coco([{**note(segmentation=counts), "bbox": bbox}], [image(size=(100_000, 100_000))])
    with pytest.raises(DataError, match=r"500 million.* 100000 x 100000 .*'1\.jpg'"):
        list_detect(one_set(tmp_path, data), masks=masks)


def test_slivers_beside_a_polygon_are_dropped():
    assert clean_segmentation([[1, 2, 3, 4], *SQUARE], (80, 100)) == (SQUARE, "")


@pytest.mark.parametrize("empty", [None, [], {}, [[]]])
def test_objects_without_a_mask(tmp_path, empty):
    rows = [note(1, segmentation=SQUARE), note(2, (1, 1, 5, 5), segmentation=empty)]
    data = list_detect(one_set(tmp_path, coco(rows)), masks=True)
    assert whats(data) == ["1 of 2 objects without a mask: box and class are learnt"]
    assert only(data).class_ids.tolist() == [0, 0]
    assert data.problems[0].severity == "warning"


def test_no_mask_at_all(tmp_path):
    data = list_detect(one_set(tmp_path, coco([note(1), note(2, (1, 1, 5, 5))])), masks=True)
    (problem,) = data.problems
    assert problem.severity == "error"
    assert problem.what.startswith("none of 2 objects has a mask")
    assert "; 2 objects without a mask" in data.note


def test_masks_decide_whether_equal_boxes_are_duplicates(tmp_path):
    other = [[10, 10, 30, 10, 10, 20]]
    rows = [note(1, segmentation=SQUARE), note(2, segmentation=other), note(3, segmentation=SQUARE)]
    data = list_detect(one_set(tmp_path, coco(rows)), masks=True)
    assert only(data).masks == (SQUARE, other)
    assert whats(data) == ["annotation 3 left out, duplicate: the same as annotation 1"]


def test_sums_of_run_lengths_equal_the_image():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        size = (int(rng.integers(1, 90)), int(rng.integers(1, 900)))
        bitmap = rng.random(size) < rng.choice([0, 0.001, 0.5, 1])
        assert clean_segmentation(encode_mask(bitmap), size)[1] == ""
        height, width = size
        mask = {**encode_mask(bitmap), "size": [height + 1, width]}
        assert clean_segmentation(mask, (height + 1, width))[1]


# ---- wrong throughout


@pytest.mark.parametrize("number", [1, 40])
def test_corners_given_as_sides(tmp_path, number):
    rows = [note(i, (55 - i, 30, 90, 70 - i), area=i) for i in range(number)]
    rows += [note(99, (5, 5, 5, 9))] * (number == 40)
    match = r"x, y, width, height, got what looks like x0, y0, x1, y1 in 'instances.json'.*x1 - x0"
    with pytest.raises(DataError, match=match):
        list_detect(one_set(tmp_path, coco(rows)))


def test_large_objects_are_not_taken_for_corners(tmp_path):
    rows = [note(i, (i, i, 100 - 2 * i, 80 - 2 * i)) for i in range(10)]
    assert list_detect(one_set(tmp_path, coco(rows))).problems == ()


def test_fractions(tmp_path):
    rows = [note(1, (0.1, 0.2, 0.3, 0.5)), note(2, (0, 0.5, 0.2, 0.2))]
    with pytest.raises(DataError, match=r"pixels, got .* between 0 and 0\.5 only.*Multiply"):
        list_detect(one_set(tmp_path, coco(rows)))


# ---- not COCO, or not all there


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", r"must be an object with the lists .* got a list \('x\.coco\.json' in"),
        ("3", r"got a int"),
        ('{"images": []}', r"got no annotations and no categories in it .* Export"),
        ('{"images": [], "annotations": {}, "categories": []}', r"got no annotations in it"),
        ('{"images": [{"id": 1', r"must be JSON that is whole, got: .*char .*export it again"),
        ("\udcff", r"must be JSON that is whole"),
    ],
)
def test_not_coco(tmp_path, text, match):
    touch(tmp_path, "1.jpg")
    place = tmp_path / "x.coco.json"
    place.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=match):
        list_detect(place)
    with pytest.raises(DataError, match=match):
        list_detect(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": [{"id": 1}]}, r"an id and a file_name, got \{'id': 1\} as images\[0\] of 'x"),
        ({"images": [{"file_name": "1.jpg"}]}, r"an id and a file_name"),
        ({"images": [image(1), image(1, "2.jpg")]}, r"got 1 for '1\.jpg' and '2\.jpg' in 'x\.json"),
        (
            {"categories": [{"id": 3}]},
            r"a name and an id of its own, got \{'id': 3\} as categories",
        ),
        ({"categories": [CATEGORIES[0], {"id": 3, "name": "b"}]}, r"as categories\[1\] of 'x"),
        ({"categories": []}, r"needs at least one class, got none"),
        (
            {"images": [image(1, "a.jpg"), image(2, "b.jpg")]},
            r"'x\.json' names must lie in .*, got none of 2 there, the first is 'a\.jpg'\. Give",
        ),
    ],
)
def test_faulty_files(tmp_path, change, match):
    touch(tmp_path, "1.jpg", "2.jpg")
    write(tmp_path / "x.json", {**coco([note()]), **change})
    with pytest.raises(DataError, match=match):
        list_detect(tmp_path)


def test_some_images_are_not_there(tmp_path):
    root = one_set(tmp_path, coco([note()], [image(n, f"{n}.jpg") for n in range(1, 5)]))
    (root / "2.jpg").unlink()
    (root / "4.jpg").unlink()
    data = list_detect(root)
    assert [entry.path for entry in data.train.entries] == ["1.jpg", "3.jpg"]
    assert [(p.file, p.severity) for p in data.problems] == [
        ("2.jpg", "warning"),
        ("4.jpg", "warning"),
    ]
    assert whats(data)[0] == "not there, left out; instances.json names it"
    assert "2 images of instances.json not there ('2.jpg', '4.jpg')" in data.note


def test_image_twice_in_images(tmp_path):
    rows = [note(1), note(2, (1, 1, 5, 5), image_id=2)]
    data = list_detect(one_set(tmp_path, coco(rows, [image(1), image(2)])))
    assert len(only(data)) == 2
    assert whats(data) == ["twice in images of instances.json; its annotations are joined"]


def test_size_that_is_not_said_is_read_from_the_image(tmp_path):
    images = [{"id": 1, "file_name": "1.png"}, {**image(2, "2.png"), "width": 0}]
    write(tmp_path / "x.json", coco([note()], images))
    Image.new("L", (100, 80)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_text("no image")
    data = list_detect(tmp_path)
    (entry,) = data.train.entries
    assert entry.size == (80, 100)
    assert "left out: its size is not in the JSON, and '2.png' must be an image" in whats(data)[0]


def test_two_versions_of_one_set(tmp_path):
    touch(tmp_path, "1.jpg")
    for name in ("instances_train2014.json", "instances_train2017.json"):
        write(tmp_path / name, coco([note()]))
    with pytest.raises(DataError, match=r"got 'instances_train2014\.json' and 'inst.*'?1\.jpg"):
        list_detect(tmp_path)


@pytest.mark.parametrize("same_images", [True, False])
def test_several_files_of_one_set_are_joined(tmp_path, same_images):
    """Batches of images, or a file for each class of the same images."""
    second = "1.jpg" if same_images else "2.jpg"
    touch(tmp_path, "images/1.jpg", f"images/{second}")
    write(tmp_path / "batch1.json", coco([note(1)]))
    rows = coco([note(1, (1, 1, 5, 5))])
    rows["annotations"][0]["category_id"] = rows["categories"][1]["id"]
    rows["images"][0]["file_name"] = second
    write(tmp_path / "batch2.json", rows)
    data = list_detect(tmp_path)
    assert data.train.class_names == ("cat", "dog")
    found = [(one.path, one.objects.class_ids.tolist()) for one in data.train.entries]
    wanted = [("images/1.jpg", [0]), ("images/2.jpg", [1])]
    assert found == ([("images/1.jpg", [0, 1])] if same_images else wanted)
    assert "train: 2 files joined, batch1.json, batch2.json" in data.note


@pytest.mark.parametrize("masks", [True, False])
def test_crowds_that_are_all_there_is(tmp_path, masks):
    """CVAT exports brushed masks as crowds with run lengths; other crowds teach nothing."""
    brushed = [note(1, segmentation=rle(), iscrowd=1), note(2, (1, 1, 5, 5), iscrowd=1)]
    brushed[1]["segmentation"] = rle()
    root = one_set(tmp_path, coco(brushed))
    data = list_detect(root, masks=masks)
    assert only(data).crowd.tolist() == [False, False]
    assert data.problems == ()
    assert "all of 2 annotations are crowds with run lengths" in data.note
    brushed[1]["segmentation"] = SQUARE
    write(root / "instances.json", coco(brushed))
    data = list_detect(root, masks=masks)
    assert data.problems[0].severity == "error"
    assert data.problems[0].what.startswith("each of 2 objects is a crowd")
    brushed[1]["iscrowd"] = 0
    write(root / "instances.json", coco(brushed))
    assert only(list_detect(root, masks=masks)).crowd.tolist() == [True, False]


def test_an_id_of_two_equal_images_is_named(tmp_path):
    rows = coco([note(1)])
    rows["images"] *= 2
    data = list_detect(one_set(tmp_path, rows))
    assert whats(data) == ["several images have the id 1 and one file: taken as one"]


def test_many_files_one_a_image_are_not_opened(tmp_path):
    for number in range(30):
        touch(tmp_path, f"{number}.jpg")
        write(tmp_path / f"{number}.json", {"forms": []})
    with pytest.raises(DataError, match=r"30 \.json, .* COCO"):
        list_detect(tmp_path)


# ---- real data, read by pycocotools as well


def sorted_rows(rows) -> list:
    return sorted(map(tuple, np.round(rows, 6).tolist()))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("coco_mini", {"train": "train2017", "val": "val2017"}),
        ("nuclei", {"train": "train", "test": "test"}),
    ],
)
def test_equal_to_pycocotools(data_root, capsys, name, parts):
    data = list_detect(data_root / name, masks=True)
    assert data.problems == ()
    assert list(data.parts) == list(parts)
    for part, json_name in parts.items():
        coco = COCO(str(data_root / name / "annotations" / f"instances_{json_name}.json"))
        capsys.readouterr()
        listing = data.parts[part]
        places = {row["file_name"]: row for row in coco.imgs.values()}
        names = [row["name"] for row in coco.loadCats(sorted(coco.getCatIds()))]
        assert list(listing.class_names) == names
        assert len(listing) == len(places)
        for entry in listing.entries:
            row = places[Path(entry.path).name]
            assert entry.size == (row["height"], row["width"])
            rows = coco.loadAnns(coco.getAnnIds(imgIds=[row["id"]]))
            objects = entry.objects
            mine = np.c_[objects.boxes, objects.areas, objects.class_ids, objects.crowd]
            theirs = [
                (
                    *(x, y, x + width, y + height),
                    one["area"],
                    names.index(coco.cats[one["category_id"]]["name"]),
                    one["iscrowd"],
                )
                for one in rows
                for x, y, width, height in [one["bbox"]]
            ]
            assert np.abs(np.subtract(sorted_rows(mine), sorted_rows(theirs))).max() < 0.02
            if len(rows) < 40:
                masks = [decode_mask(to_run_lengths(mask, entry.size)) for mask in objects.masks]
                assert sorted(mask.tobytes() for mask in masks) == sorted(
                    coco.annToMask(one).astype(bool).tobytes() for one in rows
                )


@pytest.mark.parametrize("name", ["coco_mini", "nuclei"])
def test_real_json_itself(data_root, name):
    folder = data_root / name / "annotations"
    for place in sorted(folder.glob("instances_*.json")):
        data = list_detect(place)
        assert len(data.train) > 20
        assert (Path(data.train.source) / data.train.entries[0].path).is_file()


def test_keypoint_file_itself(data_root):
    data = list_detect(data_root / "coco_mini/annotations/person_keypoints_val2017.json")
    assert data.train.class_names == ("person",)


def test_what_a_file_has_twice_is_named(tmp_path):
    categories = [*CATEGORIES, {"id": 9, "name": "cat "}]
    rows = [note(1), note(1, (0, 0, 5, 6), category_id=9)]
    data = list_detect(one_set(tmp_path, coco(rows, categories=categories)))
    assert data.train.class_names == ("cat", "dog")
    assert only(data).class_ids.tolist() == [0, 0]
    first, second = whats(data)
    assert first == "categories 3, 9 are all named 'cat': taken as one class"
    assert second == "several annotations have the id 1: all of them are kept"
    assert data.left_out == ""


def test_images_without_an_entry_are_counted(tmp_path):
    touch(one_set(tmp_path, coco([note()])), "2.jpg", "masks/1.png")
    assert "1 image without an entry left out ('2.jpg')" in list_detect(tmp_path).note


def test_an_empty_json_is_named(tmp_path):
    touch(tmp_path, "1.jpg", "a.json")
    with pytest.raises(DataError, match=r"'a\.json' is empty"):
        list_detect(tmp_path)
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"'a\.json' is no JSON"):
        list_detect(tmp_path)
