# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from muntin.data.detection import list_detect
from muntin.errors import DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    return root


def thing(name="cat", box=(10, 20, 30, 40), difficult=0, more="") -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inside = "".join(f"<{key}>{value}</{key}>" for key, value in edges)
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult>{more}"
        f"<bndbox>{inside}</bndbox></object>"
    )


def xml(*objects: str, filename="1.jpg", size=(80, 100)) -> str:
    sides = f"<size><width>{size[1]}</width><height>{size[0]}</height></size>" if size else ""
    return f"<annotation><filename>{filename}</filename>{sides}{''.join(objects)}</annotation>"


def write(root: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    place = root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text, encoding=encoding)
    return root


def one(root: Path, text: str) -> Path:
    return write(touch(root, "1.jpg"), "1.xml", text)


def whats(data) -> list[str]:
    return [problem.what for problem in data.problems]


def test_one_image(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    data = list_detect(
        one(tmp_path, xml(thing("dog", more=part), thing("cat", (0, 0, 5.5, 6), difficult=1)))
    )
    assert data.problems == ()
    assert data.train.class_names == ("cat", "dog")
    assert data.train.multi_label
    (entry,) = data.train.entries
    assert (entry.path, entry.size, entry.class_ids) == ("1.jpg", (80, 100), (1,))
    assert entry.objects.boxes.tolist() == [[10, 20, 30, 40], [0, 0, 5.5, 6]]
    assert entry.objects.class_ids.tolist() == [1, 0]
    assert entry.objects.crowd.tolist() == [False, True]
    assert entry.objects.areas.tolist() == [400, 33]
    assert data.note == "VOC, train 1 image, 2 objects of 2 classes"


# XML, image
LAYOUTS = {
    "beside": ("{}/1.xml", "{}/1.jpg"),
    "folders in a part": ("{}/annotations/1.xml", "{}/images/1.jpg"),
    "parts in folders": ("Annotations/{}/1.XML", "JPEGImages/{}/1.JPG"),
    "deep": ("set/{}/labels/1.xml", "set/{}/1.jpeg"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, layout):
    for part in ("train", "valid", "test"):
        write(touch(tmp_path, layout[1].format(part)), layout[0].format(part), xml(thing()))
    data = list_detect(tmp_path)
    assert list(data.parts) == ["train", "val", "test"]
    paths = [listing.entries[0].path for listing in data.parts.values()]
    assert paths == [layout[1].format(part) for part in ("train", "valid", "test")]


def devkit(root: Path, numbers: int = 6, year: str = "") -> Path:
    for number in range(numbers):
        touch(root, f"{year}JPEGImages/{number}.jpg", f"{year}SegmentationObject/{number}.png")
        write(root, f"{year}Annotations/{number}.xml", xml(thing(), filename=f"{number}.jpg"))
    return root


@pytest.mark.parametrize("year", ["", "VOCdevkit/VOC2007/"])
def test_lists(tmp_path, year):
    root = devkit(tmp_path, 6, year)
    folder = f"{year}ImageSets/Main"
    write(root, f"{folder}/train.txt", "0\n1.jpg\r\n\n9\n")
    write(root, f"{folder}/val.txt", "2\n")
    write(root, f"{folder}/trainval.txt", "0\n1\n2\n")
    write(root, f"{folder}/test.txt", "JPEGImages/3.jpg\n4 1", "utf-8-sig")
    write(root, f"{folder}/cat_train.txt", "5 -1\n")
    data = list_detect(root)
    names = {
        part: [entry.path.removeprefix(f"{year}JPEGImages/") for entry in listing.entries]
        for part, listing in data.parts.items()
    }
    assert names == {"train": ["0.jpg", "1.jpg"], "val": ["2.jpg"], "test": ["3.jpg", "4.jpg"]}
    (problem,) = data.problems
    assert (problem.file, problem.what) == (f"{folder}/train.txt", "'9' has no XML, left out")
    assert "1 XML file in no list of ImageSets/Main left out" in data.note


def test_lists_without_train(tmp_path):
    root = devkit(tmp_path)
    write(root, "ImageSets/Main/trainval.txt", "0\n1\n2\n")
    write(root, "ImageSets/Main/test.txt", "3\n")
    data = list_detect(root)
    assert [len(listing) for listing in data.parts.values()] == [3, 1]
    write(root, "ImageSets/Main/val.txt", "2\n")
    assert [len(listing) for listing in list_detect(root).parts.values()] == [2, 1, 1]


def test_two_years_are_joined(tmp_path):
    for year in ("VOC2007/", "VOC2012/"):
        devkit(tmp_path, 3, year)
        write(tmp_path, f"{year}ImageSets/Main/train.txt", "0\n1\n")
        write(tmp_path, f"{year}ImageSets/Main/val.txt", "2\n")
    data = list_detect(tmp_path)
    assert [len(listing) for listing in data.parts.values()] == [4, 2]
    assert data.train.entries[0].path == "VOC2007/JPEGImages/0.jpg"
    assert data.train.entries[-1].path == "VOC2012/JPEGImages/1.jpg"


def test_masks_of_the_same_name_are_not_taken_for_the_image(tmp_path):
    touch(tmp_path, "annotations/trimaps/1.png", "images/1.jpg", "masks/1.jpg")
    write(tmp_path, "annotations/xmls/1.xml", xml(thing()))
    assert list_detect(tmp_path).train.entries[0].path == "images/1.jpg"


def test_name_in_the_file_is_the_second_choice(tmp_path):
    write(touch(tmp_path, "1.jpg", "2.jpg"), "1.xml", xml(thing(), filename="2.jpg"))
    write(touch(tmp_path, "c.png"), "b.xml", xml(thing(), filename="C:\\x\\c.PNG"))
    paths = [entry.path for entry in list_detect(tmp_path).train.entries]
    assert paths == ["1.jpg", "c.png"]


def test_files_in_no_part_are_noted(tmp_path):
    for part in ("train/", "val/", ""):
        write(touch(tmp_path, f"{part}1.jpg"), f"{part}1.xml", xml(thing()))
    data = list_detect(tmp_path)
    assert [len(listing) for listing in data.parts.values()] == [1, 1]
    assert "1 XML file in no train, val or test folder left out" in data.note


def test_images_without_objects_stay_and_those_without_a_file_do_not(tmp_path):
    write(one(tmp_path, xml(thing())), "2.xml", xml())
    touch(tmp_path, "2.jpg", "3.jpg")
    bare = list_detect(tmp_path).train.entries
    assert [(entry.path, len(entry.objects)) for entry in bare] == [("1.jpg", 1), ("2.jpg", 0)]


@pytest.mark.parametrize("size", [None, (0, 0), (100, 0), ("", ""), ("nan", "inf"), ("a", 1)])
def test_size_that_is_not_said_is_read_from_the_image(tmp_path, size):
    root = write(tmp_path, "1.xml", xml(thing(), size=size))
    Image.new("L", (100, 80)).save(root / "1.jpg")
    assert list_detect(root).train.entries[0].size == (80, 100)


def test_classes_of_a_run(tmp_path):
    root = one(tmp_path, xml(thing(" cat "), thing("dog", (1, 2, 3, 4))))
    assert list_detect(root, class_names=("dog", "owl", "cat")).train.entries[0].class_ids == (0, 2)
    with pytest.raises(DataError, match=r"trained on \(dog, owl\), got also cat"):
        list_detect(root, class_names=("dog", "owl"))


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (thing(box=(5, 5, 5, 9)), "(cat) left out, of zero area: x from 5 to 5, y from 5 to 9"),
        (thing(box=(9, 5, 5, 9)), "(cat) left out, of negative size: x from 9 to 5, y from 5 to 9"),
        (thing(box=(9, "nan", 5, 9)), "(cat) left out, not finite: x from 9 to 5, y from nan to 9"),
        (
            thing(box=(1, "", 5, "x")),
            "(cat) left out, without a box of four numbers: ymin is '', ymax is 'x'",
        ),
        (
            thing().replace("xmax", "right"),
            "(cat) left out, without a box of four numbers: no xmax",
        ),
        (
            "<object><name>cat</name></object>",
            "(cat) left out, without a box of four numbers: no bndbox",
        ),
        (thing("", (1, 2, 3, 4)), "(no name) left out, without a class name"),
        (thing(), "(cat) left out, duplicate: the same as object 1 (cat)"),
        (
            thing(box=(101, 5, 120, 9)),
            "(cat) left out, outside the image: x from 101 to 120, y from 5 to 9; "
            "the image is 80 x 100 (height x width)",
        ),
    ],
)
def test_faulty_objects_are_left_out(tmp_path, wrong, what):
    data = list_detect(one(tmp_path, xml(thing(), wrong, thing(box=(1, 1, 2, 2)))))
    problem = next(one for one in data.problems if one.severity == "warning")
    assert (problem.file, problem.severity) == ("1.xml", "warning")
    assert problem.what == f"object 2 {what}"
    hidden = "finite" in what or "numbers" in what
    region = "negative" in what or "name)" in what
    assert len(data.train) == (0 if hidden else 1)
    if not hidden:
        objects = data.train.entries[0].objects
        assert objects.crowd.tolist() == ([False, True, False] if region else [False, False])
        assert (-1 in objects.class_ids) == region


def test_names_in_a_namespace(tmp_path):
    text = xml(thing()).replace("<annotation", '<annotation xmlns="http://example.org/voc"', 1)
    data = list_detect(one(tmp_path, text))
    assert data.problems == ()
    assert data.train.class_names == ("cat",)
    assert len(data.train.entries[0].objects) == 1


def test_boxes_over_the_edge_are_cut(tmp_path):
    data = list_detect(one(tmp_path, xml(thing(box=(1, 1, 101, 81)), thing(box=(-9, 0, 9, 83)))))
    assert data.train.entries[0].objects.boxes.tolist() == [[1, 1, 100, 80], [0, 0, 9, 80]]
    assert whats(data) == [
        "boxes reach up to 9 pixels over the edge of the image, cut (object 2 (cat))"
    ]


def test_faulty_files_are_left_out(tmp_path):
    root = one(tmp_path, xml(thing()))
    write(touch(root, "2.jpg"), "2.xml", xml(thing())[:60])
    write(root, "3.xml", xml(thing(), filename="3.jpg"))
    write(touch(root, "4.jpg"), "4.xml", xml(thing(), size=None))
    data = list_detect(root)
    assert [entry.path for entry in data.train.entries] == ["1.jpg"]
    assert [problem.file for problem in data.problems] == ["2.xml", "3.xml", "4.xml"]
    broken, missing, empty = whats(data)
    assert broken.startswith("not an XML that is whole, left out with its image: ")
    assert missing == "its image '3.jpg' is not there, left out"
    assert empty.startswith("left out: it lacks the size of its image")


def test_no_image_at_all(tmp_path):
    write(tmp_path, "a/1.xml", xml(thing()))
    with pytest.raises(DataError, match=r"image beside it .* none for 1 files .* 'a/1\.xml'"):
        list_detect(tmp_path)


@pytest.mark.parametrize("box", [(30, 20, 10, 40), (60, 50, 9, 30)])
def test_second_corner_before_the_first_throughout(tmp_path, box):
    match = r"xmax > xmin and ymax > ymin, got the opposite for 1 of 1 in .*width and height, write"
    with pytest.raises(DataError, match=match):
        list_detect(one(tmp_path, xml(thing(box=box))))


def test_no_object_at_all(tmp_path):
    with pytest.raises(DataError, match=r"one class, .*Annotate"):
        list_detect(one(tmp_path, xml()))


def test_there_are_no_masks(tmp_path):
    data = list_detect(one(tmp_path, xml(thing())), masks=True)
    (problem,) = data.problems
    assert problem.severity == "error"
    assert problem.what.startswith("none of 1 objects has a mask")


def test_xml_of_something_else(tmp_path):
    write(touch(tmp_path, "1.jpg"), "1.xml", "<html/>")
    with pytest.raises(DataError, match=r"1 \.xml, .* VOC"):
        list_detect(tmp_path)


def test_bccd(data_root):
    root = data_root / "bccd"
    data = list_detect(root)
    assert data.train.class_names == ("Platelets", "RBC", "WBC")
    assert [len(listing) for listing in data.parts.values()] == [205, 87, 72]
    assert [(p.file, p.severity) for p in sorted(data.problems, key=lambda p: p.file)] == [
        ("Annotations/BloodImage_00338.xml", "warning"),
        ("Annotations/BloodImage_00343.xml", "warning"),
    ]
    assert all("of zero area" in problem.what for problem in data.problems)
    assert "2 annotations left out: 2 of zero area" in data.note
    counts = dict.fromkeys(data.train.class_names, 0)
    for listing in data.parts.values():
        for entry in listing.entries:
            assert entry.size == (480, 640)
            for class_id in entry.objects.class_ids:
                counts[listing.class_names[class_id]] += 1
    assert sum(counts.values()) == 4888 - 2
    assert (counts["WBC"], counts["Platelets"]) == (372, 361)
    # One of them, read otherwise.
    entry = data.train.entries[0]
    tree = ElementTree.parse(root / "Annotations" / f"{Path(entry.path).stem}.xml")
    boxes = [[float(edge.text) for edge in box] for box in tree.iter("bndbox")]
    assert entry.objects.boxes.tolist() == boxes


def test_images_without_an_xml_are_counted(tmp_path):
    touch(write(touch(tmp_path, "a/1.jpg"), "a/1.xml", xml(thing())), "a/2.jpg", "masks/3.png")
    assert "1 image without an XML left out ('a/2.jpg')" in list_detect(tmp_path).note
