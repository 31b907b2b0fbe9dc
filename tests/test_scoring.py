# SPDX-License-Identifier: Apache-2.0
"""Figures of a run: the same at any batch size, right against plain numpy, drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import muntin
from muntin.data.cache import ImageCache
from muntin.data.data_config import DataConfig
from muntin.data.detection import list_detect
from muntin.data.pose import list_pose
from muntin.data.transforms import Preprocessing
from muntin.drawing.pose_drawing import annotated_poses
from muntin.drawing.style import colour_of
from muntin.errors import DataError, MuntinWarning
from muntin.metrics.detection_metric import DetectionMetric
from muntin.metrics.pose_metric import PoseInstance, PoseMetric
from muntin.results import Detections
from muntin.runs import Run
from muntin.samples import Classes
from muntin.scoring.evaluation import pick_part
from muntin.scoring.evaluation_plots import draw_evaluation
from muntin.scoring.evaluator import Outputs, Scored, score
from muntin.synthetic.datasets import write_coco
from tests.small import CLASSES, image, train_small, write_images

pytestmark = pytest.mark.filterwarnings("ignore:the run was trained on")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("data") / "trees", each=11)
    # Wrong on purpose, so that there are mistakes.
    for number in range(4):
        image(2, 50 + number).save(folder / "ash" / f"wrong{number}.png")
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_small(data, tmp_path_factory.mktemp("runs") / "trees", epochs=4).path


def test_metrics_equal_numpy(run, data):
    figures = muntin.evaluate(run, data)
    paths = sorted(data.rglob("*.png"))
    truth = np.array([CLASSES.index(path.parent.name) for path in paths])
    results = muntin.load(run)(paths)
    predicted = np.array([result.class_ids[0] for result in results])
    assert figures["num_images"] == len(paths) == 37
    assert figures["top1"] == pytest.approx((predicted == truth).mean())
    assert figures["top5"] == 1.0
    for class_id in range(3):
        hits = ((predicted == class_id) & (truth == class_id)).sum()
        assert figures["recall"][class_id] == pytest.approx(hits / (truth == class_id).sum())
        if (predicted == class_id).any():
            expected = hits / (predicted == class_id).sum()
            assert figures["precision"][class_id] == pytest.approx(expected)
    right = [r.scores[list(r.class_ids).index(t)] for r, t in zip(results, truth, strict=True)]
    assert figures["loss"] == pytest.approx(-np.log(right).mean(), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_metrics_do_not_depend_on_the_batch_size(run, data, batch_size):
    one, other = (
        muntin.evaluate(run, data, batch_size=size, pictures=False) for size in (batch_size, 64)
    )
    assert one.pop("loss") == pytest.approx(other.pop("loss"), rel=1e-5)
    assert one == other


def test_images(run, data):
    muntin.evaluate(run, data)
    folder = run / "pictures" / "eval"
    for name in ("confusion", "per_class", "worst_mistakes"):
        with Image.open(folder / f"{name}.png") as opened:
            assert min(opened.size) > 100
    assert not list(folder.glob("*.partial"))


def test_classes_that_do_not_occur(run, tmp_path):
    data = write_images(tmp_path / "some", each=2, classes=CLASSES[:2])
    figures = muntin.evaluate(run, data)
    assert figures["num_images"] == 4
    assert figures["recall"][2] is None
    assert figures["recall"][0] is not None


def test_other_classes_are_an_error(run, tmp_path):
    data = write_images(tmp_path / "other", each=2, classes=("ash", "oak"))
    with pytest.raises(DataError, match=r"3.*oak"):
        muntin.evaluate(run, data)


def test_the_test_part_is_taken_first(run, tmp_path):
    for part, each in (("train", 1), ("val", 2), ("test", 3)):
        write_images(tmp_path / "parts" / part, each=each)
    assert muntin.evaluate(run, tmp_path / "parts", pictures=False)["num_images"] == 9


@pytest.mark.filterwarnings("ignore:.*cannot be read:UserWarning")
def test_unreadable_images_are_not_counted(run, tmp_path):
    data = write_images(tmp_path / "trees", each=3)
    before = muntin.evaluate(run, data, batch_size=2, pictures=False)
    (data / "ash" / "zero.png").write_bytes(b"")
    (data / "birch" / "cut.png").write_bytes((data / "birch" / "0.png").read_bytes()[:99])
    after = muntin.evaluate(run, data, batch_size=2, pictures=False)
    # The batches are cut elsewhere now, which may change the last bit of the loss.
    assert after.pop("loss") == pytest.approx(before.pop("loss"), rel=1e-5)
    assert after == before


def test_scoring_needs_no_gradients(run, data):
    opened = Run.open(run)
    parts = opened.task.list_data(data, opened.classes, DataConfig())
    listing = pick_part(parts, opened.task, data, opened.classes)
    store = ImageCache(listing, opened.preprocessing, DataConfig())
    scored = score(muntin.load(opened), store)
    assert scored.outputs.answers.shape == (37, 3)
    assert torch.is_grad_enabled()


def test_evaluation_on_training_images_warns(run, data):
    with pytest.warns(MuntinWarning, match=r"\d+ of .*\d+ "):
        muntin.evaluate(run, data, pictures=False)


def test_objects_are_drawn_from_the_threshold_of_the_run(tmp_path):
    """The best one for these figures would be another, as the set is another."""
    listing = list_detect(write_coco(tmp_path / "set", num_train=1, num_val=1)).train
    entry = listing.entries[0]
    pre = Preprocessing(img_size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3)
    store = ImageCache(listing, pre, DataConfig(cache_mib=0))
    boxes = entry.objects.boxes[:1].astype(float) + np.arange(4)[:, None]
    found = Detections(
        path=entry.path, size=entry.size, boxes=boxes, scores=np.array([0.9, 0.7, 0.5, 0.3]),
        class_ids=np.repeat(entry.objects.class_ids[:1], 4), class_names=("a",) * 4,
    )  # fmt: skip
    drawn = {}
    for threshold in (None, 0.6, 0.3):
        metric = DetectionMetric(listing.class_names, masks=False)
        metric.update([found], [entry.objects])
        outputs = Outputs(
            answers=[found], truth=[entry.objects], losses=torch.empty(0), indices=torch.arange(1)
        )
        scored = Scored(
            figures=metric.compute(), metric=metric, outputs=outputs, listing=listing,
            threshold=threshold,
        )  # fmt: skip
        assert scored.figures["best_threshold"] == 0.9
        folder = tmp_path / str(threshold)
        draw_evaluation(scored, store, Classes(names=listing.class_names), folder)
        sheet = np.asarray(Image.open(folder / "worst.png").convert("RGB"))[:, 400:]
        drawn[threshold] = [
            (sheet == colour_of(number + len(entry.objects))).all(axis=2).sum() > 50
            for number in range(1, 4)
        ]
    assert drawn == {
        None: [False, False, False], 0.6: [True, False, False], 0.3: [True, True, True],
    }  # fmt: skip


def test_only_instances_above_the_threshold_are_drawn(tmp_path):
    """Average precision takes hundreds of unsure poses; nobody wants to see them."""
    listing = list_pose(write_coco(tmp_path / "set", num_train=2, num_val=1), whole=True).train
    skeleton, entry = listing.skeleton, listing.entries[0]
    truth = PoseInstance(path=entry.path, size=entry.size, objects=entry.objects, row=-1)
    sure = annotated_poses(entry.objects, [0], skeleton)
    found = replace(
        sure,
        keypoints=np.concatenate([np.add(sure.keypoints, [3 * n, 3 * n, 0]) for n in range(9)]),
        scores=np.linspace(0.9, 0.1, 9),
        boxes=np.tile(entry.objects.boxes[:1], (9, 1)) + 3 * np.arange(9)[:, None],
        box_scores=np.linspace(0.9, 0.1, 9),
    )
    pre = Preprocessing(img_size=(64, 64), mean=(0.0,) * 3, std=(1.0,) * 3, fit="instance_crop")
    store = ImageCache(listing, pre, DataConfig(cache_mib=0))
    drawn = []
    for name, answer in (("all", found), ("above", found.above(0.85))):
        metric = PoseMetric(skeleton, score_threshold=0.85)
        metric.update([answer], [truth])
        none = torch.empty(0)
        outputs = Outputs(answers=[answer], truth=[truth], losses=none, indices=torch.arange(1))
        scored = Scored(figures=metric.compute(), metric=metric, outputs=outputs, listing=listing)
        draw_evaluation(scored, store, Classes(names=("a",), skeleton=skeleton), tmp_path / name)
        drawn.append((tmp_path / name / "best.png").read_bytes())
    assert drawn[0] == drawn[1]
