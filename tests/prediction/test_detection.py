# SPDX-License-Identifier: Apache-2.0
"""Detectors at work: any image, any size, tiles, mirrored, other selections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import muntin
from muntin.data.data_config import DataConfig
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError
from muntin.prediction.predictor import Predictor
from muntin.results import Detections
from muntin.run_lengths import decode_mask
from muntin.samples import Classes
from muntin.synthetic.datasets import write_coco
from muntin.synthetic.scenes import make_scene
from muntin.tasks.task_table import find_task
from tests.detectors import tiny_detector, train_detector

ROOT = Path(__file__).resolve().parents[2]
NAMES = tuple("abcdef")
PRE = Preprocessing(
    img_size=(64, 96), mean=(0.5,) * 3, std=(0.25,) * 3, fit="letterbox",
    interpolation="bilinear", typical_size=(64, 96),
)  # fmt: skip


def predictor_of(head="mask_rcnn_small", **more) -> Predictor:
    task = "detect" if head.startswith("fcos") else "instance"
    network = tiny_detector(head, len(NAMES), task=task, threshold=0.0)
    return Predictor(network, find_task(task), Classes(names=NAMES), PRE, device="cpu", **more)


@pytest.fixture(scope="module")
def predictor():
    return predictor_of()


def scene(index=0, size=(64, 96)):
    return make_scene(3, index, size=size, max_objects=4).image


def test_a_threshold_is_a_score():
    predictor = predictor_of()
    predictor.threshold = 1
    with pytest.raises(ConfigError, match=r"threshold .* got 1\.5"):
        predictor.threshold = 1.5
    assert predictor.threshold == 1


@pytest.mark.parametrize("size", [(64, 96), (33, 57), (301, 77), (20, 400), (16, 16), (200, 300)])
def test_results_are_in_pixels_of_the_original(predictor, size):
    (result,) = predictor(scene(size=size))
    assert isinstance(result, Detections)
    assert result.size == size
    assert len(result) > 0
    assert (result.boxes >= 0).all()
    assert (result.boxes <= np.array([size[1], size[0]] * 2)).all()
    assert result.boxes.max() > 0.5 * max(size)
    for mask, box in zip(result.masks, result.boxes, strict=True):
        assert mask["size"] == list(size)
        rows, columns = np.where(decode_mask(mask))
        if len(rows):
            assert columns.min() >= np.floor(box[0])
            assert rows.min() >= np.floor(box[1])
            assert columns.max() < np.ceil(box[2])
            assert rows.max() < np.ceil(box[3])


def test_every_kind_of_image(predictor, tmp_path):
    image = Image.fromarray(scene())
    path = tmp_path / "a.png"
    image.save(path)
    results = predictor([str(path), path, image, np.asarray(image)])
    for result in results[1:]:
        np.testing.assert_allclose(result.boxes, results[0].boxes, atol=1e-3)
    assert [result.path for result in results] == [str(path), str(path), "", ""]
    image.convert("L").save(tmp_path / "grey.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    grey, alpha = predictor([tmp_path / "grey.png", tmp_path / "alpha.png"])
    assert grey.size == alpha.size == (64, 96)
    np.testing.assert_allclose(alpha.boxes, results[0].boxes, atol=1e-3)
    assert predictor([]) == []


def same(left, right, atol=0.05):
    assert left.size == right.size
    assert len(left) == len(right) > 0
    np.testing.assert_allclose(left.scores, right.scores, atol=1e-5)
    np.testing.assert_allclose(np.sort(left.boxes, 0), np.sort(right.boxes, 0), atol=atol)


@pytest.mark.parametrize("head", ["mask_rcnn_small", "fcos_small"])
def test_results_do_not_depend_on_the_batch(head):
    sizes = [(64, 96), (96, 64), (50, 50), (33, 200), (64, 96), (80, 90), (90, 80)]
    images = [scene(number, size) for number, size in enumerate(sizes)]
    results = predictor_of(head)(images)
    alone = predictor_of(head, batch_size=1)(images)
    turned = predictor_of(head, batch_size=3)(images[::-1])[::-1]
    for one, other, third in zip(results, alone, turned, strict=True):
        same(one, other)
        same(one, third)


def test_prediction_is_what_evaluation_sees(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=4, size=(50, 75))
    run = train_detector("instance", data, tmp_path / "run", epochs=1).path
    figures = muntin.evaluate(run, data, pictures=False)
    listing = find_task("instance").list_data(data, None, DataConfig()).val
    results = muntin.load(run)([data / entry.path for entry in listing.entries])
    metric = find_task("instance").metric(Classes(names=listing.class_names))
    metric.update(results, [entry.objects for entry in listing.entries])
    again = metric.compute()
    for name in ("box_ap", "box_ap50", "mask_ap", "box_ar"):
        assert again[name] == pytest.approx(figures[name], abs=1e-3)


def test_json_is_that_of_the_interface(predictor):
    (result,) = predictor(scene())
    values = json.loads(json.dumps(result.to_dict()))
    assert list(values) == ["path", "size", "threshold", "boxes"]
    assert values["size"] == [64, 96]
    assert len(values["boxes"]) == len(result)
    for row in values["boxes"]:
        assert list(row) == ["xyxy", "name", "id", "score", "mask"]
        assert len(row["xyxy"]) == 4
        assert row["name"] == NAMES[row["id"]]
        assert row["mask"]["size"] == [64, 96]
        assert isinstance(row["mask"]["counts"], str)
    again = Detections.from_dict(values)
    np.testing.assert_allclose(again.boxes, result.boxes, atol=1e-3)
    (boxes,) = predictor_of("fcos_small")(scene())
    assert list(boxes.to_dict()["boxes"][0]) == ["xyxy", "name", "id", "score"]


def test_the_mirrored_image_gives_the_mirrored_result(predictor):
    image = scene(2)
    (one,) = predictor(image, tta=True)
    (other,) = predictor(np.ascontiguousarray(image[:, ::-1]), tta=True)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    width = image.shape[1]
    mirrored = np.stack(
        [
            width - other.boxes[:, 2],
            other.boxes[:, 1],
            width - other.boxes[:, 0],
            other.boxes[:, 3],
        ],
        1,
    )
    np.testing.assert_allclose(np.sort(one.boxes, 0), np.sort(mirrored, 0), atol=0.05)


def test_tiles_of_a_small_image_change_nothing(predictor):
    for tile in (256, "auto", 96):
        same(predictor(scene(), tile=tile)[0], predictor(scene())[0])


def test_tiles_are_for_tasks_that_find(predictor, tmp_path):
    with pytest.raises(ConfigError, match=r"tile.*8"):
        predictor(scene(size=(300, 300)), tile=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A detector that knows a few scenes by heart."""
    root = tmp_path_factory.mktemp("run")
    data = write_coco(root / "shapes", num_train=4, num_val=0, size=(64, 64), max_objects=2, seed=4)
    trained = train_detector(
        "detect", data, root / "run", epochs=150, val=data,
        settings={
            "augment.scale": "0.8,1.2", "augment.jitter": 0, "train.learning_rate": 2e-3,
            "train.ema_decay": 0.9,
        },
    )  # fmt: skip
    assert trained.metrics["box_ap50"] > 0.8
    return trained.path, data


@pytest.mark.slow
def test_tiles_find_the_objects_of_each_part(run):
    path, data = run
    listing = find_task("detect").list_data(data, None, DataConfig()).train
    predictor = muntin.load(path)
    overlaps, alones = [], []
    for entry in listing.entries:
        image = np.asarray(Image.open(data / entry.path).convert("RGB"))
        truth = entry.objects.boxes
        (alone,) = predictor(image)
        alones += [iou_of(box, alone.above(0.3).boxes).max(initial=0) for box in truth]
        four = np.tile(image, (2, 2, 1))
        (result,) = predictor(four, tile=64)
        sure = result.above(0.3)
        for top in (0, 64):
            for left in (0, 64):
                for box in truth + np.array([left, top] * 2):
                    overlaps.append(iou_of(box, sure.boxes).max(initial=0))
        (auto,) = predictor(four, tile="auto")
        np.testing.assert_allclose(auto.boxes, result.boxes)
    # At half the scale, and cut through, it has never seen an object and is sometimes wrong.
    assert np.mean(np.array(alones) > 0.5) >= 0.8
    assert np.mean(np.array(overlaps) > 0.5) >= 0.8


def iou_of(box, boxes):
    upper, lower = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inside = np.clip(lower - upper, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return inside / (areas + (box[2:] - box[:2]).prod() - inside)


def test_other_selections(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 64))
    path = train_detector(
        "instance", data, tmp_path / "run", epochs=1,
        settings={"head.select.score_threshold": 0.0},
    ).path  # fmt: skip
    image = scene(size=(64, 64))
    plain = muntin.load(path)(image)[0]
    assert len(plain) <= 100
    many = muntin.load(path, select={"max_detections": 1000})(image)[0]
    assert len(many) > len(plain)
    few = muntin.load(path, select={"max_detections": 3})(image)[0]
    np.testing.assert_allclose(few.boxes, plain.boxes[:3], atol=1e-4)
    soft = muntin.load(path, select={"suppression": "soft", "max_detections": 1000})(image)[0]
    assert len(soft) >= len(many)
    assert (np.diff(soft.scores) <= 1e-6).all()
    agnostic = muntin.load(path, select={"class_agnostic": True, "max_detections": 1000})(image)[0]
    assert len(agnostic) < len(many)
    sure = muntin.load(path, select={"score_threshold": 0.99})(image)[0]
    assert len(sure) == 0
    assert sure.masks == ()
    assert sure.to_dict()["boxes"] == []
    with pytest.raises(ConfigError, match=r"'supression'.*'suppression'"):
        muntin.load(path, select={"supression": "soft"})
    with pytest.raises(ConfigError, match=r"select\.iou.*3"):
        muntin.load(path, select={"iou": 3})
    muntin.draw(image, plain)


MEMORY = """
import numpy as np
import torch
from tests.prediction.test_detection import predictor_of

if __name__ == "__main__":
    torch.set_num_threads(1)
    image = np.random.default_rng(0).integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
    (result,) = predictor_of()(image, tile=256)
    # Of this program alone: ru_maxrss begins with what the process that started it had.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(len(result), int(status["VmHWM"].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_of_a_large_image_in_tiles(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(MEMORY)
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": paths, "MUNTIN_NO_HOOK": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    count, mib = map(int, done.stdout.split())
    assert 0 < count <= 20 * 21 * 16, "20 a tile, with the overlap 21 x 16 tiles at most"
    assert mib < 2048
