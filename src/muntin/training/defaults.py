# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Defaults that depend on the data: model, image size, head, recipe and preprocessing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from muntin.configs import with_texts
from muntin.data.data_config import DataConfig
from muntin.data.detection_transforms import DetectionAugmentConfig
from muntin.data.pose import is_whole
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError
from muntin.heads.head import HeadConfig
from muntin.heads.head_table import DetectorConfig, find_head
from muntin.heads.pose_head import PoseConfig
from muntin.heads.rcnn_config import RCNNConfig
from muntin.samples import Listing, TaskKind
from muntin.shapes import Size
from muntin.weights.hub import is_available
from muntin.zoo.families import BackboneConfig
from muntin.zoo.model_zoo import MODELS, ModelEntry

if TYPE_CHECKING:
    from muntin.tasks.task import Task
    from muntin.training.dataset_statistics import DatasetStatistics

__all__ = [
    "choose_augment_window",
    "choose_head",
    "choose_preprocessing",
    "choose_scale",
    "default_detection_model",
    "default_keypoint_model",
    "default_model",
    "default_recipe",
    "default_segmentation_model",
    "enlarge_img_size",
    "is_small",
    "use_instance_crop",
]

PUBLISHED = "swin_tiny_patch4_window7_224"
"""Default model where pretrained weights are used."""

FRESH = "swin_nano_patch4_window4_64"
"""Default model for training from scratch."""

FEW_IMAGES = 100_000
"""With fewer training images a model without pretrained weights uses the small-data recipe."""

FEW_DENSE_IMAGES = 20_000
"""The same for dense tasks, where one image holds many examples."""

OBJECT_SIDE = 28.0
"""Images are enlarged until half of the objects have at least this side, in pixels ..."""

MAX_ENLARGEMENT = 2.0
"""... by at most this factor ..."""

MAX_ENLARGED_SIDE = 768
"""... and to at most this longer side, in pixels."""

MAX_WINDOWS = 6
"""On a CPU, large images are scaled down to at most this many times the area of a window."""

CROP_SIDE = 256
"""Longer side of an instance crop in pixels, unless the instances are smaller."""


def _is_pretrained(weights: str) -> bool:
    """Whether training starts from pretrained weights, given the value of ``--weights``."""
    return weights != "none" and (weights != "auto" or is_available(MODELS[PUBLISHED].weights))


def default_model(size: Size, weights: str, device: str) -> tuple[str, int]:
    """Default classifier and image side in pixels.

    Args:
        size: Median (height, width) of the images in pixels.
        weights: Value of ``--weights``.
        device: "cpu", "cuda" or "mps".
    """
    side = min(size)
    # A patch of 4 pixels would leave too few tokens of such images.
    if side <= 48:
        return "swin_nano_patch2_window4_32", max(16, -(-side // 8) * 8)
    if side >= 96 and _is_pretrained(weights):
        return PUBLISHED, 224
    # Cost grows with the area: larger images would train for hours on a CPU.
    limit = 128 if device == "cpu" else 224
    return FRESH, min(limit, max(48, -(-side // 16) * 16))


def default_detection_model(size: Size, weights: str, device: str) -> tuple[str, Size]:
    """Default detector backbone and image size (height, width) in pixels.

    With pretrained weights and a GPU, images have the size that published detectors are trained
    at; on a CPU the longer side is at most 384 pixels (512 with pretrained weights).
    """
    pretrained = _is_pretrained(weights)
    if device != "cpu":
        return (PUBLISHED, (800, 1333)) if pretrained else (FRESH, (512, 512))
    limit = 512 if pretrained else 384
    scale = min(1.0, limit / max(size))
    # Multiples of the coarsest stride, so that no map needs padding.
    height, width = (max(64, round(side * scale / 32) * 32) for side in size)
    return PUBLISHED if pretrained else FRESH, (height, width)


def default_segmentation_model(size: Size, weights: str, device: str) -> tuple[str, Size]:
    """Default segmentation backbone and sliding window (height, width) in pixels."""
    pretrained = _is_pretrained(weights)
    side = 512 if device != "cpu" else 320 if pretrained else 256
    # Not larger than the images: padding teaches nothing.
    window = (min(side, _round_up(size[0])), min(side, _round_up(size[1])))
    return PUBLISHED if pretrained else FRESH, window


def default_keypoint_model(size: Size, weights: str, device: str) -> tuple[str, Size]:
    """Default top-down backbone and crop (height, width) in pixels, shaped like the instances.

    Example:
        >>> default_keypoint_model((400, 280), "none", "cpu")[1]
        (256, 192)
    """
    del device
    # The crop has a margin of a quarter (`use_instance_crop`), so smaller crops lose no pixels.
    longer = min(CROP_SIDE, _round(1.25 * max(size)))
    # Few long boxes must not make a crop so narrow that it loses all context.
    ratio = float(np.clip(size[1] / size[0], 0.5, 2.0))
    crop = (longer, _round(longer * ratio)) if ratio <= 1 else (_round(longer / ratio), longer)
    return PUBLISHED if _is_pretrained(weights) else "swin_nano_patch4_256", crop


def _round(side: float) -> int:
    return max(64, round(side / 32) * 32)


def _round_up(side: int) -> int:
    return max(64, -(-side // 32) * 32)


def default_recipe(
    count: int, *, pretrained: bool, kind: TaskKind = "classification"
) -> tuple[str, str]:
    """Name of the recipe for `count` training images, and the reason."""
    few = FEW_IMAGES if kind == "classification" else FEW_DENSE_IMAGES
    unit = "instances" if kind == "keypoints" else "images"
    if pretrained and (kind == "classification" or count < few):
        return "finetune", "the weights are pretrained"
    if count < few:
        return "small-data", f"{count} training {unit}, no pretrained weights"
    published: dict[TaskKind, str] = {
        "classification": "imagenet",
        "detection": "coco-3x",
        "segmentation": "ade20k",
        "keypoints": "coco-pose",
    }
    return published[kind], f"{count} training {unit}"


def is_small(model: BackboneConfig) -> bool:
    """Whether images are too small to cut a border off."""
    return min(model.img_size) < 128


def choose_preprocessing(
    entry: ModelEntry,
    model: BackboneConfig,
    data: DataConfig,
    kind: TaskKind,
    median_size: Size,
) -> Preprocessing:
    """Choose the preprocessing that the weights were trained with.

    Detection uses a letterbox, segmentation a sliding window over images scaled by `data.scale` or
    `data.short_side`, classification a centre crop.

    Args:
        entry: Gives mean and standard deviation of the channels.
        model: Gives image size and number of channels.
        data: Settings under ``data``.
        kind: Kind of the task.
        median_size: Median (height, width) of the training images in pixels.
    """
    if kind == "segmentation":
        return Preprocessing(
            img_size=model.img_size,
            mean=_per_channel(entry.mean, model.in_chans),
            std=_per_channel(entry.std, model.in_chans),
            fit="sliding_window",
            scale=data.scale or 1.0,
            short_side=data.short_side,
            typical_size=median_size,
            interpolation="bilinear",
            in_chans=model.in_chans,
        )
    if kind == "detection":
        return Preprocessing(
            img_size=model.img_size,
            mean=_per_channel(entry.mean, model.in_chans),
            std=_per_channel(entry.std, model.in_chans),
            fit="letterbox",
            typical_size=median_size,
            interpolation="bilinear",
            in_chans=model.in_chans,
        )
    return Preprocessing(
        img_size=model.img_size,
        mean=_per_channel(entry.mean, model.in_chans),
        std=_per_channel(entry.std, model.in_chans),
        crop_fraction=data.crop_fraction,
        # Bicubic overshoots at edges, which shows in images of a few pixels.
        interpolation="bilinear" if is_small(model) else "bicubic",
        in_chans=model.in_chans,
    )


def _per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    return values if in_chans == len(values) else (round(float(np.mean(values)), 4),) * in_chans


def use_instance_crop(
    pre: Preprocessing, head: HeadConfig | None, listing: Listing, notes: list[str]
) -> Preprocessing:
    """Switch a preprocessing to crops of single instances (top-down keypoints).

    Args:
        pre: Gives everything else.
        head: Its coding defines the pixel alignment.
        listing: Where each image is one instance, the crop has no margin.
        notes: The choice is appended.
    """
    whole = is_whole(listing)
    if whole:
        notes.append("each image shows one instance: no boxes are needed")
    alignment = head.coding if isinstance(head, PoseConfig) else pre.alignment
    return replace(
        pre,
        fit="instance_crop",
        padding=1.0 if whole else 1.25,
        alignment=alignment,
        interpolation="bilinear",
    )


def enlarge_img_size(statistics: DatasetStatistics, size: Size) -> Size:
    """Enlarge images whose objects would be too small to detect.

    Args:
        statistics: Of the training set.
        size: (height, width) in pixels before.

    Example:
        >>> from muntin.training.dataset_statistics import DatasetStatistics
        >>> enlarge_img_size(DatasetStatistics(object_side=0.05, max_objects=60), (256, 256))
        (512, 512)
    """
    if statistics.object_side <= 0:
        return size
    wanted = OBJECT_SIDE / (statistics.object_side * max(size))
    factor = min(wanted, MAX_ENLARGEMENT, MAX_ENLARGED_SIDE / max(size))
    if factor <= 1.15:  # not worth the time
        return size
    return max(64, round(size[0] * factor / 32) * 32), max(64, round(size[1] * factor / 32) * 32)


def choose_augment_window(
    augment: DetectionAugmentConfig, img_size: Size, original: Size, notes: list[str]
) -> DetectionAugmentConfig:
    """Train on parts of enlarged images, so that a step costs what it did before.

    Args:
        augment: Of the recipe.
        img_size: (height, width) in pixels after `enlarge_img_size`.
        original: (height, width) in pixels before it.
        notes: The choice is appended.
    """
    if augment.short_sides or max(img_size) <= max(original):
        return augment
    window = round(max(original) / max(img_size), 3)
    notes.append(
        f"objects are small: images are enlarged to {'x'.join(map(str, img_size))}; each step "
        f"trains on a window of {window:g} of each side (augment.window)"
    )
    return replace(augment, window=window)


def choose_scale(median_size: Size, window: Size, device: str) -> float:
    """Factor on the image size in segmentation: 1, or less for large images on a CPU.

    Example:
        >>> choose_scale((400, 400), (256, 256), "cpu")
        1.0
        >>> choose_scale((2000, 2000), (256, 256), "cpu")
        0.31
    """
    if device != "cpu" or min(median_size) == 0:
        return 1.0
    # The number of windows grows with the area, so a side is scaled by the square root.
    max_area = MAX_WINDOWS * window[0] * window[1]
    return min(1.0, round(math.sqrt(max_area / (median_size[0] * median_size[1])), 2))


def choose_head(
    name: str,
    base: HeadConfig | None,
    task: Task,
    small: bool,
    max_objects: int,
    settings: list[tuple[str, str]],
    notes: list[str],
) -> HeadConfig | None:
    """Choose the config of the head.

    Args:
        name: Requested name; empty chooses by the size of the backbone.
        base: Head of the run that is repeated or fine-tuned.
        task: Gives the heads.
        small: Whether the backbone is small.
        max_objects: Largest number of objects in one image, which the head must be able to
            return; 0 = no requirement.
        settings: Fields set under ``head``, as text.
        notes: The choice is appended.

    Returns:
        The config; None for a task with only one head.

    Raises:
        ConfigError: The head or a field is unknown.
    """
    if task.dense is None:
        if settings:
            message = f"{task.name} has one head without settings, got head.{settings[0][0]}."
            raise ConfigError(message)
        return None
    head = base
    if head is None or name:
        chosen = name or task.dense.default_head["small" if small else "large"]
        head = find_head(chosen, task.dense.heads)
        if not name:
            notes.append(f"head {chosen}, by the size of the model (--head)")
    raised = _raise_detection_limit(head, max_objects)
    if isinstance(raised, DetectorConfig) and raised != head:
        notes.append(
            f"up to {raised.select.max_detections} detections an image, as one image has "
            f"{max_objects} objects (head.select.max_detections)"
        )
    return with_texts(raised, settings, group="head")


def _raise_detection_limit(head: HeadConfig, max_objects: int) -> HeadConfig:
    """Allow half as many detections again as the fullest image has objects, 1,000 at most."""
    # Rounded up to hundreds, like the limits of published detectors.
    limit = min(1000, -(-3 * max_objects // 200) * 100)
    if not isinstance(head, DetectorConfig):
        return head
    if limit <= head.select.max_detections:
        return head
    head = replace(head, select=replace(head.select, max_detections=limit))
    if isinstance(head, RCNNConfig):
        # The second stage classifies proposals: there must be more of them than detections.
        first, then = head.proposals
        before, after = head.pre_nms
        return replace(
            head,
            proposals=(max(first, 2 * limit), max(then, 2 * limit)),
            pre_nms=(max(before, 2 * limit), max(after, 2 * limit)),
        )
    return head
