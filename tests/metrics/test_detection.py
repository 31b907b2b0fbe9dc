# SPDX-License-Identifier: Apache-2.0
"""Figures against pycocotools used the usual way, through files, and against counting by hand."""

from __future__ import annotations

import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from muntin.errors import ConfigError, DataError, ShapeError
from muntin.metrics.detection_metric import DetectionMetric
from muntin.results import Detections
from muntin.run_lengths import decode_mask, encode_mask, mask_area, to_run_lengths
from muntin.samples import Objects

STATS = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def objects(boxes, class_ids=None, *, crowd=None, masks=(), areas=None):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Objects(
        boxes=boxes,
        class_ids=np.array([0] * count if class_ids is None else class_ids, np.int64),
        crowd=np.array([False] * count if crowd is None else crowd, bool),
        areas=np.array(sides.prod(axis=1) if areas is None else areas, np.float64),
        masks=masks,
    )


def detections(boxes, scores, class_ids=None, *, masks=None, path="", size=(200, 200)):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    class_ids = [0] * len(boxes) if class_ids is None else class_ids
    return Detections(
        path=path,
        size=size,
        boxes=boxes,
        class_ids=np.array(class_ids, np.int64),
        scores=np.array(scores, np.float64),
        class_names=tuple(f"class {class_id}" for class_id in class_ids),
        masks=masks,
    )


def compute_metric(pairs, num_classes=1, *, masks=False, batch_size=3):
    metric = DetectionMetric([f"class {i}" for i in range(num_classes)], masks=masks)
    for start in range(0, len(pairs), batch_size):
        found, truth = zip(*pairs[start : start + batch_size], strict=True)
        metric.update(found, truth)
    return metric


def guess(truth, size, num_classes, generator, *, path="", masks=False):
    """What a fair detector would say: shifted, dropped, doubled and invented objects."""
    boxes, class_ids, found_masks = [], [], []
    for index, box in enumerate(truth.boxes):
        for _ in range(generator.choice([0, 1, 1, 1, 2])):
            boxes.append(box + generator.normal(0, 0.04, 4) * np.tile(box[2:] - box[:2], 2))
            wrong = generator.random() < 0.1
            class_ids.append(generator.integers(num_classes) if wrong else truth.class_ids[index])
            if masks:
                bitmap = decode_mask(to_run_lengths(truth.masks[index], size))
                by = int(generator.integers(0, max(2, int(mask_extent(bitmap) / 8))))
                found_masks.append(encode_mask(np.roll(bitmap, by, axis=1)))
    for _ in range(generator.integers(3)):
        corner = generator.random(2) * np.array(size[::-1]) / 2
        boxes.append(np.r_[corner, corner + 5 + 40 * generator.random(2)])
        class_ids.append(generator.integers(num_classes))
        if masks:
            found_masks.append(encode_mask(np.ones((5, 9), bool), size=size, top=1, left=2))
    scores = np.sort(generator.random(len(boxes)))[::-1]
    order = generator.permutation(len(boxes))
    return detections(
        np.array(boxes).reshape(-1, 4)[order],
        scores,
        [class_ids[i] for i in order],
        masks=tuple(found_masks[i] for i in order) if masks else None,
        path=path,
        size=size,
    )


def mask_extent(bitmap):
    columns = np.flatnonzero(bitmap.any(axis=0))
    return columns[-1] - columns[0] + 1 if len(columns) else 1


def plainly(annotations, pairs, folder, kind):
    """COCOeval as its authors use it: two files. Images and classes are numbered from 0."""
    results = [
        {
            "image_id": image_id,
            "category_id": int(found.class_ids[row]),
            "score": float(found.scores[row]),
            **(
                {"bbox": [*found.boxes[row, :2], *(found.boxes[row, 2:] - found.boxes[row, :2])]}
                if kind == "bbox"
                else {"segmentation": found.masks[row]}
            ),
        }
        for image_id, (found, _) in enumerate(pairs)
        for row in range(len(found))
    ]
    (folder / "truth.json").write_text(json.dumps(annotations))
    (folder / "found.json").write_text(json.dumps(results))
    truth = COCO(str(folder / "truth.json"))
    evaluation = COCOeval(truth, truth.loadRes(str(folder / "found.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def agree(figures, evaluation, kind):
    for name, expected in zip(STATS, evaluation.stats, strict=True):
        value = figures[f"{kind}_{name}"]
        assert (-1 if value is None else value) == pytest.approx(expected, abs=1e-9), name
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # T, R, K
    for class_id, value in enumerate(figures[f"{kind}_ap_per_class"]):
        expected, half = precision[:, :, class_id].mean(), precision[0, :, class_id].mean()
        at_half = figures[f"{kind}_ap50_per_class"][class_id]
        assert (-1 if value is None else value) == pytest.approx(expected, abs=1e-9)
        assert (-1 if at_half is None else at_half) == pytest.approx(half, abs=1e-9)


@pytest.fixture(scope="module")
def coco(data_root):
    """The validation images of coco_mini: the file with small numbers, and objects."""
    file = data_root / "coco_mini" / "annotations" / "instances_val2017.json"
    if not file.is_file():
        pytest.skip("no coco_mini among the real data")
    content = json.loads(file.read_text())
    images = sorted(content["images"], key=lambda image: image["file_name"])
    classes = {row["id"]: place for place, row in enumerate(content["categories"])}
    numbers = {image["id"]: place for place, image in enumerate(images)}
    rows = [
        row
        | {
            "image_id": numbers[row["image_id"]],
            "category_id": classes[row["category_id"]],
        }
        for row in content["annotations"]
    ]
    annotations = {
        "info": {},
        "images": [image | {"id": numbers[image["id"]]} for image in images],
        "categories": [{"id": place, "name": str(place)} for place in classes.values()],
        "annotations": rows,
    }
    truth = []
    for number in range(len(images)):
        mine = [row for row in rows if row["image_id"] == number]
        corners = np.array([row["bbox"] for row in mine]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        truth.append(
            objects(
                corners,
                [row["category_id"] for row in mine],
                crowd=[bool(row["iscrowd"]) for row in mine],
                masks=tuple(row["segmentation"] for row in mine),
                areas=[row["area"] for row in mine],
            )
        )
    return annotations, truth


@pytest.mark.parametrize("seed", [0, 1])
def test_real_annotations(coco, tmp_path, seed):
    annotations, truth = coco
    generator = np.random.default_rng(seed)
    pairs = [
        (
            guess(
                rows,
                (image["height"], image["width"]),
                80,
                generator,
                path=image["file_name"],
                masks=True,
            ),
            rows,
        )
        for image, rows in zip(annotations["images"], truth, strict=True)
    ]
    figures = compute_metric(pairs, 80, masks=True).compute()
    assert figures["max_detections"] == 100
    assert any(rows.crowd.any() for rows in truth)
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        agree(figures, plainly(annotations, pairs, tmp_path, name), kind)
        assert 0.1 < figures[f"{kind}_ap"] < 0.9


def generated(seed, num_images=12, num_classes=4):
    """Boxes in images of several sizes, some crowds, an image without any."""
    generator = np.random.default_rng(seed)
    annotations = {"info": {}, "images": [], "annotations": []}
    annotations["categories"] = [{"id": k, "name": str(k)} for k in range(num_classes)]
    pairs = []
    for number in range(num_images):
        size = (150 + 10 * number, 400 - 7 * number)
        count = 0 if number == 3 else int(generator.integers(1, 9))
        corners = generator.random((count, 2)) * 100
        boxes = np.c_[corners, corners + 4 + 120 * generator.random((count, 2)) ** 2]
        crowd = generator.random(count) < 0.15
        class_ids = generator.integers(0, num_classes - 1, count)  # of the last there is none
        masks = tuple(
            [[x, y, right, y, right, bottom, x, bottom, x, y + 1]]
            for x, y, right, bottom in boxes.tolist()
        )
        truth = objects(boxes, class_ids, crowd=crowd, masks=masks)
        annotations["images"].append({"id": number, "height": size[0], "width": size[1]})
        for row in range(count):
            annotations["annotations"].append(
                {
                    "id": len(annotations["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(class_ids[row]),
                    "bbox": [*boxes[row, :2], *(boxes[row, 2:] - boxes[row, :2])],
                    "area": float(truth.areas[row]),
                    "iscrowd": int(crowd[row]),
                    "segmentation": masks[row],
                }
            )
        path = f"{number:03}.png"
        found = guess(truth, size, num_classes, generator, path=path, masks=True)
        pairs.append((found if number != 5 else found.select(np.arange(0)), truth))
    return annotations, pairs


@pytest.mark.parametrize("seed", range(4))
def test_generated_annotations(tmp_path, seed):
    annotations, pairs = generated(seed)
    figures = compute_metric(pairs, 4, masks=True).compute()
    for kind, name in (("box", "bbox"), ("mask", "segm")):
        agree(figures, plainly(annotations, pairs, tmp_path, name), kind)
    assert figures["box_ap_per_class"][3] is None
    assert figures["num_images"] == 12


def test_neither_order_nor_batch_size_matters():
    _, pairs = generated(7)
    # Equal scores everywhere: then the order of the images would decide.
    pairs = [(detections(f.boxes, [0.5] * len(f), f.class_ids), t) for f, t in pairs]
    first = compute_metric(pairs, 4, batch_size=1)
    second = compute_metric(pairs[::-1], 4, batch_size=5)
    assert first.compute() == second.compute()
    first.update(*zip(*pairs[:2], strict=True))
    assert first.compute()["num_images"] == 14
    assert first.compute()["box_ap"] != second.compute()["box_ap"]


def test_perfect():
    _, pairs = generated(1)
    perfect = []
    for found, truth in pairs:
        kept = np.flatnonzero(~truth.crowd)
        masks = tuple(to_run_lengths(truth.masks[i], found.size) for i in kept)
        scores = np.linspace(0.9, 0.8, len(kept))
        columns = truth.boxes[kept], scores, truth.class_ids[kept]
        perfect.append((detections(*columns, masks=masks, size=found.size), truth))
    metric = compute_metric(perfect, 4, masks=True)
    figures = metric.compute()
    for name in ("box_ap", "box_ar", "mask_ap", "mask_ap75", "mask_ar_small", "best_f1"):
        assert figures[name] == pytest.approx(1.0, abs=1e-9), name
    assert figures["best_threshold"] == 0.8
    assert figures["box_ap_per_class"] == pytest.approx([1.0, 1.0, 1.0, None])
    curves = metric.curves()
    assert curves.precision[:3] == pytest.approx(np.ones((3, 101)))
    assert np.isnan(curves.precision[3]).all()
    assert curves.num_objects.sum() == sum(int((~truth.crowd).sum()) for _, truth in pairs)


def test_by_hand():
    a, b, nothing = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]
    # Ranked: right, wrong, right. Recall 0.5 at precision 1, then 1.0 at 2/3.
    found = detections([a, nothing, b], [0.9, 0.8, 0.7])
    metric = compute_metric([(found, objects([a, b]))])
    figures = metric.compute()
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert figures["box_ap50"] == pytest.approx(expected)
    assert figures["box_ap"] == figures["box_ap_small"] == pytest.approx(expected)
    assert figures["box_ap_medium"] is figures["box_ar_large"] is None
    assert (figures["box_ar1"], figures["box_ar"]) == (0.5, 1.0)
    # Cut at 0.9: F1 2/3; at 0.8: 1/2; at 0.7: 4/5.
    assert (figures["best_threshold"], figures["best_f1"]) == (0.7, pytest.approx(0.8))
    curves = metric.curves()
    assert curves.recall == pytest.approx(np.arange(101) / 100)
    assert curves.mean[[0, 50, 51, 100]] == pytest.approx([1, 1, 2 / 3, 2 / 3])
    # The overlap is 0.8, so 7 of 10 thresholds hold: 0.50 .. 0.80.
    loose = compute_metric([(detections([[0, 0, 10, 8]], [0.5]), objects([a]))]).compute()
    assert loose["box_ap"] == pytest.approx(0.7)
    assert loose["box_ap75"] == pytest.approx(1.0)


def test_the_best_threshold_takes_equal_scores_together_and_counts_every_mistake():
    a, b, nothing = [0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]
    # Of class 1 there is no truth: no average precision sees it, who cuts at 0.9 does.
    found = detections([a, nothing, b, nothing], [0.9, 0.9, 0.4, 0.4], [0, 1, 0, 0])
    figures = compute_metric([(found, objects([a, b]))], 2).compute()
    assert figures["box_ap50_per_class"] == [pytest.approx(1.0), None]
    # At 0.9: 2*1/(2+2) = 1/2; at 0.4: 2*2/(4+2) = 2/3.
    assert (figures["best_threshold"], figures["best_f1"]) == (0.4, pytest.approx(2 / 3))


def test_a_crowd_is_neither_right_nor_wrong():
    a, crowd = [0, 0, 10, 10], [20, 20, 90, 90]
    inside = [[30, 30, 40, 40], [50, 50, 60, 60]]
    found = detections([*inside, a], [0.9, 0.8, 0.7])
    truth = objects([a, crowd], crowd=[False, True])
    figures = compute_metric([(found, truth)]).compute()
    assert figures["box_ap"] == pytest.approx(1.0)
    assert figures["best_f1"] == 1.0
    alone = compute_metric([(found, objects([crowd], crowd=[True]))]).compute()
    assert alone["box_ap"] is alone["best_f1"] is alone["best_threshold"] is None


def test_images_without_objects_or_detections():
    a = [0, 0, 10, 10]
    right, none = (detections([a], [0.5]), objects([a])), objects([])
    wrong = (detections([a], [0.6]), none)
    assert compute_metric([right]).compute()["box_ap"] == pytest.approx(1.0)
    assert compute_metric([right, wrong]).compute()["box_ap"] == pytest.approx(0.5)
    missed = (detections([], []), objects([a]))
    half = compute_metric([right, missed]).compute()
    assert half["box_ap"] == pytest.approx(51 / 101)
    assert half["box_ar"] == 0.5


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("images", [0, 1])
def test_nothing(masks, images):
    metric = compute_metric([(detections([], []), objects([]))] * images, 2, masks=masks)
    figures = metric.compute()
    assert figures.pop("num_images") == images
    assert figures.pop("max_detections") == 100
    for name, value in figures.items():
        assert value == ([None, None] if name.endswith("per_class") else None), name
    curves = metric.curves()
    assert curves.precision.shape == (2, 101)
    assert np.isnan(curves.mean).all()


def test_false_alarms_are_what_is_found_where_nothing_is():
    box = [10, 10, 20, 20]
    metric = DetectionMetric(("a",), masks=False)
    found = [detections([box] * n, [0.9, 0.5, 0.3][:n], [0] * n) for n in (3, 1, 0, 2)]
    truth = [objects([]), objects([]), objects([]), objects([box], [0])]
    metric.update(found, truth)
    counts = [tuple(metric.false_alarms(at).values()) for at in (0.5, 0.95, 0.0)]
    assert counts == [(3, 2, 3, 0.5), (3, 0, 0, 0.95), (3, 2, 4, 0.0)]


def test_nothing_found():
    figures = compute_metric([(detections([], []), objects([[0, 0, 5, 5]]))]).compute()
    assert (figures["box_ap"], figures["best_f1"], figures["best_threshold"]) == (0.0, 0.0, None)
    far = compute_metric([(detections([[9, 9, 12, 12]], [0.9]), objects([[0, 0, 5, 5]]))]).compute()
    assert (far["box_ap"], far["best_f1"], far["best_threshold"]) == (0.0, 0.0, None)


def test_more_objects_than_coco_counts():
    corners = np.stack(np.meshgrid(np.arange(15), np.arange(10)), axis=-1).reshape(-1, 2) * 12.0
    boxes = np.c_[corners, corners + 10]
    found = detections(boxes, np.linspace(0.9, 0.1, 150))
    figures = compute_metric([(found, objects(boxes))]).compute()
    assert figures["max_detections"] == 150
    assert figures["box_ap"] == figures["box_ar"] == pytest.approx(1.0)
    assert figures["box_ar10"] == pytest.approx(10 / 150)


def test_an_object_without_a_mask_is_a_crowd_in_its_box():
    a, b = [0, 0, 10, 10], [40, 40, 60, 60]
    square = encode_mask(np.ones((10, 10), bool), size=(200, 200))
    inside = encode_mask(np.ones((10, 10), bool), size=(200, 200), top=45, left=45)
    polygon = [[0, 0, 10, 0, 10, 10, 0, 10]]
    found = detections([b, a], [0.9, 0.8], masks=(inside, square))
    for missing in (None, []):
        truth = objects([a, b], masks=(polygon, missing))
        figures = compute_metric([(found, truth)], masks=True).compute()
        assert figures["mask_ap"] == pytest.approx(1.0)
        assert figures["box_ap"] == pytest.approx(1.0)
    figures = compute_metric([(found, objects([a, b]))], masks=True).compute()
    assert figures["mask_ap"] is None
    assert figures["box_ap"] == pytest.approx(1.0)


def test_the_area_of_a_found_mask_is_not_that_of_its_box():
    # Two edges of a large image: large as a box, small as a mask, so no mistake among the large.
    edges = np.zeros((200, 200), bool)
    edges[0, :] = edges[:, 0] = True
    square = [[100, 100, 200, 100, 200, 200, 100, 200]]
    masks = (encode_mask(edges), to_run_lengths(square, (200, 200)))
    found = detections([[0, 0, 200, 200], [100, 100, 200, 200]], [0.9, 0.5], masks=masks)
    truth = objects([[100, 100, 200, 200]], masks=(square,))
    assert mask_area(masks[0]) == 399
    figures = compute_metric([(found, truth)], masks=True).compute()
    assert figures["mask_ap_large"] == pytest.approx(1.0)
    assert figures["box_ap_large"] == figures["mask_ap"] == pytest.approx(0.5)


def test_numbers_that_are_none_are_left_out():
    a = [0, 0, 10, 10]
    for box, score in ([np.nan, 0, 10, 10], 0.9), ([0, 0, np.inf, 10], 0.9), (a, np.nan):
        figures = compute_metric([(detections([box, a], [score, 0.5]), objects([a]))]).compute()
        assert figures["box_ap"] == pytest.approx(1.0)
        assert figures["best_threshold"] == 0.5
    astray = compute_metric([(detections([a], [np.nan]), objects([a]))]).compute()
    assert (astray["box_ap"], astray["best_f1"], astray["best_threshold"]) == (0.0, 0.0, None)


def test_processes_can_pass_it_on(capsys):
    _, pairs = generated(2, num_images=3)
    metric = compute_metric(pairs, 4, masks=True)
    fresh = ForkingPickler.loads(ForkingPickler.dumps(metric))
    figures = metric.compute()
    again = ForkingPickler.loads(ForkingPickler.dumps(metric))
    assert fresh.compute() == again.compute() == figures
    assert json.loads(json.dumps(figures)) == figures
    assert capsys.readouterr().out == ""


def test_what_is_refused():
    metric = compute_metric([], 2)
    with pytest.raises(ShapeError, match=r"found and truth.*1 and 0"):
        metric.update([detections([], [])], [])
    found = detections([[0, 0, 1, 1]], [0.5], [2], path="a.png")
    with pytest.raises(DataError, match=r"class_ids .*0 to 1.*\b2\b.*a\.png"):
        metric.update([found], [objects([])])
    with pytest.raises(DataError, match="-1"):
        metric.update([detections([], [])], [objects([[0, 0, 1, 1]], [-1])])
    with pytest.raises(ConfigError, match=r'kind .*"box"'):
        metric.curves("mask")
    with pytest.raises(DataError, match=r"found .*masks.*a\.png"):
        compute_metric([(found, objects([]))], 3, masks=True)
    assert metric.num_images == 0


def test_hundreds_of_masks_in_one_image():
    size, count = (64, 64), 300
    masks = tuple(
        encode_mask(np.ones((2, 2), bool), size=size, top=3 * (i // 20), left=3 * (i % 20))
        for i in range(count)
    )
    boxes = np.array(
        [[3 * (i % 20), 3 * (i // 20), 3 * (i % 20) + 2, 3 * (i // 20) + 2] for i in range(count)]
    )
    found = Detections(
        path="a.png",
        size=size,
        boxes=boxes.astype(np.float64),
        class_ids=np.zeros(count, np.int64),
        scores=np.linspace(1, 0.5, count),
        class_names=("a",) * count,
        masks=masks,
    )
    truth = Objects(
        boxes=boxes.astype(np.float64),
        class_ids=np.zeros(count, np.int64),
        crowd=np.zeros(count, bool),
        areas=np.full(count, 4.0),
        masks=masks,
    )
    metric = DetectionMetric(("a",), masks=True)
    metric.update([found], [truth])
    figures = metric.compute()
    assert figures["max_detections"] == count
    assert figures["mask_ap"] == pytest.approx(1.0)


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_found_in_a_region_of_unknown_class_is_no_mistake(masks):
    boxes = [[0, 0, 40, 40], [100, 100, 180, 160]]
    drawn = [[0, 0, 40, 0, 40, 40, 0, 40]]
    second = objects(boxes[:1], [1], masks=(drawn,) if masks else ())
    truth = objects(boxes, [0, -1], crowd=[False, True], masks=(drawn, None) if masks else ())
    places = [boxes[0], boxes[1], boxes[1], [60, 0, 90, 30]]
    found = []
    for box in places:
        bitmap = np.zeros((200, 200), bool)
        bitmap[box[1] : box[3], box[0] : box[2]] = True
        found.append(encode_mask(bitmap))
    rows = detections(places, [0.5, 0.9, 0.8, 0.7], [0, 0, 1, 1], masks=tuple(found))
    other = detections(places[:1], [0.6], [1], masks=tuple(found[:1]))
    figures = compute_metric([(rows, truth), (other, second)], 2, masks=masks).compute()
    kind = "mask" if masks else "box"
    # Of class 1, only what is found in no region, at 0.7, goes before the object at 0.6.
    assert figures[f"{kind}_ap_per_class"] == pytest.approx([1.0, 0.5])
