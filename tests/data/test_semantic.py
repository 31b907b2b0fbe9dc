# SPDX-License-Identifier: Apache-2.0
"""Masks as people store them: which image they belong to, and what their values stand for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import muntin
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.loading import EvalLoader
from muntin.data.mask_values import read_mask
from muntin.data.semantic import check_semantic, list_semantic, propose_table
from muntin.data.transforms import Preprocessing
from muntin.errors import DataError
from muntin.prediction.predictor import Predictor
from muntin.samples import Classes
from muntin.scoring.evaluator import score
from muntin.targets import IGNORED
from muntin.tasks.task_table import find_task

SIZE = (6, 8)
RED, GREEN = (255, 0, 0), (0, 128, 0)


def save(path: Path, values, mode: str = "L", palette=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8), None if mode == "P" else mode)
    if mode == "P":
        image = Image.fromarray(np.asarray(values, np.uint8)).convert("P")
        image = Image.frombytes("P", image.size, np.asarray(values, np.uint8).tobytes())
        image.putpalette(palette)
    image.save(path)
    return path


def pixels(path: Path, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def stripes(*values, size=SIZE):
    """Rows of one value each, again and again."""
    rows = np.array(values)[np.arange(size[0]) % len(values)]
    return np.broadcast_to(rows[:, None], (size[0], size[1], *np.shape(values)[1:])).copy()


def data_set(root: Path, *masks, count: int = 1, **options) -> Path:
    for number in range(count):
        pixels(root / "images" / f"{number}.jpg")
        save(root / "masks" / f"{number}.png", masks[number % len(masks)], **options)
    return root


def labels(listing, place=0):
    return read_mask(listing, listing.entries[place]).labels


LAYOUTS = {
    "folders": ("images/1.jpg", "masks/1.png"),
    "folders below sets": ("train/images/1.jpg", "train/masks/1.png"),
    "sets below folders": ("images/training/1.jpg", "annotations/training/1.png"),
    "beside each other": ("1.jpg", "1_mask.png"),
    "other words": ("JPEGImages/1.jpg", "SegmentationClass/1.png"),
    "groups": ("Tile 1/images/a_1.jpg", "Tile 1/masks/a_1.png"),
    "Carvana": ("train/a_01.jpg", "train_masks/a_01_mask.png"),
    "CamVid": ("train/0001.png", "train_labels/0001_L.png"),
    "capitals": ("Images/A.JPG", "Labels/a.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    image, mask = LAYOUTS[layout]
    pixels(tmp_path / image)
    save(tmp_path / mask, stripes(0, 1, 2))
    listing = list_semantic(tmp_path).train
    assert [(entry.path, entry.mask) for entry in listing.entries] == [(image, mask)]
    assert (labels(listing) == stripes(0, 1, 2)).all()


def test_cityscapes(tmp_path):
    for part in ("train", "val"):
        for number in range(2):
            stem = f"{part}/aachen/aachen_{number:06}_000019"
            pixels(tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png")
            gt = tmp_path / "gtFine"
            save(gt / f"{stem}_gtFine_labelIds.png", stripes(7, 26, 0))
            save(gt / f"{stem}_gtFine_color.png", stripes(RED, GREEN), mode="RGB")
            save(gt / f"{stem}_gtFine_instanceIds.png", stripes(7, 26))
    data = list_semantic(tmp_path)
    assert (len(data.train), len(data.val)) == (2, 2)
    assert data.train.num_classes == 19
    assert data.train.class_names[13] == "car"
    assert (labels(data.train) == stripes(0, 13, IGNORED)).all()
    assert not data.problems


def test_ade20k(tmp_path):
    for part in ("training", "validation"):
        pixels(tmp_path / "images" / part / "ADE_1.jpg")
        save(tmp_path / "annotations" / part / "ADE_1.png", stripes(0, 1, 150))
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = "".join(f"{i}\t0.1\t1\t1\t1\tname {i}, other\n" for i in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text(head + rows)
    data = list_semantic(tmp_path)
    assert data.train.class_names[0] == "name 1"
    assert (labels(data.train) == stripes(IGNORED, 0, 149)).all()


CODED = {
    "numbers of ADE20K": (
        {"objectInfo150.txt": "Idx\tRatio\tName\n3\t0.1\tflag\n1\t0.1\twall, w\n"},
        stripes(0, 1, 3), (IGNORED, 1, 0),
    ),
    "ADE20K without them": (
        {"objectInfo150.txt": "Ratio\tName\n0.1\tflag\n0.1\twall\n"},
        stripes(0, 1, 2), (IGNORED, 0, 1),
    ),
    "names from 0": ({"classes.txt": "ground\nroad\nwater\n"}, stripes(0, 2, 255), (0, 2, IGNORED)),
    "names from 1": ({"classes.txt": "ground\nroad\n"}, stripes(0, 1, 2), (IGNORED, 0, 1)),
    "numbers": (
        {"classes.json": '{"ground": 3, "road": 9, "void": 0}'}, stripes(0, 3, 9), (IGNORED, 0, 1),
    ),
    "numbers first": ({"classes.json": '{"0": "ground", "1": "road"}'}, stripes(0, 1), (0, 1)),
    "binary": ({}, stripes(0, 255), (0, 1)),
    "nothing said": ({}, stripes(0, 1, 2, 255), (0, 1, 2, IGNORED)),
}  # fmt: skip


@pytest.mark.parametrize("case", CODED)
def test_class_numbers(tmp_path, case):
    files, mask, wanted = CODED[case]
    data_set(tmp_path, mask)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    data = list_semantic(tmp_path)
    assert (labels(data.train) == stripes(*wanted)).all()
    assert len(data.problems) == ("0 is ignored" in data.note)


def test_a_forgotten_name_shifts_the_others(tmp_path):
    data_set(tmp_path, stripes(0, 1, 2))
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    (problem,) = list_semantic(tmp_path).problems
    assert (problem.file, problem.severity) == ("masks", "warning")
    assert "classes.txt has one name less than there are values, so 0 is ignored" in problem.what
    assert "first: 'road' 33.3%, 'sky' 33.3% of the pixels. If another" in problem.what


@pytest.mark.parametrize(
    "table",
    [
        '{"red": "#FF0000", "green": "#008000", "ignored": "#000000"}',
        '{"red": [255, 0, 0], "green": [0, 128, 0], "void": [0, 0, 0]}',
        '{"names": ["red", "green"], "colors": ["#ff0000", [0, 128, 0]], "ignored": ["#000000"]}',
    ],
)
@pytest.mark.parametrize("stored", ["RGB", "P", "RGBA"])
def test_colors(tmp_path, table, stored):
    mask = stripes(RED, GREEN, (0, 0, 0))
    options = {"mode": "RGB"}
    if stored == "P":
        mask, options = stripes(1, 2, 0), {"mode": "P", "palette": [0, 0, 0, *RED, *GREEN]}
    if stored == "RGBA":
        mask = np.concatenate([mask, np.full((*SIZE, 1), 255)], axis=2)
        options = {"mode": "RGBA"}
    data_set(tmp_path, mask, **options)
    (tmp_path / "classes.json").write_text(table)
    data = list_semantic(tmp_path)
    assert data.train.class_names == ("red", "green")
    assert (labels(data.train) == stripes(0, 1, IGNORED)).all()
    assert not data.problems


def test_palettes_and_colors_in_one_set(tmp_path):
    data_set(tmp_path, stripes(RED, GREEN), mode="RGB")
    pixels(tmp_path / "images" / "9.jpg")
    save(tmp_path / "masks" / "9.png", stripes(0, 1), mode="P", palette=[*GREEN, *RED])
    data = list_semantic(tmp_path, colors=("red:#FF0000", "green:#008000"))
    assert (labels(data.train, 0) == stripes(0, 1)).all()
    assert (labels(data.train, 1) == stripes(1, 0)).all()


def test_a_table_of_camvid(tmp_path):
    data_set(tmp_path, stripes(RED, GREEN), mode="RGB")
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nfirst,255,0,0\nvoid,0,128,0\n")
    data = list_semantic(tmp_path)
    assert data.train.class_names == ("first",)
    assert (labels(data.train) == stripes(0, IGNORED)).all()


def test_colors_without_a_table(tmp_path):
    data_set(tmp_path, stripes(RED, GREEN, GREEN), mode="RGB")
    data = list_semantic(tmp_path)
    assert data.train.class_names == ("#008000", "#FF0000")
    assert "classes.json" in data.note
    assert propose_table(tmp_path) == {"class 0": "#008000", "class 1": "#FF0000"}


def test_values_that_stand_for_nothing(tmp_path):
    data_set(tmp_path, stripes(0, 1), stripes(0, 7), count=4)
    (tmp_path / "classes.txt").write_text("ground\nroad\nwater\n")
    data = list_semantic(tmp_path)
    (problem,) = data.problems
    assert "such as 7 in 'masks/1.png'" in problem.what
    assert problem.severity == "warning"
    assert (labels(data.train, 1) == stripes(0, IGNORED)).all()
    report = check_semantic(tmp_path)
    named = [one for one in report.problems if one.file == "masks/3.png"]
    assert named[0].what.startswith("50.0% of the pixels")
    assert named[0].what.endswith("ignored: 7")


def test_0_and_255_where_three_classes_are_named(tmp_path):
    data_set(tmp_path, stripes(255, 255, 0))
    (tmp_path / "classes.txt").write_text("ground\nroad\nwater\n")
    report = check_semantic(tmp_path)
    assert any("no pixels in train of road" in one.what for one in report.problems)


@pytest.mark.parametrize(("learnt", "stored"), [((0, 1), (0, 255)), ((0, 255), (0, 1))])
@pytest.mark.parametrize("table", [None, '{"bg": %d, "box": %d}'])
def test_two_classes_of_a_run_stored_as_other_values(tmp_path, learnt, stored, table):
    """Numbers and their usual other spelling: both classes are scored, and a note tells."""
    data_set(tmp_path / "run", stripes(*learnt))
    data_set(tmp_path / "new", stripes(*stored))
    if table:
        (tmp_path / "run" / "classes.json").write_text(table % learnt)
    run = list_semantic(tmp_path / "run").train
    data = list_semantic(
        tmp_path / "new", classes=Classes(names=run.class_names, encoding=run.encoding)
    )
    assert (labels(data.train) == stripes(0, 1)).all()
    assert f"stored there as {learnt[0]} and {learnt[1]}, are {stored[0]} and" in data.note


def test_check_names_what_is_wrong(tmp_path):
    data_set(tmp_path, stripes(0, 1), count=5)
    pixels(tmp_path / "images" / "1.jpg", size=(3, 3))
    (tmp_path / "masks" / "2.png").write_bytes(b"broken")
    (tmp_path / "masks" / "3.png").unlink()
    save(tmp_path / "masks" / "4.png", stripes(255, 255))
    report = check_semantic(tmp_path)
    assert not report.ok
    whats = {one.file: one.what for one in report.problems}
    assert "has no mask" in whats["images/3.jpg"]
    assert "The mask 'masks/2.png' must be an image that can be read" in whats["masks/2.png"]
    assert "object at" not in whats["masks/2.png"]
    assert "its image 'images/1.jpg' has 3 x 3" in whats["masks/1.png"]
    assert "every pixel is ignored" in whats["masks/4.png"]


FAULTY = {
    "colours for numbers": (
        {"classes.txt": "a\nb\n"}, stripes(RED, GREEN), "hold colours",
    ),
    "the same value twice": (
        {"classes.json": '{"a": 1, "b": 1}'}, stripes(0, 1), "a value of its own",
    ),
    "no colour": ({"classes.json": '{"a": "red"}'}, stripes(0, 1), "a colour such as #6EC1E4"),
    "no table": ({"classes.json": "3"}, stripes(0, 1), "'classes.json'.*each class"),
    "no JSON": ({"classes.json": "{"}, stripes(0, 1), "must be JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTY)
def test_faulty_tables(tmp_path, case):
    files, mask, match = FAULTY[case]
    data_set(tmp_path, mask, mode="RGB" if mask.ndim == 3 else "L")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=match):
        list_semantic(tmp_path)
    assert not check_semantic(tmp_path).ok


def test_masks_stored_with_loss(tmp_path):
    rng = np.random.default_rng(0)
    data_set(tmp_path, rng.integers(0, 256, (64, 64, 3)), mode="RGB")
    with pytest.raises(DataError, match="without loss"):
        list_semantic(tmp_path)


def test_nothing_that_is_paired(tmp_path):
    pixels(tmp_path / "images" / "1.jpg")
    save(tmp_path / "masks" / "2.png", stripes(0, 1))
    with pytest.raises(DataError, match="1 without a mask"):
        list_semantic(tmp_path)


def test_real_tiles(data_root, tmp_path):
    table = {
        "building": "#3C1098", "land": "#8429F6", "road": "#6EC1E4", "vegetation": "#FEDD3A",
        "water": "#E2A929", "ignored": "#000000", "unlabeled": "#9B9B9B",
    }  # fmt: skip
    (tmp_path / "classes.json").write_text(json.dumps(table))
    for tile in (data_root / "dubai_aerial").glob("Tile *"):
        (tmp_path / tile.name).symlink_to(tile, target_is_directory=True)
    data = list_semantic(tmp_path)
    assert len(data.train) == 72
    assert data.train.num_classes == 5
    assert not data.problems
    assert {entry.group for entry in data.train.entries} == {f"tile {i}" for i in range(1, 9)}


def coco(root: Path, annotations, categories=("cat", "dog")) -> Path:
    """One image of 6 x 8 pixels with objects, each (category, box as x, y, w, h)."""
    pixels(root / "train" / "1.png")
    rows = [
        {
            "id": i, "image_id": 1, "category_id": 10 * category, "bbox": [x, y, w, h],
            "area": w * h, "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for i, (category, (x, y, w, h)) in enumerate(annotations, 1)
    ]  # fmt: skip
    values = {
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": rows,
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(categories)],
    }
    place = root / "annotations" / "instances_train.json"
    place.parent.mkdir()
    place.write_text(json.dumps(values))
    return root


def test_objects_are_drawn_the_smaller_on_top(tmp_path):
    data = list_semantic(coco(tmp_path, [(1, (2, 1, 2, 2)), (0, (1, 0, 5, 4))]))
    assert data.train.class_names == ("background", "cat", "dog")
    wanted = np.zeros(SIZE, int)
    wanted[0:4, 1:6] = 1
    wanted[1:3, 2:4] = 2
    assert (labels(data.train) == wanted).all()
    assert "drawn from the masks" in data.note
    report = check_semantic(tmp_path)
    assert report.ok
    assert any("dog 8.3% (in 1)" in line for line in report.lines)


def test_what_is_there_without_an_outline_is_ignored(tmp_path):
    """The box of an object without a mask, and the region of a faulty annotation."""
    root = coco(
        tmp_path, [(0, (0, 0, 2, 2)), (1, (3, 0, 2, 3)), (0, (6, 3, 2, 3)), (1, (0, 4, 1, 1))]
    )
    place = root / "annotations" / "instances_train.json"
    values = json.loads(place.read_text())
    values["annotations"][1]["segmentation"] = []
    values["annotations"][2]["category_id"] = 99
    place.write_text(json.dumps(values))
    wanted = np.zeros(SIZE, int)
    wanted[0:2, 0:2], wanted[4, 0] = 1, 2
    wanted[0:3, 3:5] = wanted[3:6, 6:8] = IGNORED
    assert (labels(list_semantic(root).train) == wanted).all()


def test_objects_without_a_background(tmp_path):
    coco(tmp_path, [(1, (2, 1, 2, 2))])
    data = list_semantic(tmp_path, ignored=["background"]).train
    assert data.class_names == ("cat", "dog")
    assert sorted(np.unique(labels(data)).tolist()) == [IGNORED, 1]
    with pytest.raises(DataError, match="can be 'background' only, got 255"):
        list_semantic(tmp_path, ignored=["255"])


def test_objects_in_the_order_of_a_run(tmp_path):
    coco(tmp_path, [(0, (2, 1, 2, 2))])
    classes = Classes(names=("bird", "background", "cat", "dog"))
    data = list_semantic(tmp_path, classes=classes).train
    assert data.class_names == classes.names
    assert sorted(np.unique(labels(data)).tolist()) == [1, 2]
    with pytest.raises(DataError, match="got also cat"):
        list_semantic(tmp_path, classes=Classes(names=("background", "bird")))


def test_a_category_called_background(tmp_path):
    coco(tmp_path, [(0, (2, 1, 2, 2)), (1, (5, 5, 1, 1))], categories=("background", "cat"))
    data = list_semantic(tmp_path / "annotations" / "instances_train.json").train
    assert data.class_names == ("background", "cat")
    found = labels(data)
    assert found.sum() == found[5, 5] == 1


def test_a_json_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="found nothing at"):
        list_semantic(tmp_path / "instances.json")


def test_nothing_but_ignored_pixels(tmp_path):
    data_set(tmp_path, stripes(255, 255), stripes(0, 255), count=1)
    (tmp_path / "classes.txt").write_text("ground\nroad\n")
    assert "no pixel" in list_semantic(tmp_path).fault


def test_nothing_but_ignored_pixels_to_train_on(tmp_path):
    for part, value in (("train", 255), ("val", 1)):
        pixels(tmp_path / "images" / part / "0.jpg")
        save(tmp_path / "masks" / part / "0.png", stripes(255, value))
    (tmp_path / "classes.txt").write_text("ground\nroad\n")
    data = list_semantic(tmp_path)
    assert [one.file for one in data.problems if one.severity == "error"] == ["train"]
    save(tmp_path / "masks" / "train" / "0.png", stripes(255, 0))
    assert not list_semantic(tmp_path).fault


def test_zero_that_the_table_does_not_name_is_ignored(tmp_path):
    data_set(tmp_path, stripes(0, 0, 1, 2), count=2)
    (tmp_path / "classes.json").write_text('{"road": 1, "water": 2}')
    data = list_semantic(tmp_path)
    assert not data.fault
    assert "0 is in the masks and not in" in data.note
    assert (labels(data.train)[:4] == stripes(IGNORED, IGNORED, 0, 1, size=(4, 8))).all()


def test_classes_without_names_say_what_zero_is(tmp_path):
    note = list_semantic(data_set(tmp_path, stripes(0, 1, 2))).note
    assert "data.ignored=0" in note


def test_colours_for_numbers(tmp_path):
    data_set(tmp_path, stripes(0, 1, 2))
    with pytest.raises(DataError, match=r"hold numbers: 0, 1, 2\. Give numbers"):
        list_semantic(tmp_path, colors=["road:#6EC1E4"])


def test_masks_in_jpeg_are_told(tmp_path):
    for number in range(2):
        pixels(tmp_path / "images" / f"{number}.png")
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(stripes(0, 0, 0, 1).astype(np.uint8)).save(
            tmp_path / "masks" / f"{number}.jpg", quality=100
        )
    data = list_semantic(tmp_path)
    assert "2 masks stored as JPEG" in data.left_out
    assert any("store masks as PNG" in one.what for one in check_semantic(tmp_path).problems)


@pytest.mark.parametrize("cache_mib", [0, 64])
def test_each_mask_is_decoded_once_an_evaluation(tmp_path, cache_mib):
    """Masks of the original size come with the images, and are kept with them in memory."""
    listing = list_semantic(data_set(tmp_path, stripes(0, 1, 255), stripes(1, 0), count=3)).train
    pre = Preprocessing(
        img_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3, fit="sliding_window", scale=0.5
    )
    decoded: Counter[str] = Counter()

    def count(listing, entry):
        decoded[entry.mask] += 1
        return read_mask(listing, entry)

    tiny = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 2, 4)}
    network = muntin.create_segmenter("swin_nano", num_classes=2, head="light_small", **tiny)
    task = find_task("semantic")
    store = ImageCache(listing, pre, DataConfig(cache_mib=cache_mib), mask_reader=count)
    predictor = Predictor(network, task, task.classes(listing), pre, device="cpu")
    for epoch in range(1, 3):
        scored = score(predictor, store, batch_size=2)
        assert scored.figures["num_images"] == 3
        assert dict(decoded) == dict.fromkeys(decoded, 1 if cache_mib else epoch)
    (batch,) = EvalLoader(store, batch_size=3)
    assert batch.sizes.tolist() == [[3, 4]] * 3, "images are smaller than their labels"
    wanted = [labels(listing, place) for place in range(3)]
    assert all(map(np.array_equal, batch.labels, wanted))
    assert all(map(np.array_equal, batch.select(torch.tensor([2, 0])).labels, wanted[::-2]))
    learnt = ImageCache(listing, pre, DataConfig(), training=True).load(0)
    assert learnt.target.labels.shape == learnt.pixels.shape[1:]
