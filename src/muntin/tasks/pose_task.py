# SPDX-License-Identifier: Apache-2.0
"""Pose estimation: the keypoints of each instance, from its crop or in the whole image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muntin.data.keypoint_transforms import crop_box, crop_transform
from muntin.data.pose import check_pose, list_pose
from muntin.errors import ConfigError
from muntin.features import Features
from muntin.heads.detector import Instances
from muntin.heads.keypoint_rcnn import KEYPOINT_DETECTORS, KeypointRCNN
from muntin.heads.network import Head
from muntin.heads.pose_head import POSE_HEADS, PoseHead
from muntin.metrics.pose_metric import PoseInstance, PoseMetric
from muntin.ops.keypoints import clip_points, mirror_heatmaps, read_heatmaps, to_pixels
from muntin.results import DEFAULT_SCORE_THRESHOLD, Poses
from muntin.samples import Classes, Entry, Listing, Skeleton, skeleton_of
from muntin.shapes import Float, Size
from muntin.targets import Keypoints
from muntin.tasks.detection_task import DETECT
from muntin.tasks.task import DenseTask, ImageMeta, InferenceBatch, LazyTruth, Task, TrainBatch


def _read_truth(listing: Listing, entry: Entry) -> PoseInstance:
    assert entry.objects is not None, "pose needs annotated instances"
    return PoseInstance(path=entry.path, size=entry.size, objects=entry.objects, row=entry.instance)


def _losses(
    head: Head, features: Features, batch: TrainBatch, classes: Classes
) -> dict[str, Float[Tensor, " B"]]:
    assert batch.targets is not None, "pose needs keypoints"
    points, known = [], []
    for target in batch.targets:
        assert isinstance(target, Keypoints), "pose needs keypoints"
        points.append(target.points)
        known.append(target.known)
    return head.losses(features, torch.stack(points), torch.stack(known))


def _predict(inputs: InferenceBatch) -> list[NDArray[np.float64]]:
    """(P, 3) x, y and peak value of each keypoint, in pixels of the originals."""
    head: Any = inputs.network.head
    coding = head.config.coding
    images = inputs.images
    maps = inputs.forward(images)
    if inputs.options.tta:
        partners = _flip_partners(skeleton_of(inputs.classes))
        mirrored = inputs.forward(images.flip(3))
        maps = (maps + mirror_heatmaps(mirrored, partners, coding=coding)) / 2
    maps = maps.float()
    shown = (images.shape[2], images.shape[3])
    peaks = read_heatmaps(maps, coding=coding)
    size = (maps.shape[2], maps.shape[3])
    points = to_pixels(peaks.points.double(), shown, size, coding=coding).cpu().numpy()
    scores = peaks.scores.double().cpu().numpy()
    found = []
    for row, meta in enumerate(inputs.metas):
        box = meta.box or (0.0, 0.0, float(meta.size[1]), float(meta.size[0]))
        back = crop_transform(crop_box(box, inputs.pre), inputs.pre).inverse
        visible = clip_points(back(points[row]), meta.size)
        found.append(np.concatenate([visible, scores[row][:, None]], axis=1))
    return found


def _finish(maps: Tensor, size: Size, head: Any, classes: Classes) -> Tensor:  # noqa: ANN401
    """(B, P, 3) x, y and score of each keypoint, in pixels of the crop."""
    coding = head.config.coding
    peaks = read_heatmaps(maps.float(), coding=coding)
    points = to_pixels(peaks.points, size, (maps.shape[2], maps.shape[3]), coding=coding)
    return torch.cat([points, peaks.scores[..., None]], dim=-1)


def _flip_partners(skeleton: Skeleton) -> tuple[int, ...]:
    if skeleton.mirrored:
        return skeleton.partners
    message = (
        f"tta needs the flip pairs of the keypoints, got a skeleton without them: "
        f'{", ".join(skeleton.names)}. Leave tta out, or train again with "flip_pairs" in a '
        f"skeleton.json beside the data."
    )
    raise ConfigError(message)


def _decode(
    raw: Sequence[NDArray[np.float64]], metas: Sequence[ImageMeta], classes: Classes
) -> list[Poses]:
    skeleton = skeleton_of(classes)
    return [
        Poses(
            path=meta.path,
            size=meta.size,
            keypoints=_clip_scores(points)[None],
            scores=np.array([_score(points)]),
            keypoint_names=skeleton.names,
            edges=skeleton.edges,
            flip_pairs=skeleton.flip_pairs,
            boxes=None if meta.box is None else np.array([meta.box]),
        )
        for points, meta in zip(raw, metas, strict=True)
    ]


_MIN_PEAK = 0.2
"""Keypoints with a lower peak do not count in the score of a pose (as Simple Baselines has it)."""


def _score(points: NDArray[np.float64]) -> float:
    sure = points[:, 2] > _MIN_PEAK
    return float(points[sure, 2].mean().clip(0, 1)) if sure.any() else 0.0


def _clip_scores(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip scores to [0, 1]: a heatmap sharper than the training targets peaks above 1."""
    return np.concatenate([points[:, :2], points[:, 2:].clip(0, 1)], axis=1)


POSE = Task(
    name="pose",
    list_data=lambda path, classes, data: list_pose(path, classes=classes),
    check_data=check_pose,
    make_head=lambda backbone, classes, config: PoseHead(
        backbone, len(skeleton_of(classes).names), config
    ),
    ground_truth=lambda listing, classes: LazyTruth(listing, _read_truth),
    losses=_losses,
    predict=_predict,
    decode=_decode,
    metric=lambda classes: PoseMetric(skeleton_of(classes)),
    goals=("oks_ap", "pck"),
    kind="keypoints",
    top_down=True,
    dense=DenseTask(
        heads=POSE_HEADS, default_head={"small": "light_pose_small", "large": "light_pose"}
    ),
    outputs=("heatmaps",),
    finish=("keypoints", _finish),
)


def _decode_found(
    raw: Sequence[Instances], metas: Sequence[ImageMeta], classes: Classes
) -> list[Poses]:
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
                flip_pairs=skeleton.flip_pairs,
                boxes=found.boxes.double().cpu().numpy() * np.tile(scale, 2),
            )
        )
    return results


WHOLE_IMAGE_POSE = replace(
    POSE,
    list_data=lambda path, classes, data: list_pose(path, classes=classes, whole=True),
    make_head=lambda backbone, classes, config: KeypointRCNN(
        backbone, len(classes.names), len(skeleton_of(classes).names), config
    ),
    losses=DETECT.losses,
    predict=DETECT.predict,
    decode=_decode_found,
    metric=lambda classes: PoseMetric(
        skeleton_of(classes), score_threshold=DEFAULT_SCORE_THRESHOLD
    ),
    top_down=False,
    dense=DenseTask(
        heads=KEYPOINT_DETECTORS,
        default_head={"small": "keypoint_rcnn_small", "large": "keypoint_rcnn"},
    ),
)
