# SPDX-License-Identifier: Apache-2.0
"""Names of classes in the files that tools leave beside masks, and the layouts of their folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from muntin.data.mask_tables import parse_value
from muntin.data.mask_values import read_mask
from muntin.data.semantic import check_semantic, list_semantic
from muntin.errors import DataError
from muntin.samples import Classes
from muntin.targets import IGNORED

SIZE = (12, 16)
COLORS = ((0, 0, 0), (250, 50, 83), (51, 221, 255), (224, 224, 192))
ROWS = np.arange(SIZE[0]) // 3  # four values, three rows each


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE[::-1], (90, 80, 70)).save(path)


def mask(path: Path, *values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.array(values, np.uint8)[ROWS % len(values)]
    Image.fromarray(np.repeat(rows[:, None], SIZE[1], axis=1)).save(path)


def read(root: Path, **options):
    data = list_semantic(root, **options)
    entry = data.train.entries[0]
    return data, read_mask(data.train, entry).labels[:, 0]


AB = ("a", "b")
TABLES = {
    # file: (its text, the values of masks, names of classes, what the values are)
    "labelmap.txt": (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nb:51,221,255::\na:250,50,83::\n",
        COLORS, ("background", "b", "a"), (0, 2, 1, IGNORED),
    ),
    "class_names.txt": (
        "__ignore__\n_background_\na\nb\n",
        (0, 1, 2, 255), ("_background_", *AB), (0, 1, 2, IGNORED),
    ),
    "codes.txt": ("void\na\nb\n", (0, 1, 2), AB, (IGNORED, 0, 1)),
    "label_colors.txt": (
        "0 0 0\tVoid\n250 50 83\ta\n51 221 255\t\tb\n", COLORS[:3], AB, (IGNORED, 0, 1)
    ),
    "train/_classes.csv": (
        "Pixel Value, Class\n0, background\n1, a\n2, b\n", (0, 1, 2), ("background", *AB), (0, 1, 2)
    ),
    "class_dict.csv": (
        "name,r,g,b\nvoid,0,0,0\na,250,50,83\nb,51,221,255\n", COLORS[:3], AB, (IGNORED, 0, 1)
    ),
    "classes.csv": ("id,name\n3,a\n7,b\n", (3, 7, 255), AB, (0, 1, IGNORED)),
    "dataset.json": (
        '{"channel_names": {"0": "R"}, "labels": {"background": 0, "a": 1, "ignore": 2}}',
        (0, 1, 2), ("background", "a"), (0, 1, IGNORED),
    ),
    "set/dataset.json": (
        '{"labels": {"0": "background", "1": "a"}, "numTraining": 1}',
        (0, 1), ("background", "a"), (0, 1),
    ),
    "names.yaml": ("names:\n  0: sky\n  4: a\n", (0, 4), ("sky", "a"), (0, 1)),
    "set.yml": ("labels: [sky, a, b]\n", (0, 1, 2), ("sky", *AB), (0, 1, 2)),
    "palette.yaml": (
        "labels: {0: sky, 10: a}\ncolor_map: {0: [0, 0, 0], 10: [250, 50, 83]}\n",
        COLORS[:2], ("sky", "a"), (0, 1),
    ),
    "rows.yaml": (
        "classes:\n- {name: a, id: 3}\n- {name: b, id: 5}\n", (3, 5), AB, (0, 1)
    ),
    "colors.yaml": ('{a: "#FA3253", b: "51, 221, 255"}', COLORS[1:3], AB, (0, 1)),
    "classes.json": (
        '[{"name": "a", "color": "#FA3253"}, {"name": "b", "color": [51, 221, 255]}]',
        COLORS[1:3], AB, (0, 1),
    ),
    "id2label.json": ('{"0": "sky", "1": "a"}', (0, 1), ("sky", "a"), (0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("file", TABLES)
def test_tables(tmp_path, file):
    text, values, names, wanted = TABLES[file]
    picture(tmp_path / "images" / "1.jpg")
    mask(tmp_path / "masks" / "1.png", *values)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    data, found = read(tmp_path)
    assert data.train.class_names == names
    assert found.tolist() == np.array(wanted)[ROWS % len(values)].tolist()
    assert file.rpartition("/")[2] in data.note
    assert not data.problems


OTHER_FILES = {
    "config.yaml": "model: swin\nepochs: 3\nclasses: 3\n",
    "broken.yaml": "a: [",
    "measured_classes.csv": "image,area\n1,3.5\n",
    "prices.csv": "name,value\nroad,3\n",
    "dataset.json": '{"name": "x", "labels": {}}',
}


@pytest.mark.parametrize("file", OTHER_FILES)
def test_files_that_are_no_tables(tmp_path, file):
    picture(tmp_path / "images" / "1.jpg")
    mask(tmp_path / "masks" / "1.png", 0, 1, 2)
    (tmp_path / file).write_text(OTHER_FILES[file])
    assert read(tmp_path)[0].train.class_names == ("class 0", "class 1", "class 2")


def test_a_run_that_learnt_void_goes_on_with_it(tmp_path):
    picture(tmp_path / "images" / "1.jpg")
    mask(tmp_path / "masks" / "1.png", 0, 1)
    (tmp_path / "classes.txt").write_text("void\na\n")
    _, found = read(tmp_path, classes=Classes(names=("void", "a")))
    assert sorted({*found.tolist()}) == [0, 1]


SEGNET = ("train/{}.png", "trainannot/{}.png")
LAYOUTS = {
    "SegNet": SEGNET,
    "Kaggle": ("train/{}.png", "train_labels/{}_L.png"),
    "fastai": ("images/{}.png", "labels/{}_P.png"),
    "nnU-Net": ("imagesTr/{}_0000.png", "labelsTr/{}.png"),
    "PennFudan": ("PNGImages/{}.png", "PedMasks/{}_mask.png"),
    "older labelme": ("JPEGImages/{}.jpg", "SegmentationClassPNG/{}.png"),
    "other words": ("photos 2019/{}.jpg", "masks_v2/{}.png"),
    "words run together": ("TrainImages/{}.jpg", "TrainMasks/{}.png"),
    "image and label": ("train/image/{}.png", "train/label/{}.png"),
    "a folder of pictures of masks": ("images/{}.png", "mask_images/{}.png"),
    "Roboflow": ("train/{}_jpg.rf.0a1.jpg", "train/{}_jpg.rf.0a1_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    image_at, mask_at = LAYOUTS[layout]
    for stem in ("p1", "p2"):
        picture(tmp_path / image_at.format(stem))
        mask(tmp_path / mask_at.format(stem), 0, 3, 5)
    for folder in ("SegmentationClassVisualization", "SegmentationObject"):
        picture(tmp_path / folder / "p1.jpg")
    data, _ = read(tmp_path)
    found = [(entry.path, entry.mask) for entry in data.train.entries]
    assert found == [(image_at.format(stem), mask_at.format(stem)) for stem in ("p1", "p2")]
    assert not data.problems


def test_camvid_of_segnet(tmp_path):
    """Three sets, 11 classes; 11 has none. Lists name the files as on another machine."""
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        rows = []
        for number in range(count):
            names = [f"{part}/{number}.png", f"{part}annot/{number}.png"]
            picture(tmp_path / names[0])
            values = np.arange(12, dtype=np.uint8)[:, None].repeat(SIZE[1], axis=1)
            (tmp_path / f"{part}annot").mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / names[1])
            rows.append(" ".join(f"/SegNet/CamVid/{name}" for name in names))
        (tmp_path / f"{part}.txt").write_text("\n".join(rows) + "\n")
    data, found = read(tmp_path)
    assert {part: len(listing) for part, listing in data.parts.items()} == {
        "train": 3, "val": 1, "test": 2,
    }  # fmt: skip
    assert data.train.class_names[0] == "sky"
    assert data.train.num_classes == 11
    assert found.tolist() == [*range(11), IGNORED]


def test_sets_by_lists(tmp_path):
    for number in range(6):
        picture(tmp_path / "JPEGImages" / f"{number}.jpg")
        if number < 5:
            mask(tmp_path / "SegmentationClass" / f"{number}.png", 0, 1)
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0\n1\n")
    (lists / "val.txt").write_text("3\n")
    (lists / "trainval.txt").write_text("0\n1\n3\n")
    data = list_semantic(tmp_path)
    assert [entry.path for entry in data.train.entries] == ["JPEGImages/0.jpg", "JPEGImages/1.jpg"]
    assert [entry.path for entry in data.val.entries] == ["JPEGImages/3.jpg"]
    assert "2 images with masks in no list" in data.note
    assert not data.problems


def test_pairs_by_lists(tmp_path):
    """PaddleSeg's lists: an image and its mask in a line."""
    rows = {"train.txt": ("1", "2"), "val.txt": ("3",)}
    for file, stems in rows.items():
        for stem in stems:
            picture(tmp_path / "rgb" / f"in{stem}.jpg")
            mask(tmp_path / "gt" / f"out{stem}.png", 0, 1)
        text = "".join(f"rgb/in{stem}.jpg gt/out{stem}.png\n" for stem in stems)
        (tmp_path / file).write_text(text)
    data = list_semantic(tmp_path)
    assert [(one.path, one.mask) for one in data.train.entries] == [
        (f"rgb/in{stem}.jpg", f"gt/out{stem}.png") for stem in "12"
    ]
    assert len(data.val) == 1


def test_nnunet(tmp_path):
    for part in ("Tr", "Ts"):
        for channel in range(2):
            picture(tmp_path / f"images{part}" / f"case_{part}_{channel:04}.png")
        mask(tmp_path / f"labels{part}" / f"case_{part}.png", 0, 1)
    labels = {"background": 0, "tumour": 1}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".png"}))
    data = list_semantic(tmp_path)
    assert data.train.class_names == ("background", "tumour")
    assert data.train.entries[0].path == "imagesTr/case_Tr_0000.png"
    assert [entry.path for entry in data.test.entries] == ["imagesTs/case_Ts_0000.png"]
    assert "2 files left out" in data.note
    assert [one.file for one in data.problems] == ["imagesTr"]
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DataError, match=r"regions .*whole \[1, 2, 3\].*data\.colors=NAME:0"):
        list_semantic(tmp_path)
    assert list_semantic(tmp_path, colors=("a:0", "b:1")).train.class_names == ("a", "b")


@pytest.mark.parametrize("value", [2**31, 10**400, -1, True, None])
def test_numbers_that_no_mask_holds(value):
    assert parse_value(2**31 - 1, "it") == ("index", 2**31 - 1)
    with pytest.raises(DataError, match=f"below {2**31}.*{value!r}"):
        parse_value(value, "it")


def test_volumes_are_named(tmp_path):
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="2 files of voxels"):
        list_semantic(tmp_path)
    assert not check_semantic(tmp_path).ok
