# SPDX-License-Identifier: Apache-2.0
"""The command line for detection: end to end, JSON, and one line per error."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from muntin.errors import MuntinWarning
from muntin.prediction.from_run import find_threshold, load
from muntin.prediction.predictor import draw
from muntin.prediction.tiling import needs_tiles
from muntin.results import Detections
from muntin.runs import Run
from muntin.scoring.evaluation import evaluate
from muntin.synthetic.datasets import write_coco
from tests.commands.cli_errors import fails_with
from tests.detectors import BODY, BODY_SETTINGS, empty_images, head_settings, train_detector


def options(head):
    settings = {**BODY_SETTINGS, **head_settings(head), "head.select.max_detections": 20}
    return [
        *(f"--set={name}={value}" for name, value in settings.items()), "--model", BODY,
        "--head", head, "--weights=none", "--img-size=64", "--batch-size=4", "--precision=fp32",
        "--device=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(
        tmp_path_factory.mktemp("data") / "shapes", num_train=4, num_val=2, size=(48, 64)
    )


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train_detector(
        "instance", data, tmp_path_factory.mktemp("runs") / "shapes", epochs=1,
        settings={"head.select.score_threshold": 0.0},
    ).path  # fmt: skip


@pytest.mark.parametrize(
    ("task", "head"),
    [
        pytest.param("detect", "fcos_small", marks=pytest.mark.slow),
        ("instance", "mask_rcnn_small"),
    ],
)
def test_end_to_end(muntin, data, tmp_path, task, head):
    code, stdout, _ = muntin("check", task, data)
    assert code == 0
    out = tmp_path / "run"
    code, stdout, _ = muntin("train", task, data, "--out", out, "--epochs=1", *options(head))
    assert code == 0
    assert f"muntin predict {out}" in stdout
    code, stdout, _ = muntin("eval", out, data)
    assert code == 0
    assert "box_ap" in stdout
    assert ("mask_ap" in stdout) == (task == "instance")
    drawn = tmp_path / "drawn"
    code, stdout, _ = muntin(
        "predict", out, data / "val", "--out", drawn, "--tta", "--tile=48",
        "--select=suppression=soft",
    )  # fmt: skip
    assert code == 0
    assert str(drawn) in stdout
    assert len(list(drawn.glob("*.png"))) == 2


@pytest.mark.parametrize("threshold", [None, 0.0, pytest.param(0.02, marks=pytest.mark.slow)])
def test_python_draws_what_the_command_draws(muntin, run, data, tmp_path, threshold):
    image = min((data / "val").rglob("*.*"))
    chosen = [] if threshold is None else ["--threshold", threshold]
    assert muntin("predict", run, image, "--out", tmp_path / "out", "--device=cpu", *chosen)[0] == 0
    drawn = Image.open(tmp_path / "out" / f"{image.stem}.png")
    (result,) = load(run, device="cpu")(image)
    assert result.threshold == find_threshold(Run.open(run)).score
    again = draw(image, result, threshold=threshold)
    assert drawn.tobytes() == again.tobytes()
    if threshold is None:
        assert again.tobytes() == draw(image, result.above(result.threshold)).tobytes()
        assert again.tobytes() != draw(image, result, threshold=0).tobytes()
    said = muntin("predict", run, image, "--device=cpu", *chosen)[1].splitlines()[0]
    wanted = result.threshold if threshold is None else threshold
    shown = replace(result, threshold=wanted)
    assert said == f"{image}: {shown.describe()}"
    assert len(shown.above(wanted)) == int((result.scores >= wanted).sum())
    answers = json.loads(muntin("predict", run, image, "--device=cpu", "--json", *chosen)[1])
    assert answers[0]["threshold"] == round(wanted, 6)


def test_json(muntin, run, data):
    figures = json.loads(muntin("eval", run, data, "--json")[1])
    assert {"box_ap", "box_ap50", "mask_ap", "mask_ap50", "num_images"} <= figures.keys()
    assert figures["num_images"] == 2
    results = json.loads(muntin("predict", run, data / "val", "--json")[1])
    assert [list(one) for one in results] == [["path", "size", "threshold", "boxes"]] * 2
    assert results[0]["size"] == [48, 64]
    assert {"xyxy", "name", "id", "score", "mask"} == results[0]["boxes"][0].keys()
    min_score = sorted(row["score"] for row in results[0]["boxes"])[-3]
    some = json.loads(muntin("predict", run, data / "val", "--json", "--threshold", min_score)[1])
    assert 0 < len(some[0]["boxes"]) <= 4
    many = muntin("predict", run, data / "val", "--json", "--select", "max_detections=2")[1]
    assert [len(one["boxes"]) for one in json.loads(many)] == [2, 2]
    report = json.loads(muntin("check", "instance", data, "--json")[1])
    assert report["ok"] is True


def test_evaluation_warns_about_skipped_annotations(run, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    path = copy / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(content))
    with pytest.warns(MuntinWarning, match="1 annotation"):
        evaluate(run, copy, pictures=False)


def test_tiles_are_advised_where_images_are_shrunk_a_lot(muntin, run, tmp_path):
    Image.new("L", (500, 40)).save(tmp_path / "wide.png")
    assert "--tile auto" in muntin("predict", run, tmp_path)[1]
    assert "--tile" not in muntin("predict", run, tmp_path, "--tile=auto")[1]


def test_tiles_help_only_where_objects_are_small():
    def found(boxes, size=(4000, 3000), scores=None):
        count = len(boxes)
        return Detections(
            path="", size=size, boxes=np.reshape(boxes, (-1, 4)).astype(float),
            class_ids=np.zeros(count, np.int64), class_names=("a",) * count,
            scores=np.full(count, 0.9) if scores is None else np.array(scores),
        )  # fmt: skip

    fills, small = [100, 100, 2900, 3900], [10, 10, 90, 90]
    assert not needs_tiles(found([fills]), 800, 0.5)
    assert needs_tiles(found([small]), 800, 0.5)
    assert needs_tiles(found([]), 800, 0.5)
    assert not needs_tiles(found([small, fills, fills]), 800, 0.5)
    assert needs_tiles(found([small, fills, fills], scores=[0.9, 0.2, 0.2]), 800, 0.5)
    assert not needs_tiles(found([small], size=(900, 1200)), 800, 0.5)


def test_any_image(muntin, run, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (300, 41), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).convert("RGBA").save(tmp_path / "alpha.png")
    code, stdout, _ = muntin("predict", run, tmp_path, "--json", "--tile=auto")
    assert code == 0
    assert [one["size"] for one in json.loads(stdout)] == [[300, 41]] * 2


def broken(data, how):
    """Break a data set; give what is to be read."""
    file = data / "annotations" / "instances_train.json"
    values = json.loads(file.read_text())
    if how == "no categories":
        del values["categories"]
    if how == "no masks":
        for one in values["annotations"]:
            del one["segmentation"]
    file.write_text("{" if how == "no JSON" else json.dumps(values))
    if how == "no objects":
        empty_images(data, "train", set(range(4)))
    images = [*(data / "train").iterdir(), *(data / "val").iterdir()]
    for path in images:
        if how == "no images":
            path.unlink()
        if how == "empty files":
            path.write_bytes(b"")
    return data / "nothing" if how == "no folder" else data


BROKEN = {
    "no JSON": "instances_train.json",
    "no categories": "categories",
    "no masks": "mask",
    "no objects": "object",
    "no images": "4",
    "empty files": "shapes",
    "no folder": "nothing",
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", BROKEN)
def test_broken_data(muntin, tmp_path, how):
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=1, size=(48, 64))
    data = broken(data, how)
    result = muntin(
        "train", "instance", data, "--out", tmp_path / "run", "--epochs=1",
        *options("mask_rcnn_small"),
    )  # fmt: skip
    assert result[0] == 1
    assert result[2].strip()
    assert "Traceback" not in result[1] + result[2]
    assert BROKEN[how] in result[2]
    code, _, err = muntin("check", "instance", data)
    assert code == 1
    assert "Traceback" not in err


def test_wrong_predictions(muntin, run, data):
    assert fails_with(muntin("predict", run, data / "val", "--tile=many"), "--tile")
    assert fails_with(muntin("predict", run, data / "val", "--tile=3"), "tile", "3")
    assert fails_with(muntin("predict", run, data / "val", f"--tile={'9' * 5000}"), "--tile")
    assert fails_with(muntin("predict", run, data / "val", "--select=iou"), "--select")
    assert fails_with(muntin("predict", run, data / "val", "--select=iuo=0.3"), "'iuo'", "'iou'")
    assert fails_with(muntin("predict", run, data / "val", "--select=iou=a"), "select", "'a'")
    assert fails_with(muntin("eval", run, data / "annotations" / "nothing.json"), "nothing.json")


def test_other_classes(muntin, run, tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=2, num_val=1, size=(48, 64))
    for part in ("train", "val"):
        file = data / "annotations" / f"instances_{part}.json"
        values = json.loads(file.read_text())
        for one in values["categories"]:
            one["name"] = f"my {one['name']}"
        file.write_text(json.dumps(values))
    assert fails_with(muntin("eval", run, data), "my ")


def test_many_problems_of_one_kind_are_shortened(muntin, tmp_path):
    data = write_coco(tmp_path / "data", num_train=15, num_val=1, size=(48, 64))
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] += [
        {"id": 1000 + i, "image_id": row["id"], "category_id": 99, "bbox": [1, 1, 9, 9]}
        for i, row in enumerate(content["images"])
    ]
    path.write_text(json.dumps(content))
    code, stdout, _ = muntin("check", "detect", data)
    assert code == 0
    assert stdout.count("unknown class") < 15
    assert "5 more" in stdout
    assert "--json" in stdout
    report = json.loads(muntin("check", "detect", data, "--json")[1])
    assert sum("unknown class" in problem["what"] for problem in report["problems"]) == 15
