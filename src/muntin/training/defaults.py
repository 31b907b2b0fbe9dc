# SPDX-License-Identifier: Apache-2.0
"""Defaults by statistics of the data: model, image size, head, recipe and preprocessing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from muntin.configs import with_texts
from muntin.data.archives import read_bytes
from muntin.data.data_config import DataConfig
from muntin.data.decoding import decode
from muntin.data.dense_transforms import DetectionAugmentConfig
from muntin.data.pose import is_whole
from muntin.data.transforms import Preprocessing
from muntin.errors import ConfigError, DataError, plural
from muntin.heads.head_table import DetectorConfig, find_head
from muntin.heads.network import HeadConfig
from muntin.heads.pose_head import PoseConfig
from muntin.heads.rcnn_config import RCNNConfig
from muntin.samples import Listing, TaskKind
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.weights.source_info import read_source_info
from muntin.weights.weight_files import is_available
from muntin.zoo.model_zoo import MODELS, BackboneConfig, ModelEntry

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Choice(Generic[Value]):
    """A value that was chosen automatically, and what the user should know about it."""

    value: Value
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetStatistics:
    """Statistics of the images and objects of a training set.

    Attributes:
        object_side: Median of sqrt(area of an object) / longer side of its image; 0 = unknown.
        max_objects: Largest number of objects in one image.
        small_side: As `object_side`, of which a fifth of the objects has at most this.
        size: Median (height, width) of the images (top-down: of the instance boxes) in pixels.
    """

    object_side: float
    max_objects: int
    size: Size = (0, 0)
    small_side: float = 0.0


PUBLISHED = "swin_tiny_patch4_window7_224"
"""Default model where pretrained weights are used."""

FRESH = "swin_nano_patch4_window4_64"
"""Default model for training from scratch."""

THUMBNAILS = "swin_nano_patch2_window4_32"
"""Default classifier of images whose shorter side has at most 48 pixels."""

_DEFAULTS: Mapping[tuple[str, str, str], tuple[str, int | Size]] = {
    ("classification", "cpu", "pretrained"): (PUBLISHED, (224, 224)),
    # Cost grows with the area: larger images would train for hours on a CPU.
    ("classification", "cpu", "random"): (FRESH, 128),
    ("classification", "gpu", "pretrained"): (PUBLISHED, (224, 224)),
    ("classification", "gpu", "random"): (FRESH, 224),
    ("detection", "cpu", "pretrained"): (PUBLISHED, 512),
    ("detection", "cpu", "random"): (FRESH, 384),
    # The size that published detectors are trained at.
    ("detection", "gpu", "pretrained"): (PUBLISHED, (800, 1333)),
    ("detection", "gpu", "random"): (FRESH, (512, 512)),
    ("segmentation", "cpu", "pretrained"): (PUBLISHED, 320),
    ("segmentation", "cpu", "random"): (FRESH, 256),
    ("segmentation", "gpu", "pretrained"): (PUBLISHED, 512),
    ("segmentation", "gpu", "random"): (FRESH, 512),
    ("keypoints", "cpu", "pretrained"): (PUBLISHED, 256),
    ("keypoints", "cpu", "random"): ("swin_nano_patch4_256", 256),
    ("keypoints", "gpu", "pretrained"): (PUBLISHED, 256),
    ("keypoints", "gpu", "random"): ("swin_nano_patch4_256", 256),
}
"""Default model, and its image size in pixels or the longest side of what suits the data."""

_RECIPES: Mapping[TaskKind, str] = {
    "classification": "imagenet",
    "detection": "coco-3x",
    "segmentation": "ade20k",
    "keypoints": "coco-pose",
}
"""Recipes for training from scratch on many images."""

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


def median_size(listing: Listing) -> Size:
    """Median (height, width) in pixels of about 32 images, spread evenly."""
    sizes = []
    for index in range(0, len(listing), max(1, len(listing) // 32)):
        entry = listing.entries[index]
        if entry.size is not None:
            sizes.append(entry.size)
            continue
        try:
            image = decode(read_bytes(listing.source, entry.path), where=entry.path)
        # The median needs no single image; reading the data reports broken ones.
        except (DataError, OSError):
            continue
        sizes.append(image.shape[:2])
    if not sizes:
        return 224, 224
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def measure_objects(listing: Listing) -> DatasetStatistics:
    """Compute the statistics of images with objects or label maps."""
    sides: list[float] = []
    max_objects = 0
    for entry in listing.entries:
        if entry.objects is None:
            continue
        max_objects = max(max_objects, len(entry.objects))
        # The median of 100,000 objects is precise enough, and COCO has 860,000 of them.
        if entry.size is not None and len(sides) < 100_000:
            sides += (np.sqrt(entry.objects.areas) / max(entry.size)).tolist()
    small, side = map(float, np.quantile(sides, (0.2, 0.5)) if sides else (0.0, 0.0))
    size = median_size(listing)
    return DatasetStatistics(object_side=side, max_objects=max_objects, size=size, small_side=small)


def measure_instances(listing: Listing) -> DatasetStatistics:
    """Compute the statistics of top-down keypoint data, where an entry is one instance."""
    boxes = np.array([entry.box for entry in listing.entries if entry.box is not None])
    if not len(boxes):  # without boxes a usual size of crops is assumed
        return DatasetStatistics(object_side=0.0, max_objects=0, size=(256, 256))
    wide, high = np.median(boxes[:, 2:] - boxes[:, :2], axis=0)
    size = max(1, round(high)), max(1, round(wide))
    return DatasetStatistics(object_side=0.0, max_objects=0, size=size)


def default_model(
    kind: TaskKind,
    size: Size,
    weights: str,
    device: str,
    is_available: Callable[[str], object] = is_available,
) -> tuple[str, Size]:
    """Default backbone and image size (height, width) in pixels.

    `size` is the median of the images or, for keypoints, of the instances; `weights` is the value
    of ``--weights``; `is_available` says whether weights of this hub id can be had.

    Examples:
        >>> default_model("keypoints", (400, 280), "none", "cpu")
        ('swin_nano_patch4_256', (256, 192))
    """
    # A patch of 4 pixels would leave too few tokens of such images.
    whole = kind in ("classification", "pretraining")
    if whole and min(size) <= 48:
        return THUMBNAILS, (max(16, -(-min(size) // 8) * 8),) * 2
    pretrained = weights != "none" and (not whole or min(size) >= 96)
    if pretrained and weights == "auto":  # asked last: it downloads the weights
        pretrained = kind != "pretraining" and bool(is_available(MODELS[PUBLISHED].weights))
    where, how = "cpu" if device == "cpu" else "gpu", "pretrained" if pretrained else "random"
    name, limit = _DEFAULTS["classification" if whole else kind, where, how]
    return name, limit if isinstance(limit, tuple) else _suit(kind, size, limit)


def _suit(kind: TaskKind, size: Size, limit: int) -> Size:
    """Image size for images or instances of this size, at most `limit` on the longer side."""
    if kind in ("classification", "pretraining"):
        return (min(limit, max(48, -(-min(size) // 16) * 16)),) * 2
    if kind == "detection":
        scale = min(1.0, limit / max(size))
        # Multiples of the coarsest stride, so that no map needs padding.
        return _round(size[0] * scale), _round(size[1] * scale)
    if kind == "segmentation":
        # Not larger than the images: padding teaches nothing.
        return min(limit, _round_up(size[0])), min(limit, _round_up(size[1]))
    # The crop has a margin of a quarter (`use_instance_crop`), so smaller crops lose no pixels.
    longer = min(limit, _round(1.25 * max(size)))
    # Few long boxes must not make a crop so narrow that it loses all context.
    ratio = float(np.clip(size[1] / size[0], 0.5, 2.0))
    return (longer, _round(longer * ratio)) if ratio <= 1 else (_round(longer / ratio), longer)


def _round(side: float) -> int:
    return max(64, round(side / 32) * 32)


def _round_up(side: int) -> int:
    return max(64, -(-side // 32) * 32)


def default_recipe(
    count: int, *, pretrained: bool, kind: TaskKind = "classification"
) -> tuple[str, str]:
    """Name of the recipe for `count` training images, and the reason."""
    few = FEW_IMAGES if kind == "classification" else FEW_DENSE_IMAGES
    images = plural(count, "training instance" if kind == "keypoints" else "training image")
    if pretrained and (kind == "classification" or count < few):
        return "finetune", "the weights are pretrained"
    if count < few:
        return "small-data", f"{images}, no pretrained weights"
    return _RECIPES[kind], images


def is_small(model: BackboneConfig) -> bool:
    """Whether images are too small to cut a border off."""
    return min(model.img_size) < 128


def normalise_as(entry: ModelEntry, weights: str | Path | None) -> Choice[ModelEntry]:
    """Normalise images as for the weights: a run says how, or files beside them may."""
    stated = None if weights in (None, "none", "", "auto") else read_source_info(weights)
    pre = None if stated is None else stated.preprocessing
    if pre is None or (pre.mean, pre.std) == (entry.mean, entry.std):
        return Choice(entry, ())
    note = f"images: mean {pre.mean} and std {pre.std}, as for {weights}"
    return Choice(replace(entry, mean=pre.mean, std=pre.std), (note,))


def choose_preprocessing(
    entry: ModelEntry, model: BackboneConfig, data: DataConfig, kind: TaskKind, median_size: Size
) -> Preprocessing:
    """Choose the preprocessing of the weights; `median_size` is that of the training images."""
    chosen = Preprocessing(
        img_size=model.img_size,
        mean=data.mean or _per_channel(entry.mean, model.in_chans),
        std=data.std or _per_channel(entry.std, model.in_chans),
        interpolation="bilinear",
        in_chans=model.in_chans,
        value_range=data.range,
        bits=data.bits or 8,
    )
    if kind == "segmentation":
        return replace(
            chosen,
            fit="sliding_window",
            scale=data.scale or 1.0,
            short_side=data.short_side,
            typical_size=median_size,
        )
    if kind == "detection":
        chosen = replace(chosen, fit="letterbox", typical_size=median_size)
        # What is not told which pixels are padding sees as much of it in every batch.
        told = getattr(model, "reads_mask", True)
        return replace(chosen, pad_to_size=not told)
    return replace(
        chosen,
        crop_fraction=data.crop_fraction,
        # Bicubic overshoots at edges, which shows in images of a few pixels.
        interpolation="bilinear" if is_small(model) else "bicubic",
    )


def _per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    return values if in_chans == len(values) else (round(float(np.mean(values)), 4),) * in_chans


def use_instance_crop(
    pre: Preprocessing, head: HeadConfig | None, listing: Listing
) -> Choice[Preprocessing]:
    """Switch to crops of single instances; without a margin where each image is one instance."""
    whole = is_whole(listing)
    crop = replace(
        pre,
        fit="instance_crop",
        padding=1.0 if whole else 1.25,
        alignment=head.coding if isinstance(head, PoseConfig) else pre.alignment,
        interpolation="bilinear",
    )
    return Choice(crop, ("each image shows one instance: no boxes are needed",) if whole else ())


def enlarge_img_size(statistics: DatasetStatistics, size: Size) -> Size:
    """Enlarge images whose objects would be too small to detect.

    Examples:
        >>> enlarge_img_size(DatasetStatistics(object_side=0.05, max_objects=60), (256, 256))
        (512, 512)
    """
    if statistics.object_side <= 0:
        return size
    wanted = OBJECT_SIDE / (statistics.object_side * max(size))
    factor = min(wanted, MAX_ENLARGEMENT, MAX_ENLARGED_SIDE / max(size))
    if factor <= 1.15:  # not worth the time
        return size
    return _round(size[0] * factor), _round(size[1] * factor)


def choose_augment_window(
    augment: DetectionAugmentConfig, img_size: Size, original: Size
) -> Choice[DetectionAugmentConfig]:
    """Train on parts of enlarged images, so that a step costs what it did before.

    `img_size` and `original` are the sizes after and before `enlarge_img_size`.
    """
    if augment.short_sides or max(img_size) <= max(original):
        return Choice(augment)
    window = round(max(original) / max(img_size), 3)
    note = (
        f"objects are small: images are enlarged to {'x'.join(map(str, img_size))}; each step "
        f"trains on a window of {window:g} of each side (augment.window)"
    )
    return Choice(replace(augment, window=window), (note,))


def choose_scale(median_size: Size, window: Size, device: str) -> float:
    """Factor on the image size in segmentation: 1, or less for large images on a CPU.

    Examples:
        >>> [choose_scale((side, side), (256, 256), "cpu") for side in (400, 2000)]
        [1.0, 0.31]
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
) -> Choice[HeadConfig | None]:
    """Choose the config of the head; None for a task with only one head.

    `base` is the head of the run that is repeated or fine-tuned; without `name` and `base`, `small`
    says whether the backbone is. The head must be able to return `max_objects`; 0 = no requirement.
    """
    if task.dense is None:
        if settings:
            message = f"{task.name} has one head without settings, got head.{settings[0][0]}."
            raise ConfigError(message)
        return Choice(None)
    head, notes = base, []
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
    return Choice(with_texts(raised, settings, group="head"), tuple(notes))


def _raise_detection_limit(head: HeadConfig, max_objects: int) -> HeadConfig:
    """Allow half as many detections again as the fullest image has objects, 1,000 at most."""
    # Rounded up to hundreds, like the limits of published detectors.
    limit = min(1000, -(-3 * max_objects // 200) * 100)
    if not isinstance(head, DetectorConfig) or limit <= head.select.max_detections:
        return head
    head = replace(head, select=replace(head.select, max_detections=limit))
    if not isinstance(head, RCNNConfig):
        return head
    # The second stage classifies proposals: there must be more of them than detections.
    first, then = head.proposals
    before, after = head.pre_nms
    return replace(
        head,
        proposals=(max(first, 2 * limit), max(then, 2 * limit)),
        pre_nms=(max(before, 2 * limit), max(after, 2 * limit)),
    )
