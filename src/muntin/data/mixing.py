# SPDX-License-Identifier: Apache-2.0
"""One training sample from several: mosaics, and objects pasted into other images.

Source:
    Bochkovskiy et al. 2020 (arXiv 2004.10934), section 3.3: four images meet at a random point.
    Ghiasi et al. 2021 (arXiv 2012.07177): a random part of the objects of another image, cut out by
    their masks; what they hide is erased from the masks below.
    Differs: images of a mosaic keep the scale of single ones, so that objects have their size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.data.joint_transforms import MIN_VISIBLE, boxes_of_masks
from muntin.data.transforms import Sample
from muntin.shapes import Bool, Int, Size
from muntin.targets import BoxTargets

Part = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


def split_canvas(size: Size, rng: np.random.Generator) -> list[Part]:
    """Split a canvas at a random point into four parts, none narrower than a quarter of a side."""
    row, column = (
        min(max(1, round(side * float(rng.uniform(0.25, 0.75)))), max(1, side - 1)) for side in size
    )
    return [
        (top, left, high, wide)
        for top, high in ((0, row), (row, size[0] - row))
        for left, wide in ((0, column), (column, size[1] - column))
    ]


def join_mosaic(
    samples: Sequence[Sample], parts: Sequence[Part], size: Size, color: tuple[int, ...]
) -> Sample:
    """Put samples into the parts of a canvas; those that are smaller touch the common corner."""
    middle = parts[-1][:2]
    fill = torch.tensor(color, dtype=samples[0].pixels.dtype)[:, None, None]
    canvas = fill.repeat(1, *size)
    moved = []
    for sample, (top, left, _, _) in zip(samples, parts, strict=True):
        high, wide = sample.pixels.shape[1:]
        # Those above or left of the common corner end there.
        row = top if top == middle[0] else middle[0] - high
        column = left if left == middle[1] else middle[1] - wide
        canvas[:, row : row + high, column : column + wide] = sample.pixels
        assert isinstance(sample.target, BoxTargets), "images with objects have boxes"
        moved.append(_place(sample.target, (row, column), size))
    return Sample(canvas, samples[0].size, _join(moved, apart=True))


def paste_objects(base: Sample, other: Sample, rng: np.random.Generator) -> Sample:
    """Paste each object of another image that has a mask, or not, with even chances.

    Objects that are hidden to more than three quarters are dropped; boxes of others that have a
    mask are drawn tight around what is left.
    """
    below, above = base.target, other.target
    assert isinstance(below, BoxTargets), "images with objects have boxes"
    assert isinstance(above, BoxTargets), "images with objects have boxes"
    size: Size = (base.pixels.shape[1], base.pixels.shape[2])
    high, wide = (min(pair) for pair in zip(size, other.pixels.shape[1:], strict=True))
    # What lies beyond the other image's edges is not pasted.
    whole = _count_pixels(above)
    above = _place(above, (0, 0), size)
    inside = _count_pixels(above)
    chosen = torch.from_numpy(rng.random(len(above.boxes)) < 0.5)
    seen = (inside > 0) & (inside >= MIN_VISIBLE * whole)
    above = _tighten(above, inside < whole).keep(chosen & seen)
    hiding = (above.layers > 0).any(dim=0)
    pixels = base.pixels.clone()
    pixels[:, :high, :wide] = torch.where(
        hiding[:high, :wide], other.pixels[:, :high, :wide], pixels[:, :high, :wide]
    )
    before = _count_pixels(below)
    below = below._replace(layers=below.layers.masked_fill(hiding, 0))
    after = _count_pixels(below)
    drawn = below.layer_of >= 0
    below = _tighten(below, after < before).keep(~drawn | (after >= MIN_VISIBLE * before))
    above = above._replace(ignored=above.ignored[:0])  # crowds have no mask to be cut out by
    return Sample(pixels, base.size, _join([below, above], apart=False))


def _tighten(targets: BoxTargets, changed: Bool[Tensor, " N"]) -> BoxTargets:
    """Draw boxes tight around their masks where these `changed`."""
    tight, has = boxes_of_masks(targets)
    return targets._replace(boxes=torch.where((has & changed)[:, None], tight, targets.boxes))


def _count_pixels(targets: BoxTargets) -> Int[Tensor, " N"]:
    """Pixels of the mask of each object."""
    return torch.bincount(targets.layers.flatten().long(), minlength=len(targets.boxes) + 1)[1:]


def _place(targets: BoxTargets, corner: tuple[int, int], size: Size) -> BoxTargets:
    """Move targets by (down, right) into a canvas of another size."""
    down, right = corner
    offset = torch.tensor([right, down, right, down], dtype=torch.float32)
    layers = targets.layers.new_zeros(len(targets.layers), *size)
    seen = targets.layers[:, : size[0] - down, : size[1] - right]
    layers[:, down : down + seen.shape[1], right : right + seen.shape[2]] = seen
    points = targets.points
    if points is not None:
        points = points + torch.tensor([right, down, 0.0])
    return targets._replace(
        boxes=targets.boxes + offset, ignored=targets.ignored + offset, layers=layers, points=points
    )


def _join(targets: Sequence[BoxTargets], *, apart: bool) -> BoxTargets:
    """Give the objects of several targets of one size; masks that lie `apart` share layers."""
    depth = max(len(one.layers) for one in targets)
    layers, layer_of, objects, planes = [], [], 0, 0
    for one in targets:
        numbered = torch.where(one.layers > 0, one.layers + objects, 0)
        layers.append(F.pad(numbered, (0, 0, 0, 0, 0, depth - len(numbered) if apart else 0)))
        layer_of.append(torch.where(one.layer_of >= 0, one.layer_of + planes, -1))
        objects, planes = objects + len(one.boxes), planes + (0 if apart else len(one.layers))
    points = [one.points for one in targets if one.points is not None]
    return BoxTargets(
        boxes=torch.cat([one.boxes for one in targets]),
        class_ids=torch.cat([one.class_ids for one in targets]),
        ignored=torch.cat([one.ignored for one in targets]),
        layers=torch.stack(layers).amax(dim=0) if apart else torch.cat(layers),
        layer_of=torch.cat(layer_of),
        points=torch.cat(points) if points else None,
    )
