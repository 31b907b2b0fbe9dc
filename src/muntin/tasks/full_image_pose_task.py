# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Pose estimation in whole images: Keypoint R-CNN detects instances and their keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from muntin.data.pose import list_pose
from muntin.features import Backbone
from muntin.heads.instances import Instances
from muntin.heads.keypoint_rcnn import KEYPOINT_DETECTORS, KeypointRCNN
from muntin.heads.rcnn_config import RCNNConfig
from muntin.metrics.pose_metric import PoseMetric
from muntin.ops.keypoints import clip_points
from muntin.results import DEFAULT_SCORE_THRESHOLD, Poses
from muntin.samples import Classes, skeleton_of
from muntin.tasks.detection_task import DETECT
from muntin.tasks.pose_task import POSE
from muntin.tasks.task import DenseTask, ImageMeta

__all__ = ["WHOLE_IMAGE_POSE"]


def _decode(raw: Sequence[Instances], metas: Sequence[ImageMeta], classes: Classes) -> list[Poses]:
    skeleton = skeleton_of(classes)
    results = []
    for found, meta in zip(raw, metas, strict=True):
        scale = np.array([meta.size[1] / meta.input_size[1], meta.size[0] / meta.input_size[0]])
        assert found.points is not None, "a Keypoint R-CNN predicts keypoints"
        points = found.points.double().cpu().numpy()
        # Keypoints are at pixel centres, so the half pixel must not be scaled.
        points[:, :, :2] = clip_points((points[:, :, :2] + 0.5) * scale - 0.5, meta.size)
        results.append(
            Poses(
                path=meta.path,
                size=meta.size,
                keypoints=points,
                scores=found.scores.double().cpu().numpy(),
                keypoint_names=skeleton.names,
                edges=skeleton.edges,
                boxes=found.boxes.double().cpu().numpy() * np.tile(scale, 2),
            )
        )
    return results


def _build_head(backbone: Backbone, classes: Classes, config: RCNNConfig) -> nn.Module:
    return KeypointRCNN(backbone, len(classes.names), len(skeleton_of(classes).names), config)


WHOLE_IMAGE_POSE = replace(
    POSE,
    list_data=lambda path, classes, data: list_pose(path, classes=classes, whole=True),
    make_head=_build_head,
    losses=DETECT.losses,
    predict=DETECT.predict,
    decode=_decode,
    metric=lambda classes: PoseMetric(
        skeleton_of(classes), score_threshold=DEFAULT_SCORE_THRESHOLD
    ),
    top_down=False,
    dense=DenseTask(
        heads=KEYPOINT_DETECTORS,
        default_head={"small": "keypoint_rcnn_small", "large": "keypoint_rcnn"},
    ),
)
