# SPDX-License-Identifier: Apache-2.0
"""Scenes whose objects can be told apart by their class number, as targets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch

from muntin.data.joint_transforms import to_box_targets
from muntin.data.transforms import Sample
from muntin.run_lengths import encode_mask
from muntin.samples import Objects
from muntin.synthetic.scenes import Scene, make_scene
from muntin.targets import BoxTargets


def objects_of(masks: Sequence[np.ndarray], *, crowd: Sequence[int] = ()) -> Objects:
    """One object a mask, with the tight box; object i has class i."""
    boxes = []
    for mask in masks:
        rows, columns = np.where(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return Objects(
        boxes=np.array(boxes, np.float64).reshape(-1, 4),
        class_ids=np.arange(len(masks)),
        crowd=np.isin(np.arange(len(masks)), crowd),
        areas=np.array([mask.sum() for mask in masks], np.float64),
        masks=tuple(encode_mask(mask) for mask in masks),
    )


def targets_of(masks: Sequence[np.ndarray], *, crowd: Sequence[int] = ()) -> BoxTargets:
    """The same as targets."""
    size = masks[0].shape
    return to_box_targets(objects_of(masks, crowd=crowd), size, size)


@cache
def scene_of(index: int, size=(90, 120), most: int = 5) -> tuple[Scene, BoxTargets]:
    """A generated scene; object i has class i."""
    scene = make_scene(7, index, size=size, max_objects=most)
    return scene, targets_of([one.mask for one in scene.objects])


def mask_of(targets: BoxTargets, number: int) -> torch.Tensor:
    """Bitmap of an object, from its layer."""
    return targets.layers[targets.layer_of[number]] == number + 1


def tight_box(mask: torch.Tensor) -> torch.Tensor:
    """The box around a bitmap."""
    rows, columns = torch.where(mask)
    return torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()


def augment(image, targets, config, pre, seed, skeleton=None):
    """The changed image and its targets."""
    sample = Sample(image, (image.shape[1], image.shape[2]), targets)
    after = config.augment(sample, pre, seed, skeleton)
    return after.pixels, after.target
