# SPDX-License-Identifier: Apache-2.0
"""How to add a data layout: a function that recognises it, one that reads it, and a row."""

import csv

import numpy as np
from PIL import Image

from muntin.data.detection import READERS, list_detect
from muntin.data.objects import Annotation, make_entry, make_listing
from muntin.data.readers import Reader, number_classes
from muntin.data.trees import read_size, read_text


def recognise(source):
    """One boxes.toy for all images: file, class, left, top, right, bottom."""
    return None if source.is_file else source.tree.find("boxes.toy")


def read(source, found, request):
    rows = list(csv.DictReader(read_text(source.tree.source, found).splitlines()))
    used = sorted({row["class"] for row in rows})
    names, ids = number_classes(used, used, request.class_names, str(source.path))
    entries = []
    for path in source.tree.images:
        annotations = [
            Annotation(
                where=f"row {number}",
                class_id=ids[row["class"]],
                box=tuple(float(row[edge]) for edge in ("left", "top", "right", "bottom")),
            )
            for number, row in enumerate(rows)
            if row["file"] == path
        ]
        size = read_size(source.tree.source, path)
        entries.append(make_entry(path, size, annotations, request, file=found))
    return {"train": make_listing(source.tree.source, entries, names)}


TOY = Reader(name="toy", recognise=recognise, read=read, looks_for="a boxes.toy")


def write_toy(root):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(root / name)
    text = "file,class,left,top,right,bottom\na.png,cat,1,2,30,20\na.png,dog,5,5,70,30\n"
    (root / "boxes.toy").write_text(text + "a.png,cat,9,9,9,9\n")


def test_a_layout_of_ones_own_is_read_like_any_other(tmp_path):
    write_toy(tmp_path)
    data = list_detect(tmp_path, readers=(*READERS, TOY))
    first, second = data.train.entries
    assert data.note.startswith("toy")
    assert data.train.class_names == ("cat", "dog")
    assert first.objects.boxes.tolist() == [[1, 2, 30, 20], [5, 5, 60, 30]]  # cut at the edge
    assert len(second.objects) == 0
    assert "1 of zero area" in data.left_out


def test_order_decides_between_layouts(tmp_path):
    write_toy(tmp_path)
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("names: [cow]\ntrain: .\n")
    assert list_detect(tmp_path, readers=(TOY, *READERS)).note.startswith("toy")
    assert list_detect(tmp_path, readers=(*READERS, TOY)).note.startswith("YOLO")
