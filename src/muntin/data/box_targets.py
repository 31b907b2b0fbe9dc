# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From the objects that are annotated in an image to the targets of a detector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from muntin.data.joint_transforms import Window
from muntin.run_lengths import decode_mask, to_run_lengths
from muntin.samples import Objects
from muntin.shapes import Size
from muntin.targets import BoxTargets

__all__ = ["to_box_targets"]


def to_box_targets(objects: Objects, original: Size, kept: Size) -> BoxTargets:
    """Bring annotated objects to the pixels of an image as it is kept.

    Args:
        objects: In pixels of the original.
        original: (height, width) of the original.
        kept: (height, width) of the image as it is kept.
    """
    window, single = Window((0, 0, *original), kept), ~objects.crowd
    boxes = torch.from_numpy(objects.boxes).float().view(-1, 2, 2)
    boxes = window.move_points(boxes, 0.5).view(-1, 4)
    points = None
    if objects.keypoints is not None:
        rows = torch.from_numpy(objects.keypoints[single]).float()
        points = torch.cat([window.move_points(rows[:, :, :2], 0.0), rows[:, :, 2:]], dim=2)
    layers, layer_of = _draw_layers(objects, original, window)
    return BoxTargets(
        boxes=boxes[single],
        class_ids=torch.from_numpy(objects.class_ids[single]).long(),
        ignored=boxes[~single],
        layers=layers,
        layer_of=layer_of,
        points=points,
    )


def _draw_layers(objects: Objects, original: Size, window: Window) -> tuple[Tensor, Tensor]:
    """Masks of the objects that are no crowds, in as few layers as a greedy search finds."""
    masks = [mask for mask, crowd in zip(objects.masks, objects.crowd, strict=False) if not crowd]
    layers: list[np.ndarray] = []
    layer_of = np.full(int((~objects.crowd).sum()), -1, np.int64)
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        drawn = torch.from_numpy(decode_mask(to_run_lengths(mask, original)))
        bitmap = (drawn if window.size == original else window.move_labels(drawn)).numpy()
        lines, places = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if not len(lines):
            continue
        part = slice(lines[0], lines[-1] + 1), slice(places[0], places[-1] + 1)
        inside = bitmap[part]
        at = next((i for i, layer in enumerate(layers) if not layer[part][inside].any()), None)
        if at is None:
            at = len(layers)
            layers.append(np.zeros(window.size, np.int32))
        layers[at][part][inside] = number + 1
        layer_of[number] = at
    stacked = np.stack(layers) if layers else np.zeros((0, *window.size), np.int32)
    return torch.from_numpy(stacked), torch.from_numpy(layer_of)
