# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From the objects that are annotated in an image to the targets of a detector."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from muntin.run_lengths import decode_mask, to_run_lengths
from muntin.samples import Objects
from muntin.shapes import Size
from muntin.targets import BoxTargets

__all__ = ["nearest_pixels", "to_box_targets"]


def to_box_targets(objects: Objects, original: Size, kept: Size) -> BoxTargets:
    """Bring annotated objects to the pixels of an image as it is kept.

    Args:
        objects: In pixels of the original.
        original: (height, width) of the original.
        kept: (height, width) of the image as it is kept.
    """
    scale = np.array([kept[1] / original[1], kept[0] / original[0]] * 2, np.float32)
    boxes = torch.from_numpy(objects.boxes.astype(np.float32) * scale)
    single = torch.from_numpy(~objects.crowd)
    layers, layer_of = _draw_layers(objects, original, kept)
    return BoxTargets(
        boxes=boxes[single],
        class_ids=torch.from_numpy(objects.class_ids)[single].long(),
        ignored=boxes[~single],
        layers=layers,
        layer_of=layer_of,
        points=_to_points(objects, scale[:2]),
    )


def _to_points(objects: Objects, scale: np.ndarray) -> Tensor | None:
    """Keypoints of the objects that are no crowds; they are middles of pixels, not edges."""
    if objects.keypoints is None:
        return None
    points = torch.from_numpy(objects.keypoints[~objects.crowd]).float()
    xy = (points[:, :, :2] + 0.5) * torch.from_numpy(scale) - 0.5
    return torch.cat([xy, points[:, :, 2:]], dim=2)


def _draw_layers(objects: Objects, original: Size, kept: Size) -> tuple[Tensor, Tensor]:
    """Masks of the objects that are no crowds, in as few layers as a greedy search finds."""
    masks = [mask for mask, crowd in zip(objects.masks, objects.crowd, strict=False) if not crowd]
    count = int((~objects.crowd).sum())
    layers: list[np.ndarray] = []
    layer_of = np.full(count, -1, np.int64)
    rows = nearest_pixels(original[0], kept[0])
    columns = nearest_pixels(original[1], kept[1])
    for number, mask in enumerate(masks):
        if mask is None:
            continue
        bitmap = decode_mask(to_run_lengths(mask, original))
        if kept != original:
            bitmap = bitmap[rows][:, columns]
        lines, places = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if not len(lines):
            continue
        part = slice(lines[0], lines[-1] + 1), slice(places[0], places[-1] + 1)
        inside = bitmap[part]
        at = next((i for i, layer in enumerate(layers) if not layer[part][inside].any()), None)
        if at is None:
            at = len(layers)
            layers.append(np.zeros(kept, np.int32))
        layers[at][part][inside] = number + 1
        layer_of[number] = at
    stacked = np.stack(layers) if layers else np.zeros((0, *kept), np.int32)
    return torch.from_numpy(stacked), torch.from_numpy(layer_of)


def nearest_pixels(before: int, after: int) -> np.ndarray:
    """Give the pixel of a line of `before` that is nearest to each of one of `after`."""
    return np.minimum(((np.arange(after) + 0.5) * before / after).astype(np.int64), before - 1)
