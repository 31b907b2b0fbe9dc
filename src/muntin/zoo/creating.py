# SPDX-License-Identifier: Apache-2.0
"""Functions that build the network of a task: backbone, neck and head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from muntin.errors import ConfigError, unknown_name
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS, DetectorConfig, find_head
from muntin.heads.network import HeadConfig, Network
from muntin.heads.pose_head import PoseConfig
from muntin.heads.rcnn_config import CASCADE_VITDET, CONVENTIONS, VITDET, RCNNConfig
from muntin.heads.semantic_head import SemanticConfig
from muntin.samples import Classes, Skeleton, TaskKind
from muntin.tasks.task import Task
from muntin.tasks.task_table import find_task
from muntin.zoo.model_building import build_dense_backbone, create_model, load_into

_DEFAULT_NUM_CLASSES: dict[TaskKind, int] = {
    "classification": 1000, "detection": 80, "segmentation": 150, "keypoints": 1
}  # fmt: skip
"""Classes of ImageNet-1k, COCO and ADE20K, and the one class (person) of COCO keypoints."""


def create(
    task: str,
    model: str,
    *,
    head: str | HeadConfig | None = None,
    num_classes: int | None = None,
    num_keypoints: int | None = None,
    conventions: str = "",
    in_chans: int = 3,
    weights: str | Path | None = None,
    **architecture: Any,
) -> Network:
    """Build the network of a task: a backbone and the head that the task needs.

    Args:
        task: "classify", "detect", "instance", "semantic" or "pose".
        model: Name of the backbone, as in `create_model`.
        head: A name such as "mask_rcnn", or the config of a head; default: the one that
            `muntin.train` uses for a large backbone.
        num_classes: Number of classes without background; default: those of ImageNet-1k (1000),
            COCO (80; 1 for keypoints) or ADE20K (150).
        num_keypoints: Keypoints per instance, for "pose"; default: COCO's 17.
        conventions: Source of published R-CNN weights to be loaded: "openmmlab" (also
            Microsoft's), "detectron2" or "torchvision" (whose first class is background).
            Default: the head's own.
        in_chans: Input channels.
        weights: None for random weights; a local file or folder, or a hub id. Weights may be those
            of the whole network or of a classifier, which initialize the backbone except for
            the norms of its maps.
        architecture: Fields of the backbone's config. Backbones of dense tasks have a norm per map
            if the family supports it; ``out_norm="none"`` disables them.

    Returns:
        The network in training mode; for its outputs see the `create_...` function of its kind.

    Raises:
        ConfigError: A name or a field is unknown, or the arguments are inconsistent.
        WeightError: The weights cannot be read or do not fit.
    """
    task_row = find_task(task, head)
    _reject_unused(task_row, head, num_keypoints, conventions)
    count = _DEFAULT_NUM_CLASSES[task_row.kind] if num_classes is None else num_classes
    fields = {"in_chans": in_chans, **architecture}
    if task_row.dense is None:
        return create_model(model, num_classes=count, weights=weights, **fields)
    classes = _numbered_classes(count, 17 if num_keypoints is None else num_keypoints)
    config = resolve_head(task_row, head, conventions)
    backbone = build_dense_backbone(model, fields, finest=config.finest)
    network = Network(backbone, task_row.build_head(backbone, classes, config))
    if weights is not None:
        load_into(network, weights, architecture, model)
    return network


def resolve_head(task_row: Task, head: str | HeadConfig | None, conventions: str) -> HeadConfig:
    """Give the config of a head of a dense task; arguments as in `create`."""
    assert task_row.dense is not None, "a task with several heads"
    named = task_row.dense.default_head["large"] if head is None else head
    config = find_head(named, task_row.dense.heads) if isinstance(named, str) else named
    if not isinstance(config, HeadConfig):
        message = f"head must be a name or the config of a head, got {type(named).__name__}."
        raise ConfigError(message)
    return _with_conventions(config, named, conventions)


def _numbered_classes(num_classes: int, num_keypoints: int) -> Classes:
    """Classes and keypoints by number: heads need no names, which are stored in runs."""
    for name, value in (("num_classes", num_classes), ("num_keypoints", num_keypoints)):
        if value < 1:
            message = f"{name} must be at least 1, got {value}."
            raise ConfigError(message)
    names, points = (tuple(map(str, range(count))) for count in (num_classes, num_keypoints))
    return Classes(names=names, skeleton=Skeleton(names=points))


def create_detector(
    name: str,
    *,
    head: str | DetectorConfig = "mask_rcnn",
    masks: bool | None = None,
    **options: Any,
) -> Network:
    """Build a detector by `create`: images (B, in_chans, H, W) float to candidate boxes of each.

    `head` is a name such as "mask_rcnn", "cascade_mask_rcnn", "faster_rcnn", "dense" or "fcos", one
    that ends in "_small" for machines without a GPU, or a config; `masks` says whether a config, or
    "dense", is for masks. The detector takes images, padded at the right and bottom to one size,
    and optionally the (height, width) of each before padding, and returns
    `muntin.heads.detector.Candidates`. Losses:
    ``detector.head.losses(detector.features(images, sizes), targets)``.
    """
    has_masks = bool(masks)
    if isinstance(head, str):
        find_head(head, {**DETECTORS, **MASK_DETECTORS})
        # What both tables have is for boxes, unless masks are asked for.
        has_masks = (
            has_masks if head in DETECTORS.keys() & MASK_DETECTORS else head in MASK_DETECTORS
        )
    if isinstance(head, str) and masks not in (None, has_masks):
        message = (
            f"masks must be None if head is a name, got masks={masks} and head={head!r}. "
            f"Choose a head from {', '.join(MASK_DETECTORS if masks else DETECTORS)}."
        )
        raise ConfigError(message)
    return create("instance" if has_masks else "detect", name, head=head, **options)


def create_segmenter(
    name: str, *, head: str | SemanticConfig = "upernet", **options: Any
) -> Network:
    """Build a segmenter by `create`: images (B, in_chans, H, W) float to logits (B, K, h, w).

    `head` is "upernet", "light", "light_small", or a config. Logits have the size of the finest
    map, a quarter of the image's sides, rounded up; upsample them bilinearly. Losses:
    ``segmenter.head.losses(segmenter.features(images), labels)``.
    """
    return create("semantic", name, head=head, **options)


def create_pose_estimator(
    name: str, *, head: str | PoseConfig = "simple_baseline", **options: Any
) -> Network:
    """Build a pose estimator by `create`: crops (B, in_chans, H, W) to heatmaps (B, P, H/4, W/4).

    `head` is "simple_baseline", "vitpose", "vitpose_simple", "light_pose", "light_pose_small", or
    a config; `name` may be "vitpose_base" and its like; `num_keypoints` is P. Losses:
    ``estimator.head.losses(estimator.features(images), points, known)``.
    """
    return create("pose", name, head=head, **options)


def _reject_unused(
    task_row: Task, head: str | HeadConfig | None, num_keypoints: int | None, conventions: str
) -> None:
    """Reject arguments without effect on this task."""
    arguments = {
        "num_keypoints": num_keypoints if task_row.kind != "keypoints" else None,
        "head": head if task_row.dense is None else None,
        "conventions": conventions or None if task_row.dense is None else None,
    }
    for name, value in arguments.items():
        if value is not None:
            message = (
                f"{name} has no effect on the task {task_row.name!r}, got {value!r}. Remove it."
            )
            raise ConfigError(message)


def _with_conventions(config: HeadConfig, head: str | HeadConfig, origin: str) -> HeadConfig:
    """Replace a published head's config by that of its detectors in another library."""
    if not origin or (origin == "detectron2" and config in (VITDET, CASCADE_VITDET)):
        return config
    if origin not in CONVENTIONS:
        raise ConfigError(unknown_name("conventions", origin, CONVENTIONS))
    published = list(CONVENTIONS["openmmlab"].values())
    if origin == "torchvision" and isinstance(config, RCNNConfig):
        # Its head of keypoints is a detector with more layers before the heatmaps.
        published = [
            replace(row, mask_convs=config.mask_convs, mask_dim=config.mask_dim)
            for row in published
        ]
    if not isinstance(config, RCNNConfig) or not isinstance(head, str) or config not in published:
        called = repr(head) if isinstance(head, str) else "a custom config"
        message = (
            f"conventions={origin!r} requires one of the published heads faster_rcnn, mask_rcnn, "
            f"cascade_rcnn, cascade_mask_rcnn, or keypoint_rcnn of torchvision, got {called}. "
            f"Remove conventions."
        )
        raise ConfigError(message)
    kind = "cascade" if len(config.stage_ious) > 1 else "rcnn"
    if kind not in CONVENTIONS[origin]:
        known = ", ".join(name for name, kinds in CONVENTIONS.items() if kind in kinds)
        message = f"conventions of a {kind} must be one of {known}, got {origin!r}."
        raise ConfigError(message)
    return replace(
        CONVENTIONS[origin][kind], mask_convs=config.mask_convs, mask_dim=config.mask_dim
    )
