# SPDX-License-Identifier: Apache-2.0
"""OKS figures against pycocotools used the usual way, through files; distances by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from muntin.data.skeletons import COCO_PERSON
from muntin.metrics.pose_metric import PoseInstance, PoseMetric
from muntin.ops.keypoints import estimate_area, similarity, suppress_poses
from muntin.results import Poses
from muntin.samples import Objects, Skeleton

TWO = Skeleton(names=("a", "b"), sigmas=(0.05, 0.05))


def poses(keypoints, scores, skeleton=TWO, path="1.png", boxes=None):
    return Poses(
        path=path,
        size=(200, 200),
        keypoints=np.array(keypoints, np.float64).reshape(-1, len(skeleton.names), 3),
        scores=np.array(scores, np.float64),
        keypoint_names=skeleton.names,
        boxes=boxes,
    )


def truth(keypoints, boxes, *, areas=None, crowd=None, path="1.png", row=-1):
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    count = len(boxes)
    keypoints = np.array(keypoints, np.float64)
    objects = Objects(
        boxes=boxes,
        class_ids=np.zeros(count, np.int64),
        crowd=np.zeros(count, bool) if crowd is None else np.array(crowd),
        areas=np.zeros(count) if areas is None else np.array(areas, np.float64),
        keypoints=keypoints.reshape(count, -1, 3) if count else keypoints,
    )
    return PoseInstance(path=path, size=(200, 200), objects=objects, row=row)


def through_files(folder, subjects, answers):
    images, annotations, results = [], [], []
    for number, (there, said) in enumerate(zip(subjects, answers, strict=True), 1):
        images.append({"id": number, "height": 200, "width": 200, "file_name": there.path})
        for row in range(len(there.objects)):
            left, top, right, bottom = there.objects.boxes[row]
            points = there.objects.keypoints[row]
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": there.objects.areas[row], "iscrowd": int(there.objects.crowd[row]),
                "keypoints": points.ravel().tolist(),
                "num_keypoints": int((points[:, 2] > 0).sum()),
            })  # fmt: skip
        for points, score in zip(said.keypoints, said.scores, strict=True):
            results.append({
                "image_id": number, "category_id": 1, "keypoints": points.ravel().tolist(),
                "score": score,
            })  # fmt: skip
    categories = [{"id": 1, "name": "person"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "truth.json").write_text(json.dumps(data))
    (folder / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        there = COCO(folder / "truth.json")
        evaluation = COCOeval(there, there.loadRes(str(folder / "found.json")), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


@pytest.mark.parity
def test_equal_to_pycocotools(tmp_path):
    rng = np.random.default_rng(0)
    subjects, answers = [], []
    for number in range(12):
        count = int(rng.integers(0, 5))
        low, high = rng.uniform(0, 100, (count, 2)), rng.uniform(120, 200, (count, 2))
        boxes = np.concatenate([low, high], 1)
        points = np.concatenate(
            [rng.uniform(0, 200, (count, 17, 2)), rng.integers(0, 3, (count, 17, 1))], 2
        )
        points[points[:, :, 2] == 0] = 0
        crowd = rng.random(count) < 0.2
        points[crowd] = 0
        there = truth(
            points, boxes, areas=rng.uniform(2000, 20000, count), crowd=crowd, path=f"{number}.png"
        )
        found = points + rng.normal(0, 12, points.shape)
        extra = rng.uniform(0, 200, (int(rng.integers(0, 3)), 17, 3))
        every = np.concatenate([found, extra])
        subjects.append(there)
        answers.append(poses(every, rng.random(len(every)), COCO_PERSON, f"{number}.png"))
    metric = PoseMetric(COCO_PERSON)
    metric.update(answers, subjects)
    figures = metric.compute()
    stats = through_files(tmp_path, subjects, answers)
    # COCO counts the 20 best of an image, here there are fewer.
    assert figures["oks_ap"] == pytest.approx(stats[0], abs=1e-9)
    assert figures["oks_ap50"] == pytest.approx(stats[1], abs=1e-9)
    assert figures["oks_ap75"] == pytest.approx(stats[2], abs=1e-9)
    assert figures["oks_ar"] == pytest.approx(stats[5], abs=1e-9)
    assert figures["num_images"] == 12
    assert figures["oks_area"] == "as annotated"


def test_distances_by_hand():
    there = truth([[10, 10, 2], [50, 50, 0], [20, 20, 1], [60, 60, 2]], [[0, 0, 30, 40]] * 2)
    metric = PoseMetric(TWO)
    for row, found in ((0, [[10, 13, 1], [0, 0, 1]]), (1, [[20, 20, 1], [100, 60, 1]])):
        subject = PoseInstance(path="1.png", size=(200, 200), objects=there.objects, row=row)
        metric.update([poses(found, [1.0])], [subject])
    figures = metric.compute()
    assert figures["mean_pixel_error"] == pytest.approx((3 + 0 + 40) / 3)
    assert figures["median_pixel_error"] == 3
    assert figures["mean_pixel_error_per_keypoint"] == [1.5, 40]
    assert figures["pck"] == pytest.approx(1 / 3), "3 px are 6 % of a diagonal of 50"
    assert figures["pck_at"] == {
        "0.01": pytest.approx(1 / 3), "0.02": pytest.approx(1 / 3), "0.05": pytest.approx(1 / 3),
        "0.1": pytest.approx(2 / 3), "0.2": pytest.approx(2 / 3),
    }  # fmt: skip
    assert figures["num_subjects"] == 2
    assert figures["num_images"] == 1
    assert "0.53" in figures["oks_area"]
    assert metric.owners == [0, 1]


def test_a_detector_that_misses_and_invents():
    points = [[10, 10, 2], [30, 30, 2], [110, 110, 2], [130, 130, 2]]
    there = truth(points, [[0, 0, 40, 40], [100, 100, 140, 140]], areas=[1600, 1600])
    metric = PoseMetric(TWO)
    found = [[10, 11, 1], [30, 31, 1], [180, 20, 1], [190, 30, 1]]
    metric.update([poses(found, [0.9, 0.8])], [there])
    empty = truth(np.zeros((0, 2, 3)), [], path="2.png")
    metric.update([poses([[5, 5, 1], [9, 9, 1]], [0.95], path="2.png")], [empty])
    figures = metric.compute()
    assert figures["pck"] == 0.5, "the keypoints of a subject that was not found are missed"
    assert figures["mean_pixel_error"] == 1
    assert figures["num_images"] == 2
    assert 0 < figures["oks_ap"] < 0.5, "what is found in an empty image lowers precision"


def test_unsure_poses_count_in_average_precision_alone():
    points = [[10, 10, 2], [30, 30, 2], [110, 110, 2], [130, 130, 2]]
    there = truth(points, [[0, 0, 40, 40], [100, 100, 140, 140]], areas=[1600, 1600])
    # The second subject is found by an unsure box alone; so is the first, a second time and better.
    found = poses(
        [[11, 10, 1], [31, 30, 1], [110, 110, 1], [130, 130, 1], [10, 10, 1], [30, 30, 1]],
        [0.5, 0.4, 0.3],
    )
    found = dataclasses.replace(found, box_scores=np.array([0.9, 0.6, 0.5]))
    told, every = PoseMetric(TWO, score_threshold=0.7), PoseMetric(TWO)
    for metric in (told, every):
        metric.update([found], [there])
    figures, others = told.compute(), every.compute()
    assert figures["oks_ap"] == others["oks_ap"] > 0.9
    assert (figures["num_subjects"], figures["num_found"], figures["threshold"]) == (2, 1, 0.7)
    assert figures["pck"] == 0.5, "1 px of a diagonal of 56.6 is near; one subject is missed"
    assert figures["mean_pixel_error"] == 1, "the surer pose has the subject, not the nearer one"
    assert others["num_found"] == 2
    assert others["mean_pixel_error"] == 0.5
    assert "threshold" not in others


def test_without_truth():
    figures = PoseMetric(TWO).compute()
    assert figures["oks_ap"] is figures["pck"] is figures["mean_pixel_error"] is None
    metric = PoseMetric(TWO)
    metric.update([poses(np.zeros((0, 2, 3)), [])], [truth([[1, 1, 2], [2, 2, 2]], [[0, 0, 9, 9]])])
    figures = metric.compute()
    assert figures["oks_ap"] == 0
    assert figures["pck"] == 0
    assert figures["mean_pixel_error"] is None


def test_areas_without_annotation():
    points = np.array([[0.0, 0.0], [10.0, 20.0]])
    assert estimate_area(points, np.array([0.0, 0.0, 10.0, 10.0]), 100) == pytest.approx(53)
    assert estimate_area(points, None, 100) == pytest.approx(0.53 * 200)
    assert estimate_area(points[:1], None, 100) == pytest.approx(0.53 * 25), "never 0"
    assert estimate_area(points[:0], None, 100) > 0


def test_similarity_and_suppression():
    sigmas = np.array([0.05, 0.05])
    first = np.array([[0.0, 0.0], [10.0, 10.0]])
    assert similarity(first, first, 100, sigmas) == pytest.approx(1)
    assert similarity(first, first + np.nan, 100, sigmas) == 0
    moved = first + np.array([1.0, 0.0])
    assert similarity(first, moved, 100, sigmas) == pytest.approx(np.exp(-1 / (0.1**2) / 100 / 2))
    far = first + 50
    points = np.stack([first, first + 0.01, far])
    kept = suppress_poses(points, np.array([0.5, 0.9, 0.1]), np.full(3, 100.0), sigmas)
    assert kept.tolist() == [1, 2]
