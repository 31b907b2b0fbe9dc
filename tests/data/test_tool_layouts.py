# SPDX-License-Identifier: Apache-2.0
"""CVAT, VIA, Label Studio and boxes in a CSV against what was drawn, by hand."""

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from muntin.data.detection import list_detect
from muntin.data.semantic import list_semantic
from muntin.errors import DataError
from muntin.run_lengths import decode_mask, mask_area, to_run_lengths

SIZE = (37, 53)


def images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1]).save(root / name)
    return root


def only(data):
    (entry,) = data.train.entries
    return entry.objects


# ---- CVAT


def cvat(root, *shapes, name="1.png", head=""):
    inner = "".join(shapes)
    text = (
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{head}'
        f'<image id="0" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">{inner}</image>'
        f"</annotations>"
    )
    (images(root, f"images/{name}") / "annotations.xml").write_text(text)
    return root


CVAT_SHAPES = {
    "box": ('<box label="a" xtl="4.5" ytl="5" xbr="14.5" ybr="13"/>', [4.5, 5, 14.5, 13], 80),
    "turned box": (
        '<box label="a" xtl="10" ytl="10" xbr="20" ybr="14" rotation="90.0"/>', [13, 7, 17, 17], 40,
    ),
    "polygon": ('<polygon label="a" points="4,5;14,5;14,13;4,13"/>', [4, 5, 14, 13], 80),
    "ellipse": ('<ellipse label="a" cx="20" cy="15" rx="10" ry="5"/>', [10, 10, 30, 20], 157.1),
    "turned ellipse": (
        '<ellipse label="a" cx="20" cy="15" rx="10" ry="5" rotation="90"/>', [15, 5, 25, 25], 157.1,
    ),
    "mask": (
        '<mask label="a" rle="1, 2, 2, 1" left="7" top="3" width="3" height="2"/>',
        [8, 3, 10, 5], 3,
    ),
    "cuboid": (
        '<cuboid label="a" xtl1="4" ytl1="5" xbl1="4" ybl1="9" xtr1="8" ytr1="5" xbr1="8" '
        'ybr1="9" xtl2="6" ytl2="3" xbl2="6" ybl2="7" xtr2="10" ytr2="3" xbr2="10" ybr2="7"/>',
        [4, 3, 10, 9], None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("drawn", "box", "area"), CVAT_SHAPES.values(), ids=CVAT_SHAPES)
def test_shapes_of_cvat(tmp_path, drawn, box, area):
    other = '<polygon label="b" points="1,1;3,1;3,3"/><points label="c" points="1,1;2,2"/>'
    root = cvat(tmp_path, drawn, other, '<tag label="night"/>')
    for place in (root, root / "annotations.xml"):
        data = list_detect(place, masks=True)
        assert data.note.startswith("CVAT for images, train 1 image, 2 objects of 2 classes")
        assert "1 shape without area left out" in data.note
        assert np.allclose(only(data).boxes[0], box, atol=0.01)
    mask = only(data).masks[0]
    assert (mask is None) == (area is None)
    if area:
        assert mask_area(to_run_lengths(mask, SIZE)) == pytest.approx(area, rel=0.04, abs=6)
    if "mask" in drawn:
        bits = decode_mask(mask)
        assert bits[3:5, 7:10].tolist() == [[False, True, True], [False, False, True]]


CVAT_FAULTS = (
    '<box label="a" xtl="x" ytl="5" xbr="14" ybr="13"/>',
    '<box label="a" ytl="5" xbr="14" ybr="13"/>',
    '<polygon label="a" points="4,5;14"/>',
    '<mask label="a" rle="1,2" left="0" top="0" width="3" height="2"/>',
    '<mask label="a" rle="0,6" left="52" top="0" width="3" height="2"/>',
    '<mask label="a" rle="0,a" left="5" top="0" width="3" height="2"/>',
)


@pytest.mark.parametrize("drawn", CVAT_FAULTS)
def test_faulty_shapes_of_cvat_hide_their_image(tmp_path, drawn):
    data = list_detect(cvat(tmp_path, '<box label="b" xtl="1" ytl="1" xbr="9" ybr="9"/>', drawn))
    assert len(data.train) == 0
    assert data.fault


def test_sets_groups_and_videos_of_cvat(tmp_path):
    drawn = '<polygon label="a" group_id="3" points="{},5;14,5;14,13"/>'
    root = cvat(tmp_path, drawn.format(2), drawn.format(9), name="Train/1.png")
    (objects,) = (entry.objects for entry in list_detect(root).train.entries)
    assert objects.boxes.tolist() == [[2, 5, 14, 13]]
    (root / "annotations.xml").write_text('<annotations><track id="0" label="a"/></annotations>')
    with pytest.raises(DataError, match=r"got none in .*CVAT for images"):
        list_detect(root)
    (root / "annotations.xml").write_text("<annotations><image>")
    with pytest.raises(DataError, match=r"'annotations\.xml' .* whole"):
        list_detect(root)


TRACKS = (
    "<annotations><meta><task><start_frame>0</start_frame><stop_frame>{stop}</stop_frame>"
    "<original_size><width>53</width><height>37</height></original_size></task></meta>{tracks}"
    "</annotations>"
)
BOX = '<box frame="{}" outside="{}" keyframe="1" xtl="{}" ytl="5" xbr="14" ybr="13"/>'


def video(root, *tracks, stop=4, frames=range(5)):
    images(root, *(f"images/frame_{n:06d}.PNG" for n in frames))
    text = "".join(
        f'<track id="{n}" label="{one[0]}">{one[1]}</track>' for n, one in enumerate(tracks)
    )
    (root / "annotations.xml").write_text(TRACKS.format(stop=stop, tracks=text))
    return root


def test_tracks_of_cvat(tmp_path):
    """Out of view is not there; frames that key frames leave out teach nothing."""
    car = BOX.format(0, 0, 1) + BOX.format(1, 0, 2) + BOX.format(2, 1, 3)
    cat = '<polygon frame="0" outside="0" points="20,20;30,20;30,30"/>'
    root = video(tmp_path, ("car", car), ("cat", cat), frames=range(6))
    data = list_detect(root, masks=True)
    found = {entry.path[-5:-4]: entry.objects for entry in data.train.entries}
    assert {n: one.class_ids.tolist() for n, one in found.items()} == {
        "0": [0, 1], "1": [0], "2": [], "3": [], "4": [],
    }  # fmt: skip
    assert found["0"].boxes.tolist() == [[1, 5, 14, 13], [20, 20, 30, 30]]
    assert found["1"].boxes.tolist() == [[2, 5, 14, 13]]
    gap = BOX.format(0, 0, 1) + BOX.format(3, 0, 2) + BOX.format(4, 1, 2)
    data = list_detect(video(tmp_path, ("car", gap)))
    assert [entry.path[-5:-4] for entry in data.train.entries] == ["0", "3", "4"]
    assert "2 frames between key frames left out" in data.note


def test_frames_of_cvat_that_count_from_one_are_refused(tmp_path):
    root = video(tmp_path, ("car", BOX.format(2, 0, 1)), stop=3, frames=range(1, 5))
    with pytest.raises(DataError, match=r"frame_000000.*frame_000004"):
        list_detect(root)


# ---- VIA


def via_region(kind, attributes, **shape):
    return {"shape_attributes": {"name": kind, **shape}, "region_attributes": attributes}


VIA_SHAPES = {
    "rect": ({"kind": "rect", "x": 4, "y": 5, "width": 10, "height": 8}, [4, 5, 14, 13]),
    "circle": ({"kind": "circle", "cx": 20, "cy": 15, "r": 10}, [10, 5, 30, 25]),
    "ellipse": (
        {"kind": "ellipse", "cx": 20, "cy": 15, "rx": 10, "ry": 5, "theta": math.pi / 2},
        [15, 5, 25, 25],
    ),
    "polygon": (
        {"kind": "polygon", "all_points_x": [4, 14, 14], "all_points_y": [5, 5, 13]},
        [4, 5, 14, 13],
    ),
}  # fmt: skip


@pytest.mark.parametrize("version", [1, 2, "project", "CSV"])
@pytest.mark.parametrize(("shape", "box"), VIA_SHAPES.values(), ids=VIA_SHAPES)
def test_shapes_of_via(tmp_path, version, shape, box):
    regions = [
        via_region(**shape, attributes={"Type": "car", "id": "7"}),
        via_region("polyline", {"Type": "x"}, all_points_x=[1, 2], all_points_y=[1, 2]),
        via_region("rect", {"Type": {"bus": True, "x": False}}, x=1, y=1, width=2, height=3),
        via_region("rect", {"Type": ""}, x=30, y=30, width=2, height=3),
    ]
    given = {str(n): one for n, one in enumerate(regions)} if version == 1 else regions
    values = {"1.png9": {"filename": "1.png", "size": 9, "regions": given, "file_attributes": {}}}
    values["2.png9"] = {"filename": "2.png", "size": 9, "regions": [], "file_attributes": {}}
    if version == "project":
        values = {"_via_settings": {}, "_via_img_metadata": values, "_via_attributes": {}}
    images(tmp_path, "1.png", "2.png")
    if version == "CSV":
        file = tmp_path / "via.csv"
        head = "#filename,file_size,file_attributes,region_count,region_id"
        rows = [
            [
                "1.png",
                9,
                "{}",
                4,
                n,
                *map(json.dumps, (one["shape_attributes"], one["region_attributes"])),
            ]
            for n, one in enumerate(regions)
        ]
        with file.open("w", newline="") as out:
            out.write(f"{head},region_shape_attributes,region_attributes\n")
            csv.writer(out).writerows([*rows, ["2.png", 9, "{}", 0, 0, "{}", "{}"]])
    else:
        file = tmp_path / "via.json"
        file.write_text(json.dumps(values))
    for place in (tmp_path, file):
        data = list_detect(place)
        assert data.note.startswith("VIA, train 2 images, 2 objects of 2 classes")
        assert data.train.class_names == ("bus", "car")
        first, second = data.train.entries
        assert first.objects.class_ids.tolist() == [1, 0, -1]
        assert np.allclose(first.objects.boxes[0], box, atol=0.01)
        assert len(second.objects) == 0


def test_classes_of_via(tmp_path):
    def read(*attributes):
        regions = [via_region("rect", one, x=1, y=1, width=2, height=3) for one in attributes]
        values = {"1": {"filename": "1.png", "regions": regions}}
        (images(tmp_path, "1.png") / "via.json").write_text(json.dumps(values))
        return list_detect(tmp_path)

    assert read({}).train.class_names == ("object",)
    assert read({"my kind": "a"}).train.class_names == ("a",)
    with pytest.raises(DataError, match=r"must be the class, got a, b"):
        read({"a": "1", "b": "2"})


# ---- Label Studio


def brush(mask):
    """Pack a mask as rle-pack does: runs of one value, and stretches of values one by one."""
    values = np.repeat(mask.ravel(), 4).astype(int) * 255
    sizes = (3, 4, 8, 16)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    place = 0
    while place < len(values):
        if len(values) - place > 9 and place % 5 == 0:  # one by one
            bits += "0" + f"{0:02b}" + f"{7:03b}"
            bits += "".join(f"{value:08b}" for value in values[place : place + 8])
            place += 8
            continue
        end = place
        while end < len(values) and values[end] == values[place] and end - place < 65000:
            end += 1
        kind = next(n for n, size in enumerate(sizes) if end - place <= 2**size)
        bits += "1" + f"{kind:02b}" + f"{end - place - 1:0{sizes[kind]}b}" + f"{values[place]:08b}"
        place = end
    bits += "0" * (-len(bits) % 8)
    return [int(bits[n : n + 8], 2) for n in range(0, len(bits), 8)]


MASK = np.zeros(SIZE, bool)
MASK[5:13, 4:14] = True
MASK[20, 50] = True
PERCENT = {"x": 100 * 4 / 53, "y": 100 * 5 / 37, "width": 100 * 10 / 53, "height": 100 * 8 / 37}
LS_SHAPES = {
    "rectangle": (
        "rectanglelabels", {**PERCENT, "rotation": 0}, [4, 5, 14, 13],
    ),
    "turned rectangle": ("rectanglelabels", {**PERCENT, "rotation": 90}, [-4, 5, 4, 15]),
    "ellipse": (
        "ellipselabels",
        {"x": 100 * 20 / 53, "y": 100 * 15 / 37, "radiusX": 1000 / 53, "radiusY": 500 / 37,
         "rotation": 0},
        [10, 10, 30, 20],
    ),
    "polygon": ("polygonlabels", {"points": [[0, 0], [50, 0], [50, 100]]}, [0, 0, 26.5, 37]),
    "brush": ("brushlabels", {"format": "rle", "rle": brush(MASK)}, [4, 5, 51, 21]),
}  # fmt: skip


def ls_row(kind, value, label="cat", **other):
    labels = {kind: [label]} if label else {}
    return {
        "type": kind, "original_width": SIZE[1], "original_height": SIZE[0],
        "value": {**value, **labels}, **other,
    }  # fmt: skip


def ls_task(*rows, image="/data/upload/1/0a1b2c3d-1.png", **other):
    return {"id": 1, "data": {"image": image}, "annotations": [{"result": [*rows]}], **other}


def export(root, *tasks):
    (images(root, "photos/1.png") / "export.json").write_text(json.dumps(tasks))
    return root


@pytest.mark.parametrize(("kind", "value", "box"), LS_SHAPES.values(), ids=LS_SHAPES)
@pytest.mark.parametrize("form", ["JSON", "JSON-MIN", "two rows"])
def test_shapes_of_label_studio(tmp_path, kind, value, box, form):
    rows = [ls_row(kind, value, id="a")]
    if form == "two rows":
        rows = [ls_row(kind.removesuffix("labels"), value, label="", id="a")]
        rows.append(ls_row("labels", {**value, "labels": ["cat"]}, label="", id="a"))
    task = ls_task(*rows)
    if form == "JSON-MIN":
        given = {"original_width": SIZE[1], "original_height": SIZE[0], **value, kind: ["cat"]}
        task = {"image": "/data/upload/1/0a1b2c3d-1.png", "id": 1, "tag": [given]}
    root = export(tmp_path, task)
    for place in (root, root / "export.json"):
        data = list_detect(place)
        assert data.note.startswith("Label Studio, train 1 image, 1 object of 1 class")
        wanted = [max(box[0], 0), *box[1:]]
        assert np.allclose(only(data).boxes, [wanted], atol=0.02)
    if "rle" in value:
        data = list_semantic(root)
        (mask,) = data.train.entries[0].objects.masks
        assert (decode_mask(mask) == MASK).all()


def test_tasks_of_label_studio(tmp_path):
    """Several masks an image, cancelled annotations, other controls, names of images."""
    row = ls_row("brushlabels", {"rle": brush(MASK)}, id="a")
    far = ls_row("brushlabels", {"rle": brush(np.roll(MASK, 7, axis=1))}, "dog", id="b")
    choice = {"type": "choices", "value": {"choices": ["day"]}, "id": "c"}
    point = ls_row("keypointlabels", {"x": 1, "y": 1, "width": 0.2}, id="d")
    first = ls_task(row, far, choice, point, image="/data/local-files/?d=photos/1.png")
    first["annotations"].insert(0, {"result": [], "was_cancelled": True})
    second = ls_task(row, image="s3://bucket/photos/2%20b.png")
    second["annotations"] += [{"result": [], "ground_truth": True}]
    third = {**ls_task(image="x.png"), "annotations": []}
    images(tmp_path, "photos/2 b.png")
    data = list_detect(export(tmp_path, first, second, third), masks=True)
    found = {entry.path: entry.objects.class_ids.tolist() for entry in data.train.entries}
    assert found == {"photos/1.png": [0, 1], "photos/2 b.png": []}
    for note in ("1 task with several", "1 task without an annotation", "1 shape without area"):
        assert note in data.note


@pytest.mark.parametrize(
    "value",
    [
        {"rle": [0, 0, 1]},
        {"rle": brush(MASK)[:40]},
        {"rle": brush(MASK[:-1])},
        {"rle": "text"},
        {"points": [[1, 1], [2]]},
        {"x": 1, "y": None, "width": 3, "height": 3},
    ],
)
def test_faulty_regions_of_label_studio_hide_their_image(tmp_path, value):
    data = list_detect(export(tmp_path, ls_task(ls_row("brushlabels", value, id="a"))))
    assert len(data.train) == 0


BRUSH_IMAGES = {
    "by task": (("a/Task-2.png", "a/task 10.png", "a/other.png"), (0, 1), True),
    "in order": (("p9.png", "p10.png"), (0, 1), False),
    "uploaded": (("00000001-b.png", "00000002-c.png"), (0, 1), False),
    "uploaded in another order": (("1f000001-c.png", "20000002-b.png"), (), False),
    "as many are not there": (("p9.png",), (), False),
}


@pytest.mark.parametrize(("names", "places", "sure"), BRUSH_IMAGES.values(), ids=BRUSH_IMAGES)
def test_masks_of_label_studio(tmp_path, names, places, sure):
    """One file a region; of several annotations the first; labels with dashes."""
    masks = {
        "task-2-annotation-5-by-1-tag-cat-0": MASK, "task-2-annotation-5-by-1-tag-cat-1": ~MASK,
        "task-10-annotation-7-by--tag-big-dog-0": MASK, "task-2-annotation-9-by-1-tag-owl-0": MASK,
    }  # fmt: skip
    (images(tmp_path, *names) / "masks").mkdir()
    for name, bits in masks.items():
        Image.fromarray(np.uint8(bits) * 255).save(tmp_path / "masks" / f"{name}.png")
    if not places:
        with pytest.raises(DataError, match=r"task-2\.jpg"):
            list_detect(tmp_path)
        return
    data = list_detect(tmp_path, masks=True)
    found = {entry.path: entry.objects for entry in data.train.entries}
    first, second = (found[names[place]] for place in places)
    assert data.train.class_names == ("big-dog", "cat")
    assert [one.class_ids.tolist() for one in (first, second)] == [[1, 1], [0]]
    for got, wanted in zip((*first.masks, *second.masks), (MASK, ~MASK, MASK), strict=True):
        assert (decode_mask(got) == wanted).all()
    assert "1 task with several annotations" in data.note
    assert bool(data.problems) == (not sure)
    assert list_semantic(tmp_path).train.class_names == ("background", "big-dog", "cat")


# ---- CSV

TABLES = {
    "TensorFlow": "filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,53,37,cat,4,5,14,13\n",
    "other order": "xmin;ymin;xmax;ymax;Label Name;Image Path\n4;5;14;13;cat;photos/1.png\n",
    "sides": "image,label,x,y,w,h\n1.png,cat,4,5,10,8\n",
    "one cell": 'image_id,width,height,bbox,class\n1,53,37,"[4.0, 5, 10, 8]",cat\n',
    "keras-retinanet": "photos/1.png,4,5,14,13,cat\n2.png,,,,,\n",
    "SKU110K": "1.png,4,5,14,13,cat,53,37\n2.png,4,5,14,13,cat,53,37\n",
    "fractions": f"image\tclass\tx1\ty1\tx2\ty2\n1.png\tcat\t{4/53}\t{5/37}\t{14/53}\t{13/37}\n",
    "AutoML": f"TRAIN,gs://b/1.png,cat,{4/53},{5/37},,,{14/53},{13/37},,\n"
    "TEST,gs://b/2.png,cat,0.1,0.2,,,0.3,0.4,,\n",
    "no class": "image,xmin,ymin,xmax,ymax\n1.png,4,5,14,13\n",
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), TABLES.items(), ids=TABLES)
def test_tables(tmp_path, name, text):
    (images(tmp_path, "photos/1.png", "photos/2.png") / "boxes.csv").write_text(text, "utf-8-sig")
    for place in (tmp_path, tmp_path / "boxes.csv"):
        data = list_detect(place)
        assert data.note.startswith("CSV of boxes, train ")
        assert "boxes.csv: image" in data.note
        first = data.train.entries[0]
        assert first.path == "photos/1.png"
        assert np.allclose(first.objects.boxes, [[4, 5, 14, 13]])
        assert data.train.class_names == (("object",) if name == "no class" else ("cat",))
    empty = name == "keras-retinanet"
    assert [len(entry.objects) for entry in data.train.entries[1:]] == (
        [0] if empty else [1] if name == "SKU110K" else []
    )
    assert (data.test is not None) == (name == "AutoML")


def test_tables_of_several_sets(tmp_path):
    images(tmp_path, "images/1.png", "images/2.png", "images/3.png")
    head = "filename,class,xmin,ymin,xmax,ymax\n"
    (tmp_path / "train_labels.csv").write_text(head + "1.png,b,1,1,9,9\n1.png,a,2,2,9,9\n")
    (tmp_path / "test_labels.csv").write_text(head + "2.png,a,1,1,9,9\n")
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    data = list_detect(tmp_path)
    assert [(one.path, len(one.objects)) for one in data.train.entries] == [("images/1.png", 2)]
    assert [one.path for one in data.test.entries] == ["images/2.png"]
    assert "1 image without annotations left out" in data.note


def test_faulty_tables(tmp_path):
    images(tmp_path, "1.png", "2.png")
    head = "filename,class,xmin,ymin,xmax,ymax\n"
    rows = "1.png,a,x,1,9,9\n2.png,,1,1,9,9\n2.png,b,1,1,9,9\n3.png,a,1,1,9,9\n"
    (tmp_path / "t.csv").write_text(head + rows)
    data = list_detect(tmp_path)
    assert [(one.path, one.objects.class_ids.tolist()) for one in data.train.entries] == [
        ("2.png", [-1, 1])
    ]
    assert any("'3.png' is not there" in problem.what for problem in data.problems)
    (tmp_path / "t.csv").write_text(head + "1.png,a,20,20,5,9\n2.png,a,20,20,9,9\n")
    with pytest.raises(DataError, match=r"must have xmax > xmin"):
        list_detect(tmp_path)


TWO_FOLDERS = {
    "masks": ("images", "masks"),
    "seg": ("img", "seg"),
    "drawings": ("JPEGImages", "visualisation"),
    "predictions": ("original", "predicted"),
    "unknown": ("a", "b"),
}


@pytest.mark.parametrize("layout", ["COCO", "CSV", "VOC"])
@pytest.mark.parametrize("folders", TWO_FOLDERS.values(), ids=TWO_FOLDERS)
def test_images_of_one_name_in_two_folders(tmp_path, layout, folders):
    images(tmp_path, *(f"{folder}/{n}.png" for folder in folders for n in (0, 1)))
    (tmp_path / folders[0] / "1.png").unlink()  # what is only drawn is not there
    rows = [{"id": n, "file_name": f"{n}.png", "height": 37, "width": 53} for n in (0, 1)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 8, 8]} for n in (0, 1)]
    classes = [{"id": 1, "name": "a"}]
    text = json.dumps({"images": rows, "annotations": boxes, "categories": classes})
    if layout == "COCO":
        (tmp_path / "x.json").write_text(text)
    elif layout == "CSV":
        lines = [f"{n}.png,a,1,1,9,9" for n in (0, 1)]
        (tmp_path / "x.csv").write_text("\n".join(["filename,class,xmin,ymin,xmax,ymax", *lines]))
    else:
        edges = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        thing = f"<object><name>a</name><bndbox>{edges}</bndbox></object>"
        text = f"<annotation><filename>0.png</filename>{thing}</annotation>"
        (tmp_path / "xmls").mkdir()
        (tmp_path / "xmls/0.xml").write_text(text)
    if folders == ("a", "b"):
        if layout != "VOC":  # else the folder with more of the names would count
            (tmp_path / "b/1.png").unlink()
        with pytest.raises(DataError, match=r"a/0\.png.*b/0\.png"):
            list_detect(tmp_path)
        (tmp_path / "b/0.png").rename(tmp_path / "b/7.png")  # as the error says
    assert [one.path for one in list_detect(tmp_path).train.entries] == [f"{folders[0]}/0.png"]


def test_boxes_of_a_missing_image_are_not_shapes_without_area(tmp_path):
    images(tmp_path, "1.png")
    text = "filename,class,xmin,ymin,xmax,ymax\n1.png,a,1,1,9,9\n2.png,a,1,1,9,9\n"
    (tmp_path / "t.csv").write_text(text)
    data = list_detect(tmp_path)
    assert "without area" not in data.note
    assert any("'2.png' is not there" in problem.what for problem in data.problems)
