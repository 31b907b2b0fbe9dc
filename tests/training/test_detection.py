# SPDX-License-Identifier: Apache-2.0
"""Tiny detectors that learn: every head, stopped and resumed, repeated, with less memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import muntin
from muntin.errors import ConfigError, DataError, MuntinWarning
from muntin.runs import Run, read_journal
from muntin.synthetic.datasets import write_coco
from muntin.targets import BoxTargets
from muntin.train_config import MachineConfig
from muntin.training.request import Request
from muntin.training.setup import prepare
from tests.detectors import (
    BODY,
    empty_images,
    mixed_sizes,
    tiny_detector,
    train_detector,
)
from tests.training.test_resume import journal_of, state_of

HEADS = [
    ("detect", "fcos_small"),
    ("detect", "faster_rcnn_small"),
    ("detect", "cascade_rcnn_small"),
    ("instance", "mask_rcnn_small"),
    ("instance", "cascade_mask_rcnn_small"),
]
# One stage, and two with masks: together they run every part but the repeated stages.
QUICK = ("fcos_small", "mask_rcnn_small")
BY_SPEED = [pytest.param(*row, marks=() if row[1] in QUICK else pytest.mark.slow) for row in HEADS]
# The loss of a dense head says nothing after a few steps: the scores that it wants rise with the
# overlap. So what it finds is looked at, after more steps, and that one is slow.
DENSE = [("detect", "dense_small"), ("instance", "dense_small")]
STILL = {"augment.scale": "1,1", "augment.flip": 0, "augment.jitter": 0}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_coco(
        tmp_path_factory.mktemp("data") / "shapes", num_train=12, num_val=4, size=(64, 64)
    )


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    return mixed_sizes(tmp_path_factory.mktemp("data") / "mixed", count=12)


@pytest.mark.parametrize(("task", "head"), BY_SPEED)
def test_every_head_learns(data, tmp_path, task, head):
    run = train_detector(
        task, data, tmp_path / "run", head=head, epochs=6, pictures="mask" in head,
        settings={**STILL, "train.learning_rate": 2e-3, "train.optimizer": "adamw"},
    )  # fmt: skip
    losses = [line["train_loss"] for line in read_journal(run.path)]
    assert min(losses[-3:]) < 0.9 * losses[0]
    wanted = {"box_ap", "box_ap50", "num_images"} | ({"mask_ap"} if task == "instance" else set())
    assert wanted <= run.metrics.keys()
    assert run.metrics["num_images"] == 4
    if "mask" in head:
        names = {path.name for path in (run.path / "pictures").iterdir()}
        assert {"batch.png", "curves.png", "val"} <= names
        names = {path.name for path in (run.path / "pictures" / "val").iterdir()}
        assert {"best.png", "worst.png", "precision_recall_box.png"} <= names
    figures = muntin.evaluate(run.path, data, pictures=False)
    assert figures["num_images"] == 4
    for name in wanted:
        assert figures[name] == pytest.approx(run.metrics[name], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head"), [HEADS[0], HEADS[3], HEADS[4], *DENSE]
)  # every part of the heads
def test_four_images_are_learnt_by_heart(tmp_path, task, head):
    data = write_coco(
        tmp_path / "shapes", num_train=4, num_val=0, size=(64, 64), max_objects=3, seed=4
    )
    run = train_detector(
        task, data, tmp_path / "run", head=head, epochs=200, val=data,
        settings={**STILL, "train.learning_rate": 2e-3, "train.ema_decay": 0.9},
    )  # fmt: skip
    # A fresh network has 0, a learnt one nearly 1; eighty per cent is far from both.
    assert run.metrics["box_ap50"] > 0.8
    assert run.metrics["box_ap"] > 0.5
    if task == "instance":
        assert run.metrics["mask_ap50"] > 0.7


CASES = {
    "everything random": (
        "instance",
        {
            "augment.scale": "0.5,1.8", "augment.jitter": 0.5, "augment.flip_vertical": 0.5,
            "train.drop_path_rate": 0.3, "train.ema_decay": 0.9, "train.accumulate": 2,
        },
        (1, 1),
    ),
    "growing images": ("detect", {"train.start_size": 0.5, "train.full_size_from": 0.6}, (3,)),
    # Stopped while images are mixed, and again in the part where they are not.
    "mixed images": (
        "instance",
        {"augment.mosaic": 0.5, "augment.paste": 0.5, "augment.mixes_until": 0.55},
        (2, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [
        "everything random",
        pytest.param("growing images", marks=pytest.mark.slow),
        pytest.param("mixed images", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_the_same_bits(mixed, tmp_path, case):
    task, settings, stops = CASES[case]
    whole = train_detector(task, mixed, tmp_path / "whole", settings=settings)
    out = tmp_path / "parts"
    run = train_detector(task, mixed, out, settings=settings, stop_after=stops[0])
    assert run.interrupted
    for stop in (*stops[1:], 0):
        run = train_detector(task, mixed, out, resume=True, stop_after=stop)
    assert not run.interrupted
    left, right = state_of(whole.path), state_of(out)
    assert left[0].keys() == right[0].keys()
    for name, tensor in left[0].items():
        assert tensor.equal(right[0][name]), name
    assert left[1] == right[1]
    assert journal_of(whole.path) == journal_of(out)


def test_a_config_repeats_a_run(mixed, tmp_path):
    settings = {"augment.scale": "0.5,1.8", "head.select.max_detections": 30}
    one = train_detector("instance", mixed, tmp_path / "one", settings=settings, epochs=1)
    other = train_detector(
        "instance", mixed, tmp_path / "other", config=one.path / "config.json", weights="auto"
    )
    left, right = (load_file(run.path / "weights.safetensors") for run in (one, other))
    for name, tensor in left.items():
        assert tensor.equal(right[name]), name
    assert journal_of(one.path) == journal_of(other.path)
    head = Run.open(other.path).config.head
    assert head == Run.open(one.path).config.head
    assert head.select.max_detections == 30


def prepared(task, data, *, settings=None, **options):
    """What a run would begin with; nothing is trained."""
    settings = {"machine.workers": 0, **(settings or {})}
    return prepare(
        Request(
            task=task, data=str(data), out="nowhere", **options,
            machine=MachineConfig(device="cpu", precision="fp32"),
            settings=tuple((name, str(value)) for name, value in settings.items()),
        )
    ).run  # fmt: skip


def test_a_run_goes_on_from_another_one(mixed, data, tmp_path):
    """Its model and head are taken, with room for more objects; classes may be others."""
    first = train_detector(
        "detect", mixed, tmp_path / "first", head="faster_rcnn_small", epochs=1, img_size=(64, 96),
        settings={"head.select.max_detections": 100},
    )  # fmt: skip
    before = Run.open(first.path).config
    run = muntin.train(
        "detect", data, out=tmp_path / "run", weights=str(first.path), epochs=1, quiet=True,
        settings={"machine.workers": 0}, pictures=False,
    )  # fmt: skip
    after = Run.open(run.path).config
    assert (after.model_name, after.head) == (before.model_name, before.head)
    assert after.model.img_size == (64, 96)
    assert after.model.depths == (1, 1, 1)
    assert after.train.recipe == "small-data"
    # For another task only the backbone is of use, at the size of the images.
    settings = {"head.box_dim": 32, "head.mask_dim": 16}
    options = {"head": "mask_rcnn_small", "settings": settings}
    after = prepared("instance", data, weights=str(first.path), **options).config
    assert after.model.depths == (1, 1, 1)
    assert after.model.img_size != (64, 96)


@pytest.mark.parametrize(
    ("task", "head"), [*BY_SPEED, pytest.param(*DENSE[1], marks=pytest.mark.slow)]
)
def test_images_without_objects(tmp_path, task, head):
    """One batch has none at all, which leaves every second stage without a region to learn."""
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 64))
    empty_images(data, "train", {0, 1, 2})
    run = train_detector(task, data, tmp_path / "run", head=head, epochs=1, batch_size=1)
    (line,) = read_journal(run.path)
    assert line["train_loss"] > 0
    state = load_file(run.path / "weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


@pytest.mark.parametrize(("task", "head"), [*HEADS, *DENSE])
def test_every_weight_has_a_gradient_without_objects(task, head):
    """Processes wait for the gradient of every weight, whatever is in their images."""
    network = tiny_detector(head, 6, task=task).train()
    targets = [
        BoxTargets(
            boxes=torch.zeros(0, 4), class_ids=torch.zeros(0).long(), ignored=torch.zeros(0, 4),
            layers=torch.zeros(0, 64, 64).int(), layer_of=torch.zeros(0).long(),
        )
    ] * 2  # fmt: skip
    features = network.features(torch.randn(2, 3, 64, 64), torch.full((2, 2), 64))
    losses = network.head.losses(features, targets)
    sum(losses.values()).sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_no_object_anywhere(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=2, size=(64, 64))
    empty_images(data, "val", {0, 1})
    run = train_detector("instance", data, tmp_path / "run", epochs=1)
    assert run.metrics["box_ap"] is None
    assert muntin.evaluate(run.path, data, pictures=False)["mask_ap"] is None


def test_a_class_without_objects_in_val(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=8, num_val=2, size=(64, 64), max_objects=2)
    file = data / "annotations" / "instances_val.json"
    values = json.loads(file.read_text())
    gone = values["annotations"][0]["category_id"]
    values["annotations"] = [a for a in values["annotations"] if a["category_id"] != gone]
    file.write_text(json.dumps(values))
    run = train_detector("instance", data, tmp_path / "run", epochs=1)
    place = [c["id"] for c in values["categories"]].index(gone)
    assert run.metrics["box_ap_per_class"][place] is None
    assert Run.open(run.path).classes.names == tuple(c["name"] for c in values["categories"])


@pytest.mark.slow
def test_half_precision(data, tmp_path):
    run = train_detector("instance", data, tmp_path / "run", precision="bf16")
    lines = read_journal(run.path)
    plain = train_detector("instance", data, tmp_path / "plain")
    for line, other in zip(lines, read_journal(plain.path), strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=0.1)
    weights = load_file(run.path / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.int64}


def test_freezing(data, tmp_path):
    runs = [
        train_detector(
            "detect", data, tmp_path / str(rate), epochs=1,
            settings={"train.freeze": 1, "train.learning_rate": rate},
        )
        for rate in (1e-3, 1e-2)
    ]  # fmt: skip
    state, other = (load_file(run.path / "weights.safetensors") for run in runs)
    same = {name for name, tensor in state.items() if tensor.equal(other[name])}
    stages = {n for n in state if n.startswith(("backbone.patch_embed", "backbone.layers.0."))}
    assert stages <= same
    assert not {name for name in state if name.startswith("backbone.")} <= same
    assert not any(n in same for n in state if n.startswith("head.") and n.endswith("weight"))


def test_freezing_random_weights_is_reported(data):
    with pytest.warns(MuntinWarning, match=r"train\.freeze=-1.*--weights"):
        prepared("detect", data, weights="none", settings={"train.freeze": -1})


@pytest.mark.parametrize(
    "head", ["fcos_small", pytest.param("cascade_rcnn_small", marks=pytest.mark.slow)]
)
def test_a_plain_transformer(data, tmp_path, head):
    run = train_detector(
        "detect", data, tmp_path / "run", head=head, model="vit_tiny_patch16_224", epochs=1,
        settings={"model.depth": 2, "model.embed_dim": 48, "model.num_heads": 2},
    )  # fmt: skip
    network = Run.open(run.path).build_network()
    assert type(network.head.neck).__name__ == "SimplePyramid"
    assert muntin.evaluate(run.path, data, pictures=False)["num_images"] == 4


WRONG = {
    "head": ({"head": "yolo"}, "'yolo'"),
    "head of the other task": ({"head": "fcos"}, "'fcos'.*detect"),
    "recipe": ({"recipe": "imagenet"}, "'imagenet'.*coco-3x"),
    "field": ({"settings": {"head.neck.chanels": 3}}, "channels'"),
    "augmentation": ({"settings": {"augment.mixup": 0.5}}, r"mixup"),
    "size": ({"settings": {"augment.scale": "2,1"}}, r"augment\.scale"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words(data, tmp_path, case):
    options, match = WRONG[case]
    with pytest.raises(ConfigError, match=match):
        muntin.train(
            "instance", data, out=tmp_path / "run", quiet=True,
            **{"model": BODY, "weights": "none", **options},
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_boxes_do_not_make_masks(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=4, num_val=1, size=(64, 64))
    for part in ("train", "val"):
        file = data / "annotations" / f"instances_{part}.json"
        values = json.loads(file.read_text())
        for one in values["annotations"]:
            del one["segmentation"]
        file.write_text(json.dumps(values))
    train_detector("detect", data, tmp_path / "boxes", epochs=1)
    with pytest.raises(DataError, match="mask"):
        train_detector("instance", data, tmp_path / "masks", epochs=1)
    assert not (tmp_path / "masks").exists()


def test_nothing_to_learn_is_an_error(tmp_path):
    data = write_coco(tmp_path / "shapes", num_train=2, num_val=1, size=(64, 64))
    empty_images(data, "train", {0, 1})
    with pytest.raises(DataError, match="object"):
        train_detector("detect", data, tmp_path / "run", epochs=1)


def test_classes_have_one_head(tmp_path):
    with pytest.raises(ConfigError, match="'fcos'"):
        muntin.train("classify", tmp_path, head="fcos", out=tmp_path / "run", quiet=True)


def test_what_is_chosen(data):
    run = prepared("instance", data, weights="none")
    assert run.config.model_name == BODY
    assert run.config.train.recipe == "small-data"
    assert run.preprocessing.typical_size == (64, 64)
