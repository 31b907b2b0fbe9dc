# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is chosen for images with objects when nobody says: sizes and head, by the objects."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from muntin.configs import with_texts
from muntin.data.detection_transforms import DetectionAugmentConfig
from muntin.errors import ConfigError
from muntin.heads.conventions import RCNNConfig
from muntin.heads.detectors import DetectorConfig
from muntin.heads.head import HeadConfig
from muntin.heads.table import find_head
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.training.choices import can_be_had, typical_size

__all__ = [
    "Scenes",
    "choose_head",
    "choose_window",
    "default_dense_model",
    "enlarge_for",
    "look_at_scenes",
]

OBJECT_SIDE = 28.0
"""Images are enlarged until half of the objects have at least this side, in pixels."""

MOST_ENLARGED = 2.0
"""But by no more than this factor, and to no more than `LONGEST`."""

LONGEST = 768


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """What the images and objects of a training set are like.

    Attributes:
        side: Median side of an object (root of its area) relative to the longer side of its
            image; 0 = unknown.
        crowded: Objects in the image that has most.
        typical: Median (height, width) of the images in pixels.
    """

    side: float
    crowded: int
    typical: Size = (0, 0)


def look_at_scenes(listing: Listing) -> Scenes:
    """Measure the images and objects of a training set."""
    sides: list[float] = []
    crowded = 0
    for entry in listing.entries:
        if entry.objects is None:
            continue
        crowded = max(crowded, len(entry.objects))
        if entry.size is not None and len(sides) < 100_000:
            sides += (np.sqrt(entry.objects.areas) / max(entry.size)).tolist()
    side = float(np.median(sides)) if sides else 0.0
    return Scenes(side=side, crowded=crowded, typical=typical_size(listing))


def default_dense_model(size: Size, weights: str, device: str) -> tuple[str, Size]:
    """Name and size (height, width) in pixels for images in which things are to be found.

    With trained weights and a GPU, images are shown as published detectors saw them; on a CPU the
    longer side has at most 384 pixels (512 with trained weights).
    """
    published = "swin_tiny_patch4_window7_224"
    trained = weights != "none" and (weights != "auto" or can_be_had(published))
    if device != "cpu":
        return (published, (800, 1333)) if trained else ("swin_nano_patch4_window4_64", (512, 512))
    most = 512 if trained else 384
    scale = min(1.0, most / max(size))
    height, width = (max(64, round(side * scale / 32) * 32) for side in size)
    return published if trained else "swin_nano_patch4_window4_64", (height, width)


def enlarge_for(scenes: Scenes, size: Size) -> Size:
    """Make images larger where objects would be too small to be told apart.

    Args:
        scenes: What the objects are like.
        size: (height, width) in pixels at which images would be shown.

    Example:
        >>> enlarge_for(Scenes(side=0.05, crowded=60), (256, 256))
        (512, 512)
    """
    if scenes.side <= 0:
        return size
    factor = min(OBJECT_SIDE / (scenes.side * max(size)), MOST_ENLARGED, LONGEST / max(size))
    if factor <= 1.15:
        return size
    return max(64, round(size[0] * factor / 32) * 32), max(64, round(size[1] * factor / 32) * 32)


def choose_window(
    augment: DetectionAugmentConfig, img_size: Size, usual: Size, notes: list[str]
) -> DetectionAugmentConfig:
    """Learn from parts of enlarged images, so that a step costs what it would have cost.

    Args:
        augment: Of the recipe.
        img_size: (height, width) in pixels after `enlarge_for`.
        usual: The same before.
        notes: What was chosen is added.
    """
    if augment.short_sides or max(img_size) <= max(usual):
        return augment
    window = round(max(usual) / max(img_size), 3)
    notes.append(
        f"objects are small: images are enlarged to {'x'.join(map(str, img_size))}, and steps "
        f"learn from parts of {window:g} of each side (augment.window)"
    )
    return replace(augment, window=window)


def choose_head(
    wanted: str,
    base: HeadConfig | None,
    task: Task,
    small: bool,
    crowded: int,
    settings: list[tuple[str, str]],
    notes: list[str],
) -> HeadConfig | None:
    """Pick the config of the head.

    Args:
        wanted: Its name; empty chooses.
        base: That of a run that is repeated or gone on from.
        task: Knows the heads.
        small: Whether the backbone is small.
        crowded: Objects in the fullest image, for which there shall be room; 0 = no matter.
        settings: Fields that were set.
        notes: What was chosen is added.

    Returns:
        The config; None for a task with one head.

    Raises:
        ConfigError: There is no such head or field.
    """
    if task.dense is None:
        if settings:
            message = f"{task.name} has one head without settings, got head.{settings[0][0]}."
            raise ConfigError(message)
        return None
    head = base
    if head is None or wanted:
        name = wanted or task.dense.default_head["small" if small else "large"]
        head = find_head(name, task.dense.heads)
        if not wanted:
            notes.append(f"head {name}, by the size of the model (--head)")
    roomy = _make_room(head, crowded)
    if isinstance(roomy, DetectorConfig) and roomy != head:
        notes.append(
            f"up to {roomy.select.max_detections} objects an image are told: there are "
            f"{crowded} in one (head.select.max_detections)"
        )
    return with_texts(roomy, settings)


def _make_room(head: HeadConfig, crowded: int) -> HeadConfig:
    """Let a head tell half as many objects again as the fullest image has, 1,000 at most."""
    most = min(1000, -(-3 * crowded // 200) * 100)
    if not isinstance(head, DetectorConfig):
        return head
    if most <= head.select.max_detections:
        return head
    head = replace(head, select=replace(head.select, max_detections=most))
    if isinstance(head, RCNNConfig):
        first, then = head.proposals
        before, after = head.pre_nms
        return replace(
            head,
            proposals=(max(first, 2 * most), max(then, 2 * most)),
            pre_nms=(max(before, 2 * most), max(after, 2 * most)),
        )
    return head
