# SPDX-License-Identifier: Apache-2.0
"""`create` builds the network of every task; the `create_...` functions build the same."""

from __future__ import annotations

import pytest
import torch

import muntin
from muntin.errors import ConfigError
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS
from muntin.heads.keypoint_rcnn import KEYPOINT_DETECTORS, KeypointRCNN
from muntin.heads.pose_head import PoseHead
from muntin.tasks.task_table import TASKS

SMALL = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)}

# Task, head, arguments; the older function, its arguments.
SAME = {
    "classify": (None, {}, muntin.create_model, {}),
    "detect": ("fcos_small", {}, muntin.create_detector, {"head": "fcos_small"}),
    "boxes": (
        DETECTORS["faster_rcnn_small"], {}, muntin.create_detector, {"head": "faster_rcnn_small"},
    ),
    "instance": (
        "mask_rcnn_small", {}, muntin.create_detector,
        {"head": MASK_DETECTORS["mask_rcnn_small"], "masks": True},
    ),
    "semantic": ("light_small", {}, muntin.create_segmenter, {"head": "light_small"}),
    "pose": (
        "light_pose_small", {"num_keypoints": 4}, muntin.create_pose_estimator,
        {"head": "light_pose_small", "num_keypoints": 4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_network_as_the_older_functions(name):
    head, options, older, others = SAME[name]
    task = name if name in TASKS else "detect"
    torch.manual_seed(0)
    made = muntin.create(
        task, "swin_nano", head=head, num_classes=3, in_chans=1, **options, **SMALL
    )
    torch.manual_seed(0)
    if older is not muntin.create_pose_estimator:
        others = {**others, "num_classes": 3}
    expected = older("swin_nano", in_chans=1, **others, **SMALL)
    assert made.training
    state = made.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(state[key].equal(value) for key, value in expected.state_dict().items())
    assert type(made.head) is type(expected.head)


def test_defaults():
    assert muntin.create("classify", "swin_nano", **SMALL).head.fc.out_features == 1000
    segmenter = muntin.create("semantic", "swin_nano", head="light_small", **SMALL)
    assert segmenter.head.classifier.out_channels == 150
    estimator = muntin.create("pose", "swin_nano", **SMALL)
    assert isinstance(estimator.head, PoseHead)
    assert estimator.head.config == TASKS["pose"].dense.heads["light_pose"]
    assert estimator.head.classifier.out_channels == 17


@pytest.mark.parametrize(
    "head",
    ["keypoint_rcnn_small", KEYPOINT_DETECTORS["keypoint_rcnn_small"]],
    ids=["name", "config"],
)
def test_a_head_may_change_what_a_task_is(head):
    network = muntin.create("pose", "swin_nano", head=head, num_keypoints=3, **SMALL)
    assert isinstance(network.head, KeypointRCNN)
    assert network.head.num_keypoints == 3
    assert network.head.box_heads[0].fc_cls.out_features == 2  # persons and nothing


@pytest.mark.parametrize(
    ("task", "options", "parts"),
    [
        ("detekt", {}, ["'detekt'", "'detect'"]),
        ("detect", {"head": "fcoss"}, ["'fcoss'", "'fcos'"]),
        ("semantic", {"head": DETECTORS["fcos"]}, ["FCOSConfig"]),
        ("detect", {"num_classes": 0}, ["num_classes", "0"]),
        ("pose", {"num_keypoints": 0}, ["num_keypoints", "0"]),
        ("detect", {"num_keypoints": 3}, ["num_keypoints", "3", "'detect'"]),
        ("classify", {"head": "fcos"}, ["head", "'fcos'", "'classify'"]),
        ("classify", {"conventions": "torchvision"}, ["conventions", "'torchvision'"]),
        ("semantic", {"conventions": "torchvision"}, ["conventions", "'torchvision'"]),
        ("pose", {"head": "keypoint_rcnn", "conventions": "detectron2"}, ["'keypoint_rcnn'"]),
        ("instance", {"windw_size": 3}, ["'windw_size'", "'window_size'"]),
    ],
)  # fmt: skip
def test_inconsistent_arguments_are_rejected(task, options, parts):
    with pytest.raises(ConfigError) as caught:
        muntin.create(task, "swin_nano", **options)
    assert all(part in str(caught.value) for part in parts)
