# SPDX-License-Identifier: Apache-2.0
"""A published detector becomes a run that predicts what the detector finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.models.detection import KeypointRCNN, backbone_utils

import muntin
from muntin.commands import main
from muntin.configs import with_texts
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.errors import ConfigError, DataError, RunError
from muntin.heads.rcnn_config import MASK_RCNN
from muntin.published import coco_names, open_published, read_class_names
from muntin.runs import Run
from muntin.tasks.task_table import find_task
from muntin.weights.weight_files import write_weights

NAMES = ("cat", "dog")


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    network = muntin.create_detector(
        "swin_nano", head="faster_rcnn", num_classes=2, conventions="openmmlab"
    ).eval()
    with torch.no_grad():
        network.head.box_heads[0].fc_cls.weight.mul_(50)
    return network


@pytest.fixture(scope="module")
def weights(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "faster_rcnn.safetensors"
    write_weights(path, muntin.to_dialect(detector, "microsoft"), {})
    return path


def test_coco_has_80_classes():
    assert len(set(coco_names())) == 80
    assert coco_names()[0] == "person"
    assert coco_names()[-1] == "toothbrush"
    assert all(name == name.strip() and name for name in coco_names())


def test_the_run_predicts_what_the_detector_finds(detector, weights, tmp_path):
    run, report = open_published(
        weights, tmp_path / "run", model="swin_nano", head="faster_rcnn", class_names=NAMES
    )
    assert report.size_rule == "openmmlab"
    assert run.config.task == "detect"
    # So wide that its longer side decides: 1333 x 213 pixels are seen.
    image = np.random.default_rng(0).integers(0, 255, (80, 500, 3), np.uint8)
    found = muntin.load(tmp_path / "run")(image)[0]
    state = muntin.load(tmp_path / "run").network.state_dict()
    assert all(tensor.equal(state[name]) for name, tensor in detector.state_dict().items())
    assert len(found) > 0
    assert set(found.class_names) <= set(NAMES)


def test_from_the_command_line(weights, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n\n")
    words = ["convert", str(weights), str(tmp_path / "run"), "--model", "swin_nano"]
    words += ["--head", "faster_rcnn", "--classes", str(names)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--to", "run"])
    assert ended.value.code == 0
    assert "detect, 2 classes" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*words, "--to", "timm"])
    assert ended.value.code == 2
    assert "--to run" in capsys.readouterr().err


def test_a_keypoint_rcnn_from_the_command_line(tmp_path, capsys):
    torch.manual_seed(0)
    network = muntin.create("pose", "swin_nano", head="keypoint_rcnn_small")
    write_weights(tmp_path / "a.safetensors", network.state_dict(), {"dialect": "muntin"})
    words = ["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "run"), "--to", "run"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--model", "swin_nano", "--head", "keypoint_rcnn_small"])
    assert ended.value.code == 0
    assert "pose, 1 classes" in capsys.readouterr().out
    run = Run.open(tmp_path / "run")
    assert run.task is find_task("pose", "keypoint_rcnn")
    assert run.config.augment == DetectionAugmentConfig()
    predictor = muntin.load(run.path, select={"score_threshold": 0.0})
    state = predictor.network.state_dict()
    assert all(state[name].equal(tensor) for name, tensor in network.state_dict().items())
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    found = predictor(image)[0]
    assert found.keypoints.shape == (len(found), 17, 3)
    assert found.keypoint_names[0] == "nose"


@pytest.fixture(scope="module")
def keypoint_rcnn(tmp_path_factory):
    """A Keypoint R-CNN of torchvision with a small body, and its weights."""
    torch.manual_seed(0)
    body = backbone_utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    theirs = KeypointRCNN(body, 2, box_score_thresh=0.05, min_size=64, max_size=128).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.mul_(30 if "cls_score" in name else 5 if "kps" in name else 1)
    path = tmp_path_factory.mktemp("theirs") / "keypoints.safetensors"
    write_weights(path, theirs.state_dict())
    return theirs, path


def test_a_keypoint_rcnn_of_torchvision(keypoint_rcnn, tmp_path):
    theirs, path = keypoint_rcnn
    run, _ = open_published(path, tmp_path / "run", model="timm:resnet18", head="keypoint_rcnn")
    assert run.config.head.background == "first"
    assert run.classes.skeleton.names[0] == "nose"
    network = run.load_network()
    for size in ((64, 96), (96, 64)):
        image = torch.rand(3, *size)
        with torch.no_grad():
            expected, found = theirs([image])[0], network(theirs.transform([image])[0].tensors)
        found = network.decode(found)[0]
        assert len(found.boxes) == len(expected["boxes"]) > 0
        assert (found.boxes - expected["boxes"]).abs().max() < 1e-3
        # Theirs are measured from the edge of the first pixel, ours from its centre.
        points = expected["keypoints"][..., :2] - 0.5
        assert (found.points[..., :2] - points).abs().max() < 1e-3


def test_fields_of_a_head(detector, tmp_path):
    narrow = {"head.box_dim": "64", "head.neck.channels": "32"}
    network = muntin.create(
        "detect", "swin_nano", num_classes=2,
        head=with_texts(MASK_RCNN, {"box_dim": "64", "neck.channels": "32"}.items()),
    )  # fmt: skip
    path = tmp_path / "narrow.safetensors"
    write_weights(path, muntin.to_dialect(network, "openmmlab"))
    named = {"model": "swin_nano", "head": "faster_rcnn", "class_names": NAMES}
    run, _ = open_published(path, tmp_path / "run", **named, settings=narrow)
    assert (run.config.head.box_dim, run.config.head.neck.channels) == (64, 32)
    with pytest.raises(ConfigError, match=r"head\.box_dims.*head\.box_dim'"):
        open_published(path, tmp_path / "b", **named, settings={"head.box_dims": "64"})
    with pytest.raises(ConfigError, match=r"--head.*box_dim"):
        open_published(path, tmp_path / "b", model="swin_nano", settings=narrow)


def test_other_classes_are_an_error(weights, tmp_path):
    with pytest.raises(ConfigError, match=r"80 classes.*--classes"):
        open_published(weights, tmp_path / "run", model="swin_nano", head="faster_rcnn")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_exists_is_an_error(weights, tmp_path):
    with pytest.raises(RunError, match="OUT"):
        open_published(weights, tmp_path, model="swin_nano", head="faster_rcnn")


def test_class_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n")
    with pytest.raises(DataError, match=r"--classes.*names\.txt"):
        read_class_names(path)
    with pytest.raises(DataError, match=r"--classes.*none\.txt"):
        read_class_names(tmp_path / "none.txt")


def test_a_published_segmenter(tmp_path):
    torch.manual_seed(0)
    network = muntin.create_segmenter("swin_nano", head="upernet", num_classes=2).eval()
    write_weights(tmp_path / "a.safetensors", muntin.to_dialect(network, "openmmlab"), {})
    options = {"model": "swin_nano", "head": "upernet"}
    with pytest.raises(ConfigError, match="--classes"):
        open_published(tmp_path / "a.safetensors", tmp_path / "run", **options)
    run, _ = open_published(
        tmp_path / "a.safetensors", tmp_path / "run", class_names=NAMES, **options
    )
    assert (run.config.task, run.preprocessing.short_side) == ("semantic", 512)
    small = replace(run.preprocessing, short_side=64)
    replace(run, preprocessing=small).write()
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    found = muntin.load(run.path)(image)[0]
    assert found.size == (40, 60)
    assert found.class_names == NAMES
    with pytest.raises(ConfigError, match="upernett"):
        open_published("a", tmp_path / "other", model="swin_nano", head="upernett")
