# SPDX-License-Identifier: Apache-2.0
"""Images without labels: of folders, archives, lists and data sets."""

from __future__ import annotations

import json
import zipfile

import pytest
from PIL import Image

from muntin.data.data_config import DEFAULTS
from muntin.data.image_lists import list_images
from muntin.data.splitting import hold_out
from muntin.errors import DataError, MuntinWarning
from muntin.prediction.batch import find_images
from muntin.samples import Entry, Listing
from muntin.tasks.task_table import TASKS


def write(folder, *names):
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".png":
            Image.new("RGB", (8, 8)).save(place)
        else:
            place.write_text("text")
    return folder


def paths_of(source):
    return [entry.path for entry in list_images(source).train.entries]


# Files, those of them that are listed by number, and what the note says.
LAYOUTS = {
    "nested, mixed": ("3.png a/1.png a/b/2.png a/notes.txt", (0, 1, 2), "1 file other"),
    "class folders": ("cat/1.png dog/2.png", (0, 1), "2 images"),
    "sets": ("train/x/1.png val/x/2.png test/3.png", (0,), "val 1, test 1"),
    "train beside others": ("more/3.png train/1.png val/2.png", (0, 1), "val 1"),
    "only a test set": ("test/1.png test/2.png", (0, 1), "2 images"),
    "masks": ("images/1.png masks/1.png", (0,), "1 mask left out (masks/1.png)"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders(tmp_path, layout):
    text, expected, said = LAYOUTS[layout]
    names = text.split()
    write(tmp_path, *names)
    assert paths_of(tmp_path) == [names[place] for place in expected]
    assert said in list_images(tmp_path).note


def test_masks_that_a_list_pairs_are_left_out(tmp_path):
    write(tmp_path, "a/1.png", "b/1_x.png", "a/2.png", "b/2_x.png")
    (tmp_path / "train.txt").write_text("a/1.png b/1_x.png\na/2.png b/2_x.png\n")
    assert paths_of(tmp_path) == ["a/1.png", "a/2.png"]


def test_folders_of_runs_are_left_out(tmp_path):
    run = "runs/a/config.json runs/a/journal.jsonl runs/a/pictures/batch.png runs/b/.lock"
    write(tmp_path, "cat/1.png", "dog/2.png", "config.json", *run.split())
    found = list_images(tmp_path)
    assert [entry.path for entry in found.train.entries] == ["cat/1.png", "dog/2.png"]
    assert "1 run folder of muntin left out (runs/a)" in found.note
    classes = TASKS["classify"].list_data(tmp_path, None, DEFAULTS)
    assert classes.train.class_names == ("cat", "dog")
    assert not classes.problems
    with pytest.warns(MuntinWarning, match="runs/a"):
        assert [one.name for one in find_images([tmp_path])] == ["1.png", "2.png"]
    assert [one.name for one in find_images([tmp_path / "runs/a"])] == ["batch.png"]


def test_an_archive(tmp_path):
    write(tmp_path / "in", "a/1.png", "2.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "in"))
    assert paths_of(tmp_path / "all.zip") == ["2.png", "a/1.png"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# mine\nimages/1.png\n\nimages\\2.png\nimages/1.png\n"),
        ("list.csv", "Path,class\nimages/1.png,cat\nimages/2.png,\n"),
        ("list.csv", "filename,split\nimages/1.png,train\nimages/2.png,\nimages/3.png,test\n"),
        ("list.csv", 'file, split\n"images/1.png", train\nimages/2.png,\nimages/3.png, test\n'),
    ],
)
def test_lists(tmp_path, name, text):
    write(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    (tmp_path / name).write_text(text)
    assert paths_of(tmp_path / name) == ["images/1.png", "images/2.png"]
    assert (tmp_path / list_images(tmp_path / name).train.entries[0].path).is_file()


def test_absolute_paths(tmp_path):
    place = write(tmp_path, "images/1.png") / "images/1.png"
    (tmp_path / "list.txt").write_text(f"{place}\n")
    assert paths_of(tmp_path / "list.txt") == [str(place)]


def test_annotations_name_images(tmp_path):
    write(tmp_path, "1.png", "2.png", "3.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in (1, 2)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    listers = [task.list_data for task in TASKS.values()]
    listed = list_images(tmp_path / "coco.json", listers).train
    assert [entry.path for entry in listed.entries] == ["1.png", "2.png"]


def test_refusals(tmp_path):
    write(tmp_path / "texts", "notes.txt", "more.md")
    write(tmp_path / "packed", "a.zip")
    (tmp_path / "list.txt").write_text("lacks.png\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "table.csv").write_text("name,age\nx,1\n")
    for name, named in (
        ("texts", "0 images"),
        ("packed", r"a\.zip"),
        ("list.txt", r"lacks\.png"),
        ("empty.txt", "0 of 0"),
        ("table.csv", r"table\.csv"),
        ("nothing", "nothing"),
    ):
        with pytest.raises(DataError, match=named):
            list_images(tmp_path / name)


def test_a_held_out_part_depends_on_names_alone():
    entries = tuple(Entry(path=f"{i}.png") for i in range(40))
    listing = Listing(source="set", entries=entries, class_names=())
    train, val = hold_out(listing, count=7, seed=3)
    assert (len(train), len(val)) == (33, 7)
    assert {*train.entries} | {*val.entries} == {*entries}
    _, again = hold_out(listing.select(reversed(range(40))), count=7, seed=3)
    assert {e.path for e in again.entries} == {e.path for e in val.entries}
    assert hold_out(listing, count=7, seed=4)[1] != val
