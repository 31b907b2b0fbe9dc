# SPDX-License-Identifier: Apache-2.0
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.detection import list_detect
from muntin.data.trees import read_size
from muntin.errors import DataError

SIZE = (80, 100)


def image(root: Path, *names: str) -> Path:
    for name in names:
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE[::-1]).save(place)
    return root


def write(root: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    place = root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(text.encode(encoding))
    return place


def one(root: Path, text: str, encoding: str = "utf-8") -> Path:
    image(root, "1.jpg")
    write(root, "1.txt", text, encoding)
    write(root, "classes.txt", "cat\ndog\n")
    return root


def whats(data) -> list[str]:
    return [problem.what for problem in data.problems]


def only(data):
    (entry,) = data.train.entries
    return entry.objects


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_one_image(tmp_path, encoding):
    text = "1 0.5 0.5 0.2 0.5\r\n\r\n0\t0.05 0.1 0.1 0.2 \r\n"
    data = list_detect(one(tmp_path, text, encoding))
    assert data.problems == ()
    assert data.train.class_names == ("cat", "dog")
    assert data.train.multi_label
    (entry,) = data.train.entries
    assert (entry.path, entry.size, entry.class_ids) == ("1.jpg", SIZE, (0, 1))
    assert np.allclose(entry.objects.boxes, [[40, 20, 60, 60], [0, 0, 10, 16]])
    assert entry.objects.class_ids.tolist() == [1, 0]
    assert np.allclose(entry.objects.areas, [800, 160])
    assert not entry.objects.crowd.any()
    assert data.note == "YOLO, train 1 image, 2 objects of 2 classes"


def test_polygons(tmp_path):
    text = "1 0.1 0.25 0.5 0.25 0.5 0.5 0.1 0.5\n0 0.5 0.5 0.2 0.2\n"
    root = one(tmp_path, text)
    objects = only(list_detect(root))
    assert objects.boxes[0].tolist() == [10, 20, 50, 40]
    assert objects.masks == ()
    data = list_detect(root, masks=True)
    assert only(data).masks == ([[10, 20, 50, 20, 50, 40, 10, 40]], None)
    assert np.allclose(only(data).areas, [800, 320])
    assert whats(data) == ["1 of 2 objects without a mask: box and class are learnt"]
    (root / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (problem,) = list_detect(root, masks=True).problems
    assert problem.severity == "error"
    assert problem.what.startswith("none of 1 objects has a mask")


# image, text, what data.yaml says of it
LAYOUTS = {
    "ultralytics": ("images/{}/1.jpg", "labels/{}/1.txt", "images/{}"),
    "roboflow": ("{}/images/1.jpg", "{}/labels/1.txt", "../{}/images"),
    "one folder": ("{}/1.jpg", "{}/1.txt", "{}"),
    "part": ("{}/images/1.jpg", "{}/labels/1.txt", "{}"),
    "another machine": ("{}/images/1.jpg", "{}/labels/1.txt", "/content/data/{}/images/"),
    "windows": ("images/{}/1.JPG", "labels/{}/1.TXT", "D:\\set\\images\\{}"),
    "deep": ("images/{}/a/b/1.jpg", "labels/{}/a/b/1.txt", "./images/{}"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("settings", ["data.yaml", ""])
def test_layouts(tmp_path, layout, settings):
    for part in ("train", "valid", "test"):
        image(tmp_path, layout[0].format(part))
        write(tmp_path, layout[1].format(part), "0 0.5 0.5 0.1 0.1")
    write(tmp_path, "README.txt", "hello")
    if settings:
        said = (f"{key}: {layout[2].format(key)}" for key in ("train", "test"))
        lines = [*said, f"val: {layout[2].format('valid')}", "nc: 2", "names: ['cat', 'dog']"]
        write(tmp_path, settings, "\n".join(lines))
    else:
        write(tmp_path, "classes.txt", "cat\ndog")
    for place in (tmp_path, tmp_path / settings):
        data = list_detect(place)
        assert data.problems == ()
        assert list(data.parts) == ["train", "val", "test"]
        paths = [listing.entries[0].path for listing in data.parts.values()]
        assert paths == [layout[0].format(part) for part in ("train", "valid", "test")]
        assert [len(listing.entries[0].objects) for listing in data.parts.values()] == [1, 1, 1]


@pytest.mark.parametrize("top", ["", "set/"])
def test_archive(tmp_path, top):
    root = tmp_path / "content"
    for part in ("train", "val"):
        image(root, f"{top}images/{part}/1.png")
        write(root, f"{top}labels/{part}/1.txt", "0 0.5 0.5 0.1 0.1")
    write(root, f"{top}data.yaml", "train: images/train\nval: images/val\nnames: [cat]")
    place = Path(shutil.make_archive(str(tmp_path / "set"), "zip", root))
    data = list_detect(place)
    assert data.train.source == str(place)
    assert data.val.entries[0].path == f"{top}images/val/1.png"
    assert data.val.entries[0].size == SIZE
    assert zipfile.is_zipfile(place)


@pytest.mark.parametrize("base", ["{}", "../data", "data", "/somewhere/else/data"])
def test_settings_in_another_folder(tmp_path, base):
    image(tmp_path, "data/images/a/1.jpg", "data/images/b/2.jpg")
    for name in ("a/1", "b/2"):
        write(tmp_path, f"data/labels/{name}.txt", "0 0.5 0.5 0.1 0.1")
    base = base.format(tmp_path / "data")
    inside = base in ("data", "/somewhere/else/data")
    place = write(
        tmp_path,
        "set.yaml" if inside else "configs/set.yaml",
        f"path: {base}\ntrain:\n  - images/a\nval: images/b\ntest:\nnames: {{0: cat, 1: dog}}\n",
    )
    data = list_detect(place)
    assert list(data.parts) == ["train", "val"]
    for listing, name in zip(
        data.parts.values(), ("images/a/1.jpg", "images/b/2.jpg"), strict=True
    ):
        (entry,) = listing.entries
        assert entry.path.endswith(name)
        assert (Path(listing.source) / entry.path).is_file()
        assert len(entry.objects) == 1


def test_lists_of_images_and_several_folders(tmp_path):
    image(tmp_path, *(f"images/{name}.jpg" for name in ("a/1", "a/2", "b/3", "c/4")))
    for name in ("a/1", "a/2", "b/3", "c/4"):
        write(tmp_path, f"labels/{name}.txt", "0 0.5 0.5 0.1 0.1")
    write(tmp_path, "val.txt", "./images/a/2.jpg\r\n\n/old/images/c/4.jpg\nimages/gone.jpg\n")
    write(tmp_path, "data.yaml", "train: [images/b, images/a]\nval: val.txt\nnames:\n  - cat\n")
    data = list_detect(tmp_path)
    names = [[entry.path[7:] for entry in listing.entries] for listing in data.parts.values()]
    assert names == [["a/1.jpg", "a/2.jpg", "b/3.jpg"], ["a/2.jpg", "c/4.jpg"]]
    assert "1 image listed for val not there" in data.note


def test_everything_is_one_set_where_nothing_says_otherwise(tmp_path):
    image(tmp_path, "images/1.jpg", "images/2.jpg")
    write(tmp_path, "labels/1.txt", "0 0.5 0.5 0.1 0.1")
    write(tmp_path, "labels/classes.txt", "cat")
    write(tmp_path, "data.yaml", "names: [no, yes]\npath: .\n")
    data = list_detect(tmp_path)
    assert data.train.class_names == ("no", "yes")
    assert [len(entry.objects) for entry in data.train.entries] == [1, 0]
    assert "1 image of train without a text, hence without objects" in data.note


def test_test_set_without_texts_or_without_images_is_left_out(tmp_path):
    image(tmp_path, *(f"{part}/images/1.jpg" for part in ("train", "val", "test")))
    for part in ("train", "val"):
        write(tmp_path, f"{part}/labels/1.txt", "0 0.5 0.5 0.1 0.1")
    text = "train: train\nval: val\ntest: ../{}/images\nnames: [cat]"
    write(tmp_path, "data.yaml", text.format("test"))
    data = list_detect(tmp_path)
    assert list(data.parts) == ["train", "val"]
    assert "test left out: none of its 1 images has a text" in data.note
    write(tmp_path, "data.yaml", text.format("gone"))
    assert (
        "data.yaml names ../gone/images for test, which is not there" in list_detect(tmp_path).note
    )


def test_keypoints_behind_the_box(tmp_path):
    root = image(tmp_path, "images/1.jpg")
    write(root, "labels/1.txt", "0 0.5 0.5 0.2 0.5 0.1 0.1 2 0.2 0.2 1")
    write(root, "data.yaml", "train: images\nkpt_shape: [2, 3]\nnames: {0: cat}")
    assert np.allclose(only(list_detect(root)).boxes, [[40, 20, 60, 60]])


@pytest.mark.parametrize("number", [2, -1])
def test_a_number_beyond_the_names_is_an_error(tmp_path, number):
    data = list_detect(one(tmp_path, f"0 0.5 0.5 0.2 0.5\n{number} 0.2 0.2 0.1 0.1\n"))
    said = f"of an unknown class beyond the names: {number}, the classes are 0 to 1"
    (problem,) = data.problems
    assert (problem.file, problem.what, problem.severity) == (
        "1.txt", f"line 2 left out, {said}", "error",
    )  # fmt: skip
    assert only(data).class_ids.tolist() == [0, -1]


def test_classes_of_a_run(tmp_path):
    root = one(tmp_path, "1 0.5 0.5 0.2 0.5")
    data = list_detect(root, class_names=("owl", "dog"))
    assert data.train.entries[0].class_ids == (1,)
    with pytest.raises(DataError, match=r"trained on \(cat\), got also dog"):
        list_detect(root, class_names=("cat",))


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ("0 0.5 0.5 0 0.1", "of zero area: x from 50 to 50, y from 36 to 44"),
        ("0 0.5 0.5 -0.2 0.1", "of negative size: x from 60 to 40, y from 36 to 44"),
        ("0 0.5 nan 0.1 0.1", "not finite: x from 45 to 55, y from nan to nan"),
        (
            "0 1.5 0.5 0.2 0.1",
            "outside the image: x from 140 to 160, y from 36 to 44; "
            "the image is 80 x 100 (height x width)",
        ),
        ("0.5 0.5 0.5 0.2 0.1", "of an unknown class: 0.5"),
        ("0 0.5 0.5 0.25 0.5", "duplicate: the same as line 1"),
        ("cat 0.5 0.5 0.2 0.1", "not numbers: 'cat 0.5 0.5 0.2 0.1'"),
        (
            "0 0.5 0.5 0.2",
            "without a box of four numbers: 4 numbers, must be 5, "
            "or an odd number from 7 on for a polygon",
        ),
        (
            "0 0.1 0.1 0.2 0.2 1.9",
            "without a box of four numbers: 6 numbers, must be 5, "
            "or an odd number from 7 on for a polygon",
        ),
        ("0 50 40 20 10", "in pixels, not in fractions of the image: 50"),
    ],
)
def test_faulty_rows_are_left_out(tmp_path, row, what):
    data = list_detect(one(tmp_path, f"0 0.5 0.5 0.25 0.5\n{row}\n1 0.5 0.5 0.25 0.5\n"))
    problem = next(one for one in data.problems if one.severity == "warning")
    assert (problem.file, problem.severity) == ("1.txt", "warning")
    assert problem.what == f"line 2 left out, {what}"
    assert "; 1 annotation left out: 1 " in data.note
    hidden = any(word in what for word in ("finite", "numbers", "pixels"))
    region = "negative" in what or "class" in what
    assert len(data.train) == (0 if hidden else 1)
    if not hidden:
        assert only(data).crowd.tolist() == ([False, True, False] if region else [False, False])


def test_a_sixth_number_is_a_confidence(tmp_path):
    data = list_detect(one(tmp_path, "0 0.5 0.5 0.2 0.5 0.87\n"))
    assert data.problems == ()
    assert np.allclose(only(data).boxes, [[40, 20, 60, 60]])


def test_boxes_over_the_edge_are_cut(tmp_path):
    data = list_detect(one(tmp_path, "0 0.5 0.5 1.002 1.002\n1 0.1 0.5 0.5 0.5"))
    assert only(data).boxes.tolist() == [[0, 0, 100, 80], [0, 20, 35, 60]]
    assert whats(data) == ["boxes reach up to 15 pixels over the edge of the image, cut (line 2)"]


def test_pixels(tmp_path):
    match = r"fractions of the image between 0 and 1, got numbers up to 50 in .*Divide x"
    with pytest.raises(DataError, match=match):
        list_detect(one(tmp_path, "0 50 40 20 10\n0 30 40 20 10\n0 0.5 0.5 0.1 0.1"))
    with pytest.raises(DataError, match=r"numbers up to 40"):
        list_detect(one(tmp_path, "0 10 20 40 20 40 60"))


def test_image_that_cannot_be_read_is_left_out(tmp_path):
    root = one(tmp_path, "0 0.5 0.5 0.2 0.1")
    write(root, "2.jpg", "no image")
    data = list_detect(root)
    assert len(data.train) == 1
    (problem,) = data.problems
    assert problem.file == "2.jpg"
    assert problem.what.startswith("left out: '2.jpg' must be an image that can be read")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ({}, r"names of their classes: .* got neither in .*Write one"),
        ({"classes.txt": " \n"}, r"got neither"),
        ({"classes.txt": "a\nb", "obj.names": "a\nc"}, r"several that differ: classes\.txt, obj\."),
        ({"classes.txt": "a\na"}, r"a name of its own under names, .* got \['a', 'a'\] in"),
        ({"data.yaml": "names: {1: a, x: b}\nnc: 2"}, r"or by number, got \{'1': 'a', 'x'"),
        ({"data.yaml": "names: 2\nnc: 2"}, r"'data\.yaml' must give each class a name .*got '2'"),
        (
            {"data.yaml": "names: [a\nnc: 2"},
            r"'data\.yaml' in .* must be YAML that can be read, got",
        ),
        (
            {"data.yaml": "names: [a]\ntrain: gone"},
            r"names gone for train, .*got no image there .*it is relative to the file\.",
        ),
        (
            {"data.yaml": "names: [a]\nval: [x, y]\npath: z"},
            r"names x, y for val, .*it is relative to 'z'\.",
        ),
        (
            {"a.yaml": "names: [a]\nnc: 1", "b.yml": "names: [a]\nnc: 1"},
            r"one data\.yaml, got a\.y",
        ),
        ({"classes.txt": "a\udcff"}, r"'classes\.txt' in .* must be a text in UTF-8"),
    ],
)
def test_faulty_layouts(tmp_path, names, match):
    image(tmp_path, "1.jpg")
    write(tmp_path, "1.txt", "0 0.5 0.5 0.2 0.1")
    for name, text in names.items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=match):
        list_detect(tmp_path)


def test_numbers_of_classes_may_have_gaps(tmp_path):
    root = one(tmp_path, "7 0.5 0.5 0.2 0.1\n2 0.5 0.5 0.2 0.2\n3 0.2 0.2 0.1 0.1\n")
    write(root, "data.yaml", "names: {7: dog, 2: cat}\nnc: 8\ntrain: .\n")
    data = list_detect(root)
    assert data.train.class_names == ("cat", "dog")
    assert only(data).class_ids.tolist() == [1, 0, -1]
    assert whats(data) == ["line 3 left out, of an unknown class: 3, the classes are 2, 7"]
    assert "nc" not in data.note


@pytest.mark.parametrize("home", ["elsewhere", "set/real"])
def test_images_by_a_link(tmp_path, home):
    image(tmp_path, f"{home}/train/1.jpg", f"{home}/val/2.jpg")
    write(tmp_path, "set/labels/train/1.txt", "0 0.5 0.5 0.2 0.1")
    write(tmp_path, "set/labels/val/2.txt", "0 0.5 0.5 0.2 0.1")
    (tmp_path / "set/images").symlink_to(tmp_path / home, target_is_directory=True)
    text = "path: {}\ntrain: images/train\nval: images/val\nnames: [a]\n"
    for path in (".", tmp_path / "set", ""):
        write(tmp_path, "set/data.yaml", text.format(path))
        for place in (tmp_path / "set", tmp_path / "set/data.yaml"):
            data = list_detect(place)
            assert [len(part.entries[0].objects) for part in data.parts.values()] == [1, 1]
            assert data.problems == ()


def test_no_text_at_all(tmp_path):
    image(tmp_path, "images/1.jpg")
    write(tmp_path, "data.yaml", "names: [a]\ntrain: images")
    with pytest.raises(DataError, match=r"texts in labels .* none for"):
        list_detect(tmp_path)


def test_data_yaml_wins_over_other_yaml(tmp_path):
    root = one(tmp_path, "0 0.5 0.5 0.2 0.1")
    write(root, "data.yaml", "names: [a]\nnc: 1")
    write(root, "hyp.yaml", "names: [b]\ntrain: x")
    assert list_detect(root).train.class_names == ("a",)


def test_nothing_that_is_annotated(tmp_path):
    root = image(tmp_path, "1.jpg")
    write(root, "readme.txt", "")
    match = r"No annotated objects in .*1 \.txt"
    with pytest.raises(
        DataError, match=match + r".*Looked for COCO .*VOC .*YOLO .*Give the folder"
    ):
        list_detect(root)
    with pytest.raises(DataError, match=r"data\.yaml.*the file"):
        list_detect(root / "readme.txt")
    for path in (root / "gone", ""):
        with pytest.raises(DataError, match=r"found nothing at .*Check the path"):
            list_detect(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_sizes_are_those_of_upright_images(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 80)).save(tmp_path / f"1.{suffix}", exif=exif)
    upright = (80, 100) if orientation < 5 else (100, 80)
    assert read_size(str(tmp_path), f"1.{suffix}") == upright


def test_equal_to_voc(data_root, tmp_path):
    """The real set, written as YOLO by hand, gives the same listing."""
    voc = list_detect(data_root / "bccd")
    for part, listing in voc.parts.items():
        for entry in listing.entries[:20]:
            name = Path(entry.path).stem
            place = tmp_path / "images" / part / f"{name}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(Path(listing.source).resolve() / entry.path)
            height, width = entry.size
            rows = [
                f"{class_id} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} "
                f"{(x1 - x0) / width:.6f} {(y1 - y0) / height:.6f}"
                for class_id, (x0, y0, x1, y1) in zip(
                    entry.objects.class_ids, entry.objects.boxes, strict=True
                )
            ]
            write(tmp_path, f"labels/{part}/{name}.txt", "\n".join(rows))
    write(tmp_path, "classes.txt", "\n".join(voc.train.class_names))
    yolo = list_detect(tmp_path)
    assert yolo.problems == ()
    for part, listing in yolo.parts.items():
        for mine, theirs in zip(listing.entries, voc.parts[part].entries[:20], strict=True):
            assert (mine.size, mine.class_ids) == (theirs.size, theirs.class_ids)
            assert np.abs(mine.objects.boxes - theirs.objects.boxes).max() < 0.001


def test_paths_of_another_machine(tmp_path):
    for part, name in (("train", "1"), ("train", "2"), ("val", "3")):
        image(tmp_path, f"images/{part}/{name}.jpg")
        write(tmp_path, f"labels/{part}/{name}.txt", "0 0.5 0.5 0.1 0.1")
    text = "train: /old/train/images\nval: /old/valid/images\nnames: [cat]\n"
    write(tmp_path, "data.yaml", text)
    data = list_detect(tmp_path)
    assert [len(listing) for listing in data.parts.values()] == [2, 1]
    assert "sets by the names of the folders" in data.note
    write(tmp_path, "data.yaml", "train: images\nval: images\nnames: [cat]\n")
    assert [len(part) for part in list_detect(tmp_path).parts.values()] == [3, 3], "as written"


def test_another_number_of_classes(tmp_path):
    one(tmp_path, "0 0.5 0.5 0.1 0.1")
    write(tmp_path, "data.yaml", "train: .\nnc: 3\nnames: [cat, dog]\n")
    assert "nc: 3 and names 2 classes" in list_detect(tmp_path).note
    write(tmp_path, "data.yaml", "train: .\nnc: 2\nnames: [cat, dog]\n")
    assert "nc" not in list_detect(tmp_path).note


def test_paths_that_lead_to_the_same_images(tmp_path):
    image(tmp_path, "images/1.jpg")
    write(tmp_path, "labels/1.txt", "0 0.5 0.5 0.1 0.1")
    text = "train: /old/train/images\nval: /old/valid/images\nnames: [cat]\n"
    write(tmp_path, "data.yaml", text)
    with pytest.raises(DataError, match=r"different folders .* same images"):
        list_detect(tmp_path)


def test_a_text_that_cannot_be_read_hides_no_other_fault(tmp_path):
    one(tmp_path, "0 0.5 0.5 0.2 0.5\n7 0.5 0.5 0.2 0.5\n")
    image(tmp_path, "2.jpg")
    (tmp_path / "2.txt").write_bytes(b"\xff\xfe0\x00 ")
    data = list_detect(tmp_path)
    assert [entry.path for entry in data.train.entries] == ["1.jpg"]
    broken, unknown = data.problems
    assert broken.file == "2.jpg"
    assert "must be a text in UTF-8" in broken.what
    assert "of an unknown class" in unknown.what
    assert data.left_out == "1 annotation left out: 1 of an unknown class beyond the names"


def test_a_text_without_an_image_is_named(tmp_path):
    image(tmp_path, "images/1.png")
    write(tmp_path, "classes.txt", "cat\n")
    for name in ("1", "2"):
        write(tmp_path, f"labels/{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path, "labels/notes.txt", "drawn by hand\n")
    data = list_detect(tmp_path)
    (problem,) = data.problems
    assert problem.file == "labels/2.txt"
    assert "image is not there" in problem.what


def test_class_numbers_from_one_are_named(tmp_path):
    rows = "1 0.5 0.5 0.2 0.2\n2 0.3 0.3 0.2 0.2\n"
    (problem,) = [p for p in list_detect(one(tmp_path, rows)).problems if "start at 0" in p.what]
    assert "some have 2" in problem.what
    (tmp_path / "classes.txt").unlink()  # as the warning says
    write(tmp_path, "data.yaml", "train: .\nnames:\n  1: cat\n  2: dog\n")
    data = list_detect(tmp_path)
    assert (data.problems, only(data).class_ids.tolist()) == ((), [0, 1])


def test_val_that_is_named_for_train_too(tmp_path):
    for name in ("train/1", "train/2", "val/3"):
        image(tmp_path, f"images/{name}.png")
        write(tmp_path, f"labels/{name}.txt", "0 0.5 0.5 0.2 0.2\n")
    paths = "train: [images/train, images/val]\nval: images/val\n"
    write(tmp_path, "data.yaml", paths + "names: [cat]\n")
    data = list_detect(tmp_path)
    assert [len(part.entries) for part in data.parts.values()] == [3, 1]
    assert "val for train too" in data.note
