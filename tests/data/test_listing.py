# SPDX-License-Identifier: Apache-2.0
import tarfile
import zipfile
from pathlib import Path

import pytest

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.data.image_formats import image_suffixes
from muntin.data.listing import list_classify
from muntin.errors import DataError


def make(folder: Path, *names: str) -> Path:
    for name in names:
        place = folder / name
        if name.endswith("/"):
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(name.encode())
    return folder


def packed(tmp_path: Path, kind: str, *names: str) -> Path:
    folder = make(tmp_path / "content", *names)
    place = tmp_path / f"set.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(place, "w") as file:
            for path in sorted(folder.rglob("*")):
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(place, "w:gz" if kind.endswith("gz") else "w") as file:
            file.add(folder, arcname=".")
    return place


TWO = ("cats/1.jpg", "cats/2.jpg", "dogs/3.jpg")
PARTS = ("train/cats/1.jpg", "train/dogs/2.jpg", "val/cats/3.jpg", "val/dogs/4.jpg")


def test_folder_of_class_folders(tmp_path):
    data = list_classify(make(tmp_path, *TWO))
    assert data.val is None
    assert data.test is None
    assert data.train.class_names == ("cats", "dogs")
    assert [(e.path, e.class_ids) for e in data.train.entries] == [
        ("cats/1.jpg", (0,)),
        ("cats/2.jpg", (0,)),
        ("dogs/3.jpg", (1,)),
    ]
    assert not data.train.multi_label
    assert data.note == "one set in class folders, 3 images of 2 classes"


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_parts(tmp_path, val):
    names = [name.replace("val/", f"{val}/") for name in PARTS]
    data = list_classify(make(tmp_path, *names, "test/cats/5.jpg", "test/dogs/6.jpg"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 2, 2]
    assert data.val.entries[0].path == f"{val}/cats/3.jpg"
    assert "train 2, val 2, test 2 images of 2 classes" in data.note


def test_train_and_test_only(tmp_path):
    data = list_classify(make(tmp_path, *(name.replace("val/", "test/") for name in PARTS)))
    assert data.val is None
    assert len(data.test) == 2


def test_val_and_test_only(tmp_path):
    names = [name.replace("train/", "test/") for name in PARTS]
    data = list_classify(make(tmp_path, *names))
    assert data.train is None
    assert len(data.val) == len(data.test) == 2


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("top", ["", "flowers/", "train/", "flowers/train/"])
def test_archives_of_one_set(tmp_path, kind, top):
    data = list_classify(packed(tmp_path, kind, *(top + name for name in TWO)))
    assert data.train.class_names == ("cats", "dogs")
    assert data.val is None
    entry = data.train.entries[-1]
    assert entry.path == f"{top}dogs/3.jpg"
    assert read_bytes(data.train.source, entry.path) == entry.path.encode()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("top", ["", "flowers/"])
def test_archives_of_parts(tmp_path, kind, top):
    data = list_classify(packed(tmp_path, kind, *(top + name for name in PARTS)))
    assert len(data.train) == len(data.val) == 2
    assert data.val.entries[0].path == f"{top}val/cats/3.jpg"


@pytest.mark.parametrize("more", [(), ("val/emus/",), ("val/emus/", "test/emus/", "test/gnus/")])
def test_classes_come_from_train(tmp_path, more):
    names = (*PARTS, "train/emus/5.jpg", "test/dogs/6.jpg", *more)
    data = list_classify(make(tmp_path, *names))
    for part in data.parts.values():
        assert part.class_names == ("cats", "dogs", "emus")
    assert data.train.class_counts == (1, 1, 1)
    assert data.val.class_counts == (1, 1, 0)
    assert [entry.class_ids for entry in data.test.entries] == [(1,)]
    assert "val has no image of emus; test has no image of cats, emus" in data.note
    alone = list_classify(tmp_path / "test", class_names=("cats", "dogs", "emus"))
    assert [entry.class_ids for entry in alone.train.entries] == [(1,)]


def test_one_part_of_several_is_one_set(tmp_path):
    make(tmp_path, *PARTS)
    data = list_classify(tmp_path / "val")
    assert len(data.train) == 2
    assert data.val is None


def test_classes_named_like_a_part(tmp_path):
    data = list_classify(make(tmp_path, "bus/1.jpg", "train/2.jpg"))
    assert data.train.class_names == ("bus", "train")


def test_folders_inside_class_folders_belong_to_the_class(tmp_path):
    data = list_classify(make(tmp_path, "cats/a/1.jpg", "cats/b/c/2.jpg", "dogs/3.jpg"))
    assert data.train.class_counts == (2, 1)


def test_awkward_names(tmp_path):
    names = ("big cats/\u00fcber l\u00f6we.JPG", "dogs/a.b.c.JPeG", "dogs/#1 %20.Png")
    data = list_classify(make(tmp_path, *names))
    assert sorted(entry.path for entry in data.train.entries) == sorted(names)
    assert read_bytes(data.train.source, names[0]) == names[0].encode()


@pytest.mark.parametrize("suffix", image_suffixes())
def test_suffixes(tmp_path, suffix):
    data = list_classify(make(tmp_path, f"cats/1{suffix}", f"dogs/2{suffix.upper()}"))
    assert len(data.train) == 2


def test_what_is_left_out(tmp_path):
    extra = (
        *(".git/a.jpg", "cats/.hidden.jpg", "__MACOSX/cats/._1.jpg", "cats/Thumbs.db"),
        *("cats/notes.txt", "README.md", ".cache/", "dogs/.DS_Store"),
    )
    data = list_classify(make(tmp_path, *TWO, *extra))
    assert len(data.train) == 3
    assert data.note.endswith("; 2 files other than images left out")


def test_what_lies_beside_the_parts(tmp_path):
    data = list_classify(make(tmp_path, *PARTS, "unlabeled/1.jpg", "test/1.jpg"))
    assert data.test is None
    assert "test/ has no class folders, left out" in data.note
    assert "beside them, left out: unlabeled" in data.note


def test_class_names_of_a_run(tmp_path):
    data = list_classify(make(tmp_path, *TWO), class_names=("dogs", "cows", "cats"))
    assert data.train.class_names == ("dogs", "cows", "cats")
    assert data.train.class_counts == (1, 0, 2)
    one = list_classify(make(tmp_path / "one", "dogs/1.jpg"), class_names=("cats", "dogs"))
    assert one.train.class_counts == (0, 1)
    parts = make(tmp_path / "parts", *PARTS, "test/dogs/1.jpg")
    data = list_classify(parts, class_names=("cats", "dogs"))
    assert data.test.class_counts == (0, 1)
    with pytest.raises(DataError, match=r"among the 2 that .* \(birds, cats\), got also dogs in"):
        list_classify(tmp_path / "one", class_names=("birds", "cats"))


def write_table(tmp_path: Path, text: str) -> Path:
    make(tmp_path, *(f"{number}.jpg" for number in range(6)))
    place = tmp_path / "set.csv"
    place.write_text(text)
    return place


def test_table(tmp_path):
    place = write_table(tmp_path, "path,class,group\n2.jpg,dog,x\n0.jpg,cat,x\n1.jpg,dog,\n")
    data = list_classify(place)
    assert data.train.source == str(tmp_path)
    assert data.train.class_names == ("cat", "dog")
    assert [(e.path, e.class_ids, e.group) for e in data.train.entries] == [
        ("2.jpg", (1,), "x"),
        ("0.jpg", (0,), "x"),
        ("1.jpg", (1,), ""),
    ]
    assert data.note == "CSV, single-label, 2 classes, one set of 3 images"
    named = list_classify(place, class_names=("dog", "emu", "cat"))
    assert named.train.class_counts == (2, 0, 1)


def test_multi_label_table(tmp_path):
    data = list_classify(write_table(tmp_path, "path,class\n0.jpg,b;a\n1.jpg,\n2.jpg,a|c;a\n"))
    assert data.train.multi_label
    assert [entry.class_ids for entry in data.train.entries] == [(0, 1), (), (0, 2)]
    assert "multi-label (2 with several classes, 1 with none)" in data.note


def test_table_with_parts(tmp_path):
    rows = "0.jpg,a,train\n1.jpg,b,\n2.jpg,a,Validation\n3.jpg,b,test\n"
    data = list_classify(write_table(tmp_path, f"path,class,split\n{rows}"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 1, 1]
    assert data.val.class_names == ("a", "b")
    one = list_classify(write_table(tmp_path, "path,class,split\n0.jpg,a,val\n1.jpg,b,val\n"))
    assert one.train is None
    assert len(one.val) == 2


def test_table_errors(tmp_path):
    with pytest.raises(DataError, match=r"split column must be .* got 'dev' for '0.jpg'"):
        list_classify(write_table(tmp_path, "path,class,split\n0.jpg,a,dev\n1.jpg,b,\n"))
    with pytest.raises(DataError, match=r"two classes, got a"):
        list_classify(write_table(tmp_path, "path,class\n0.jpg,a\n1.jpg,a\n"))


@pytest.mark.parametrize("run", [None, ("b", "a")])
@pytest.mark.parametrize("layout", ["folders", "table"])
def test_images_of_classes_that_train_lacks_are_left_out_and_named(tmp_path, layout, run):
    rows = [
        ("train", "a"), ("train", "b"), ("val", "a"), ("val", "c"), ("val", "c"), ("test", "d"),
    ]  # fmt: skip
    if layout == "folders":
        place = make(tmp_path, *(f"{part}/{one}/{i}.png" for i, (part, one) in enumerate(rows)))
    else:
        lines = "".join(f"{i}.jpg,{one},{part}\n" for i, (part, one) in enumerate(rows))
        place = write_table(tmp_path, f"path,class,split\n{lines}")
    data = list_classify(place, class_names=run)
    assert {part: len(one) for part, one in data.parts.items()} == {"train": 2, "val": 1}
    assert data.val.class_names == (run or ("a", "b"))
    assert not data.fault
    for text in (data.note, data.left_out, " ".join(one.file + one.what for one in data.problems)):
        assert all(name in text for name in ("val", "c", "2", "test", "d", "1")), text


CASES = {
    "one class": (("cats/1.jpg",), r"needs at least two classes, got cats in"),
    "empty folder": (("cats/",), r"No images in .* \(it is empty\). Expected one folder a class"),
    "no images": (("cats/1.txt", "2.txt"), r"No images in .* \(2 other files\)"),
    "a folder of archives": (("train.zip", "test.zip"), r"archives itself: test.zip, train.zip"),
    "loose images": (("1.jpg", "2.jpg"), r"in a class folder, got 2 images .* \(1.jpg, 2"),
    "loose beside classes": ((*TWO, "4.jpg"), r"got 1 image .*Expected one folder a"),
    "loose in a part": (
        (*PARTS, "train/5.jpg"),
        r"outside in 'train/' of .* \(train/5.jpg\)",
    ),
    "two parts of one name": (
        (*PARTS, "valid/cats/1.jpg"),
        r"must be one val folder, got 'val/' and 'valid/'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_errors(tmp_path, case):
    names, text = CASES[case]
    with pytest.raises(DataError, match=text) as caught:
        list_classify(make(tmp_path, *names))
    assert "\n" not in str(caught.value)


EMPTY = {"one set": (*TWO, "emus/"), "train": (*PARTS, "train/emus/note.txt")}


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
@pytest.mark.parametrize("names", EMPTY.values(), ids=EMPTY)
def test_an_empty_class_folder_is_reported(tmp_path, kind, names):
    """It stops a training, but not the look at everything else."""
    root = make(tmp_path, *names) if kind == "folder" else packed(tmp_path, kind, *names)
    data = list_classify(root)
    assert [problem.file.rpartition("/")[2] for problem in data.problems] == ["emus"]
    assert data.fault
    assert list_classify(root, class_names=(*data.train.class_names, "emus")).problems == ()


TABLES = {
    "folders of batches": ("b1/0.jpg", "b1/1.jpg", "b2/2.jpg", "b2/3.jpg"),
    "one folder": tuple(f"images/{number}.jpg" for number in range(4)),
    "images beside it": tuple(f"{number}.jpg" for number in range(4)),
    "one that it does not name": (*(f"images/{number}.jpg" for number in range(4)), "new/4.jpg"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_in_its_folder(tmp_path, case):
    names = TABLES[case]
    rows = "".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(names[:4]))
    (make(tmp_path, *names) / "labels.csv").write_text(f"path,class\n{rows}")
    data, same = list_classify(tmp_path), list_classify(tmp_path / "labels.csv")
    assert data.train == same.train
    assert data.train.class_names == ("a", "b")
    assert data.note.startswith("labels.csv: ")
    assert ("1 image not in it left out" in data.note) == (len(names) > 4)
    (tmp_path / names[0]).unlink()
    with pytest.raises(DataError, match=r"labels\.csv' must be a file.* 1 of 4 are not"):
        list_classify(tmp_path)


@pytest.mark.parametrize("text", ["path,class\nno.jpg,x\n", "id,label\n1,x\n", ""])
def test_another_csv_beside_class_folders(tmp_path, text):
    """It is counted as before: a table whose images are elsewhere, of other columns, empty."""
    (make(tmp_path, *TWO) / "sample.csv").write_text(text)
    data = list_classify(tmp_path)
    assert data.train.class_names == ("cats", "dogs")
    assert "1 file other than images left out" in data.note


ONE_TRAIN = {
    "unlabelled images": (("u/5.jpg", "u/6.jpg"), ("cats", "dogs")),
    "a single folder deeper": (("extra/cats/5.jpg",), ("cats", "dogs")),
    "classes with folders": (("bus/red/5.jpg", "bus/blue/6.jpg"), ("bus", "train")),
}


@pytest.mark.parametrize("case", ONE_TRAIN)
def test_train_alone_beside_others(tmp_path, case):
    more, expected = ONE_TRAIN[case]
    data = list_classify(make(tmp_path, "train/cats/1.jpg", "train/dogs/2.jpg", *more))
    assert data.train.class_names == expected
    beside = f"beside them, left out: {more[0].partition('/')[0]}"
    assert (beside in data.note) == (len(data.train) == 2)


@pytest.mark.parametrize("part", ["", "train/"])
def test_images_and_masks_are_no_classes(tmp_path, part):
    make(tmp_path, *(f"{part}{top}/{n}.png" for top in ("images", "masks") for n in "12"))
    with pytest.raises(DataError, match=r"images, masks. Use semantic"):
        list_classify(tmp_path)


def test_a_column_a_class(tmp_path):
    make(tmp_path, "train/1.jpg", "train/2.jpg", "valid/1.jpg")
    (tmp_path / "train/_classes.csv").write_text("filename, dog, cat\n1.jpg, 1, 1\n2.jpg, 0, 0\n")
    text = "filename,dog,cat\n1.jpg,0,1\n9.jpg,0,1\n"
    (tmp_path / "valid/_classes.csv").write_text(text)
    data = list_classify(tmp_path)
    assert data.train.multi_label
    assert data.train.class_names == ("dog", "cat")
    assert [entry.class_ids for entry in data.train.entries] == [(0, 1), ()]
    assert [(entry.path, entry.class_ids) for entry in data.val.entries] == [("valid/1.jpg", (1,))]
    assert [problem.file for problem in data.problems] == ["valid/_classes.csv"]
    single = list_classify(tmp_path / "train/_classes.csv", class_names=("cat", "dog", "emu"))
    assert [entry.class_ids for entry in single.train.entries] == [(0, 1), ()]


def test_wrong_paths(tmp_path):
    with pytest.raises(DataError, match=r"nothing at '.*nowhere'. Check"):
        list_classify(tmp_path / "nowhere")
    make(tmp_path, "a.jpg", "b.zip")
    with pytest.raises(DataError, match=r"the file '.*a\.jpg'. .*folder"):
        list_classify(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"b\.zip' is broken"):
        list_classify(tmp_path / "b.zip")


def test_cifar(data_root):
    place = data_root / "cifar10_jpeg" / "train.zip"
    if not place.is_file():
        pytest.skip(f"no {place}")
    data = list_classify(place)
    assert data.train.class_counts == (5000,) * 10
    assert data.val is None
    entry = data.train.entries[12345]
    assert decode(read_bytes(data.train.source, entry.path), where=entry.path).shape == (32, 32, 3)


def test_folders_of_imagenet_name_the_classes_of_a_published_model(tmp_path):
    """By their names in WordNet: the 1st, the 218th (of Imagenette) and the last of 1,000."""
    names = tuple(f"class {number}" for number in range(1000))
    made = make(tmp_path, "n01440764/1.jpg", "n02102040/1.jpg", "n15075141/1.jpg")
    listing = list_classify(made, class_names=names).train
    assert [entry.class_ids for entry in listing.entries] == [(0,), (217,), (999,)]
    with pytest.raises(DataError, match="n00000000"):
        list_classify(make(tmp_path, "n00000000/1.jpg"), class_names=names)
