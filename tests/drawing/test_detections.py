# SPDX-License-Identifier: Apache-2.0
"""Images of objects: what must be seen is there, and nothing awkward breaks them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from muntin.drawing.detection_drawing import (
    cut_mask,
    draw_detection_pair,
    draw_detections,
    draw_objects,
)
from muntin.drawing.plots import draw_precision_recall
from muntin.drawing.result_drawing import draw_result
from muntin.drawing.saving import save_figure
from muntin.drawing.style import colour_of
from muntin.results import Detections
from muntin.run_lengths import encode_mask
from muntin.samples import Objects

ORANGE, SKY = (230, 159, 0), (86, 180, 233)  # numbers 0 and 1
ignore_missing = pytest.mark.filterwarnings("ignore:no font has")
NAMES = ("cell", "\u03b1 \u05e9\u05dc\u05d5\u05dd", "\u4e2d\u6587", "a\nb\tc", "\ud800", "")


def pixels(height, width, shade=90):
    return np.full((height, width, 3), shade, np.uint8)


def detections(boxes, class_ids=None, *, masks=None, names=NAMES, size=(100, 200)):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    class_ids = [0] * len(boxes) if class_ids is None else class_ids
    return Detections(
        path="",
        size=size,
        boxes=boxes,
        class_ids=np.array(class_ids, np.int64),
        scores=np.linspace(0.9, 0.1, len(boxes)),
        class_names=tuple(names[class_id % len(names)] for class_id in class_ids),
        masks=masks,
    )


def objects(boxes, class_ids=None, *, crowd=None, masks=()):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    return Objects(
        boxes=boxes,
        class_ids=np.array([0] * len(boxes) if class_ids is None else class_ids, np.int64),
        crowd=np.array([False] * len(boxes) if crowd is None else crowd, bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        masks=masks,
    )


def scattered(count, size=(100, 200)):
    generator = np.random.default_rng(0)
    corners = generator.random((count, 2)) * np.array(size[::-1]) * 0.9
    return np.c_[corners, corners + 1 + 9 * generator.random((count, 2))]


def painted(image, colour):
    """Where the image has exactly this colour."""
    return (np.asarray(image) == colour).all(axis=2)


@pytest.mark.parametrize("count", [0, 1, 25, 26, 60, 61, 1000])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 20), (100, 200), (1500, 2000)])
def test_any_size_and_number(size, count):
    found = detections(scattered(count, size), np.arange(count) % 30, size=size)
    image = draw_result(pixels(*size), found)
    assert image.mode == "RGB"
    longer = max(image.size)
    # A legend may be below a tall image.
    assert 600 <= longer <= 1280 + 140


@pytest.mark.parametrize(
    ("size", "drawn"),
    [((16, 32), (640, 320)), ((60, 45), (495, 660)), ((100, 200), (640, 320)),
     ((480, 640), (640, 480)), ((700, 900), (900, 700)), ((2000, 4000), (1280, 640))],
)  # fmt: skip
def test_small_images_are_enlarged_and_large_ones_shrunk(size, drawn):
    image = draw_detections(pixels(*size), detections([[0, 0, 5, 5]], size=size))
    assert image.size == drawn


def test_pixels_of_tiny_images_stay_visible():
    original = np.random.default_rng(0).integers(0, 256, (16, 32, 3)).astype(np.uint8)
    image = np.asarray(draw_detections(original, detections([])))[:320]
    assert (image[10::20, 10::20] == original).all()


def test_a_box_has_its_place_and_tag():
    image = draw_detections(pixels(640, 640), detections([[100, 200, 300, 400]], size=(640, 640)))
    orange = painted(image, ORANGE)
    rows, columns = np.flatnonzero(orange.any(axis=1)), np.flatnonzero(orange.any(axis=0))
    assert (columns[0], columns[-1]) == (100, 299)
    assert rows[-1] == 399
    assert 170 < rows[0] < 190  # the tag is above
    assert not orange[210:390, 110:290].any()
    assert np.asarray(image)[rows[0] : 200, 100:200].min() < 30  # letters


@pytest.mark.parametrize(
    "box",
    [[-50, -50, 30, 30], [190, 90, 900, 800], [-1e9, -1e9, 1e9, 1e9], [50, 50, 51, 51],
     [50, 50, 50, 50], [500, 500, 600, 600], [60, 60, 40, 40], [np.nan, 0, 5, np.inf]],
)  # fmt: skip
@pytest.mark.parametrize("crowd", [False, True])
def test_awkward_boxes(box, crowd):
    original = pixels(100, 200)
    inside = box[0] < 200 and np.isfinite(box).all()
    drawn = [
        draw_detections(original, detections([box])),
        draw_objects(original, objects([box], crowd=[crowd]), NAMES),
    ]
    for image in drawn:
        assert painted(image, ORANGE).any() == inside


@pytest.mark.parametrize("channels", [(), (1,)])
def test_grey_images(channels):
    original = np.full((100, 200, *channels), 90, np.uint8)
    found, truth = detections([[20, 20, 80, 80]]), objects([[20, 20, 80, 80]])
    for image in draw_result(original, found), draw_detection_pair(original, truth, found, NAMES):
        assert image.mode == "RGB"
        assert painted(image, ORANGE).any()


@ignore_missing
def test_names_that_the_font_cannot_write():
    """Boxes in the place of letters say nothing; the number of the class does."""
    drawn = [
        draw_objects(pixels(100, 200), objects([[20, 20, 80, 80]]), (name,))
        for name in ("\ufdd0", "class 0", "\u043a\u043e\u0442")
    ]
    assert drawn[0].tobytes() == drawn[1].tobytes() != drawn[2].tobytes()


@pytest.mark.parametrize("class_id", range(len(NAMES)))
@pytest.mark.parametrize("count", [1, 30, 70])
def test_any_name(class_id, count):
    boxes = scattered(count)
    class_ids = [class_id] + [0] * (count - 1)
    assert draw_detections(pixels(100, 200), detections(boxes, class_ids)).width >= 640
    assert draw_objects(pixels(100, 200), objects(boxes, class_ids), NAMES).width >= 640


def test_masks_are_filled_and_outlined():
    bitmap = np.zeros((640, 640), bool)
    bitmap[100:300, 200:500] = True
    found = detections([[200, 100, 500, 300]], masks=(encode_mask(bitmap),), size=(640, 640))
    image = np.asarray(draw_detections(pixels(640, 640), found))
    mixed = np.round(90 + 0.4 * (np.array(ORANGE) - 90))
    assert (image[200, 300] == mixed).all()
    assert (image[100, 450] == ORANGE).all()
    assert (image[50, 50] == 90).all()
    # Many masks go without boxes: the corner of this one's box stays as it was.
    corner = np.tri(640, dtype=bool)
    many = detections([[0, 0, 640, 640]] * 30, masks=(encode_mask(corner),) * 30, size=(640, 640))
    image = np.asarray(draw_detections(pixels(640, 640), many))
    assert (image[5, 900] == 90).all()
    assert (image[900, 5] != 90).any()


def test_each_object_has_a_colour_of_its_own():
    boxes = [[20 + 60 * number, 200, 60 + 60 * number, 300] for number in range(10)]
    for class_ids in ([0] * 10, [1] * 10, [*range(5), *range(5)]):
        found = detections(boxes, class_ids, size=(640, 640))
        image = np.asarray(draw_detections(pixels(640, 640), found))
        edges = [tuple(image[250, left].tolist()) for left, *_ in boxes]
        assert edges == [colour_of(number) for number in range(10)]
    # Too many for tags, of several classes: what a class is must still be seen.
    many = detections(scattered(70, (640, 640)), np.arange(70) % 2, size=(640, 640))
    image = draw_detections(pixels(640, 640), many)
    assert painted(image, ORANGE).any()
    assert not painted(image, colour_of(7)).any()


def test_overlaps_of_masks_are_not_darker():
    """A pixel has the colour of the uppermost mask, mixed once; outlines of all are seen."""
    bitmaps = np.zeros((3, 640, 640), bool)
    bitmaps[0, 100:500, 100:500] = True
    bitmaps[1, 200:300, 200:600] = True
    bitmaps[2, 220:280, 220:280] = True
    boxes = [[100, 100, 500, 500], [200, 200, 600, 300], [220, 220, 280, 280]]
    masks = tuple(map(encode_mask, bitmaps))
    found = detections(boxes, masks=masks, size=(640, 640))
    image = np.asarray(draw_detections(pixels(640, 640), found)).astype(int)
    mixed = [np.round(90 + 0.4 * (np.array(colour_of(number)) - 90)) for number in range(3)]
    # Small ones lie on top, whatever their scores.
    for number, place in enumerate([(450, 300), (250, 400), (250, 250)]):
        assert (image[place] == mixed[number]).all()
    assert tuple(image[250, 499].tolist()) == colour_of(0), "its outline lies under a fill"


def test_a_pair_has_one_colour_for_what_matches():
    truth = objects([[300, 300, 400, 400], [20, 20, 120, 120]])
    found = detections(
        [[500, 500, 600, 600], [22, 20, 122, 120], [20, 24, 120, 124]], size=(640, 640)
    )
    sheet = draw_detection_pair(pixels(640, 640), truth, found, NAMES, side=1320)
    left, right = (np.asarray(sheet)[30:, start:] for start in (0, (sheet.width + 8) // 2))
    scale = (sheet.width - 8) // 2 / 640
    of_truth = left[round(60 * scale), round(119 * scale)]
    assert tuple(of_truth.tolist()) == colour_of(1)
    assert (right[round(60 * scale), round(121 * scale)] == of_truth).all()
    colours = {tuple(colour.tolist()) for colour in right.reshape(-1, 3)}
    assert colour_of(0) not in colours
    assert {colour_of(2), colour_of(4)} <= colours, "new numbers for what matches nothing"


def test_polygons_and_plain_run_lengths_cover_the_same():
    polygon = [[20.0, 10.0, 60.0, 10.0, 60.0, 40.0, 20.0, 40.0], [1.0, 1.0]]
    bitmap = np.zeros((50, 70), bool)
    bitmap[10:40, 20:60] = True
    runs = np.diff(np.flatnonzero(np.diff(np.r_[0, bitmap.ravel(order="F"), 0])), prepend=0)
    plain = {"size": [50, 70], "counts": [*runs.tolist(), 3500 - int(runs.sum())]}
    for mask in (polygon, plain, encode_mask(bitmap)):
        piece, top, left = cut_mask(mask, (50, 70), (100, 140))
        assert (piece.shape, top, left) == ((60, 80), 20, 40)
        assert piece.mean() > 0.97
        piece, top, left = cut_mask(mask, (50, 70), (5, 7))
        assert (piece.shape, top, left) == ((3, 4), 1, 2)
    assert cut_mask(encode_mask(np.zeros((5, 5), bool)), (5, 5), (9, 9)) is None
    assert cut_mask([[1.0, 1.0]], (5, 5), (9, 9)) is None
    dot = np.zeros((500, 500), bool)
    dot[7, 7] = True
    assert cut_mask(encode_mask(dot), (500, 500), (50, 50))[0].all()


def test_crowds_are_dashed_and_hatched():
    box = [100, 100, 500, 500]
    polygon = [[150.0, 150.0, 450.0, 150.0, 450.0, 450.0, 150.0, 450.0]]
    original = pixels(640, 640)
    drawn = {}
    for crowd in (False, True):
        truth = objects([box], crowd=[crowd], masks=(polygon,))
        drawn[crowd] = draw_objects(original, truth, NAMES)
    edges = {crowd: painted(image, ORANGE)[499, 100:500] for crowd, image in drawn.items()}
    assert edges[False].all()
    assert 0.3 < edges[True].mean() < 0.7
    inside = np.asarray(drawn[True])[200:400, 200:400]
    assert 0.1 < (inside != 90).any(axis=2).mean() < 0.4
    assert (np.asarray(drawn[False])[200:400, 200:400] != 90).any(axis=2).all()


def test_a_legend_takes_over_from_tags():
    few = detections(scattered(25, (480, 640)), size=(480, 640))
    assert draw_detections(pixels(480, 640), few).height == 480
    many = detections(scattered(70, (480, 640)), np.arange(70) % 2, size=(480, 640))
    image = draw_detections(pixels(480, 640), many)
    assert image.size[0] == 960
    legend = image.crop((0, 720, 960, image.height))
    assert painted(legend, ORANGE).any()
    assert painted(legend, SKY).any()
    crowded = detections(
        scattered(600), np.arange(600) % 300, names=[f"name {i}" for i in range(300)]
    )
    assert draw_detections(pixels(480, 640), crowded).height == 720 + 6 * 22 + 8


def test_the_best_are_on_top():
    boxes = [[100, 100, 300, 300]] * 2
    image = draw_detections(pixels(640, 640), detections(boxes, [1, 0], size=(640, 640)))
    assert painted(image, ORANGE)[299, 100:300].all()


def test_a_pair_is_side_by_side():
    found = detections(scattered(40), np.arange(40) % 2)
    sheet = draw_detection_pair(pixels(100, 200), objects([[10, 10, 50, 50]]), found, NAMES)
    assert sheet.width == 2 * 960 + 8
    assert painted(sheet.crop((0, 0, 960, 510)), ORANGE).any()
    assert not painted(sheet.crop((0, 0, 960, 510)), SKY).any()
    assert painted(sheet.crop((968, 0, sheet.width, 510)), SKY).any()
    wide = draw_detection_pair(pixels(100, 2000), objects([]), detections([]), NAMES)
    assert wide.width == 2 * 960 + 8


def test_real_images(data_root):
    folder = data_root / "nuclei"
    file = folder / "annotations" / "instances_test.json"
    if not file.is_file():
        pytest.skip("no nuclei among the real data")
    content = json.loads(file.read_text())
    image = content["images"][0]
    rows = [row for row in content["annotations"] if row["image_id"] == image["id"]]
    boxes = np.array([row["bbox"] for row in rows]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = tuple(row["segmentation"] for row in rows)
    original = np.asarray(Image.open(folder / "images" / image["file_name"]).convert("RGB"))
    found = detections(boxes, masks=masks, size=original.shape[:2])
    sheet = draw_detection_pair(original, objects(boxes, masks=masks), found, NAMES)
    assert painted(sheet, ORANGE).any()


@ignore_missing
@pytest.mark.parametrize("count", [0, 1, 3, 12, 60])
@pytest.mark.parametrize("counted", [False, True])
def test_precision_recall(tmp_path, count, counted):
    recall = np.linspace(0, 1, 101)
    precision = np.array([1 - recall * (k + 1) / (count + 2) for k in range(count)])
    precision = precision.reshape(count, 101)
    if count > 1:
        precision[1] = np.nan
    # The font has no letters for the names: their numbers are written.
    names = [f"\ufdd0\ufdd0 {k}" for k in range(count)]
    counts = np.arange(count)[::-1] if counted else ()
    figure = draw_precision_recall(recall, precision, names, "title", num_objects=counts)
    assert save_figure(figure, tmp_path / "curves.png").is_file()
    lines = figure.axes[0].get_lines()
    known = count - (count > 1)
    assert len(lines) == (min(known, 10) + 1 if known else 0)
    if not count:
        return
    labels = [line.get_label() for line in lines]
    assert labels[0].startswith("class 0 ") == (counted or known <= 10)
    assert any(label.startswith(f"class {count - 1} ") for label in labels)
    mean = np.nanmean(precision)
    assert labels[-1] == f"mean of {known}  {mean:.2f}"
    assert figure.axes[0].get_legend() is not None
