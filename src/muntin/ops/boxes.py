# SPDX-License-Identifier: Apache-2.0
"""Boxes: anchors, pyramid levels, overlap, suppression (NMS) and masks of boxes.

Boxes are (x1, y1, x2, y2) in pixels. NMS and RoIAlign are torchvision's; this file has what
torchvision lacks, hard-codes, keeps private, or takes seconds to import.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from muntin.ops.torchvision_operators import batched_nms, nms
from muntin.shapes import Bool, Float, Int, Size

Suppression = Literal["hard", "soft", "none"]
_LARGEST_LOG = math.log(1000 / 16)  # no box grows more: exp would overflow


def make_anchors(
    cells: Size,
    stride: float | tuple[float, float],
    side: float,
    ratios: tuple[float, ...],
    *,
    rounded: bool,
    device: torch.device | None = None,
) -> Float[Tensor, "N 4"]:
    """Create the anchors of a map, centred on the upper left corner of each cell.

    Row by row, one ratio (height / width) after another within a cell; all have the area of a
    square of `side` pixels. `stride` is (down, across) if steps differ. `rounded` rounds the edges
    to whole pixels around the corner (torchvision).
    """
    high = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()
    wide = side / high
    high = side * high
    # Corners relative to the centre: (-w/2, -h/2, w/2, h/2).
    shapes = torch.stack([-wide, -high, wide, high], dim=1) / 2  # A, 4
    if rounded:
        shapes = shapes.round()
    corners = grid_points(cells, stride, offset=0.0, device=device)  # N, 2
    return (corners.repeat(1, 2)[:, None] + shapes[None]).reshape(-1, 4)


def grid_points(
    cells: Size,
    stride: float | tuple[float, float],
    *,
    offset: float,
    device: torch.device | None = None,
) -> Float[Tensor, "N 2"]:
    """Compute (x, y) of every cell in pixels, row by row.

    `stride` is (down, across) if steps differ; an `offset` of 0 is the upper left corner of the
    cell, 0.5 its centre.
    """
    down, along = stride if isinstance(stride, tuple) else (stride, stride)
    y = (torch.arange(cells[0], dtype=torch.float32, device=device) + offset) * down
    x = (torch.arange(cells[1], dtype=torch.float32, device=device) + offset) * along
    return torch.stack([x.repeat(cells[0]), y.repeat_interleave(cells[1])], dim=1)


def boxes_at(
    points: Float[Tensor, "N 2"], distances: Float[Tensor, "... N 4"]
) -> Float[Tensor, "... N 4"]:
    """Boxes whose edges are these distances (left, top, right, bottom) from their points."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def image_indices(parts: list[Tensor]) -> Int[Tensor, " Q"]:
    """Give the image index of each row of concatenated parts."""
    # On the CPU: on a GPU it would wait for the counts, to know how many rows there are.
    counts = torch.tensor([len(part) for part in parts])
    return torch.repeat_interleave(counts).to(parts[0].device)


def assign_levels(boxes: Float[Tensor, "N 4"], strides: tuple[float, ...]) -> Int[Tensor, " N"]:
    """Assign each box to a pyramid level: 224 pixels to stride 16, 112 to stride 8, and so on.

    Strides are finest first, each twice the previous one. Lin et al. 2017 (arXiv 1612.03144),
    equation 1.
    """
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    scale = (width * height).clamp(min=0).sqrt() / 224 * 16 / strides[0]
    # The epsilon keeps a box of exactly 224 pixels on its level despite rounding.
    levels = torch.floor(torch.log2(scale + 1e-6))
    return levels.clamp(0, len(strides) - 1).long()


def covered_fraction(
    boxes: Float[Tensor, "N 4"], others: Float[Tensor, "M 4"]
) -> Float[Tensor, " N"]:
    """Largest fraction of each box that is covered by one of the others, in [0, 1]."""
    if not len(others):
        return boxes.new_zeros(len(boxes))
    upper = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    lower = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    inside = (lower - upper).clamp(min=0).prod(dim=2)  # N, M
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)
    return inside.amax(dim=1) / area.clamp(min=1e-6)


def box_iou(boxes: Float[Tensor, "N 4"], others: Float[Tensor, "M 4"]) -> Float[Tensor, "N M"]:
    """Intersection over union of every two boxes, in [0, 1]; NaN for two without area."""
    upper = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    lower = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    wide, high = (lower - upper).clamp(min=0).unbind(dim=2)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, others)]
    shared = wide * high
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def encode_offsets(
    targets: Float[Tensor, "N 4"], boxes: Float[Tensor, "N 4"], stds: tuple[float, ...]
) -> Float[Tensor, "N 4"]:
    """Offsets that move boxes to targets: centre in sides, logarithm of sides; divided by `stds`.

    Girshick et al. 2014 (arXiv 1311.2524), appendix C. Bits as torchvision 0.29.2.
    """
    weights = torch.tensor([1 / std for std in stds], dtype=targets.dtype, device=targets.device)
    sides, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centres, aims = boxes[:, :2] + 0.5 * sides, targets[:, :2] + 0.5 * wanted
    moves = weights[:2] * (aims - centres) / sides
    return torch.cat([moves, weights[2:] * torch.log(wanted / sides)], dim=1)


def decode_offsets(
    offsets: Float[Tensor, "N S 4"], boxes: Float[Tensor, "N 4"], stds: tuple[float, ...]
) -> Float[Tensor, "N S 4"]:
    """Move boxes by the offsets of `encode_offsets`, S of them for each box."""
    boxes = boxes.to(offsets.dtype)[:, None]
    sides = boxes[..., 2:] - boxes[..., :2]  # N, 1, 2
    centres = boxes[..., :2] + 0.5 * sides
    # Divided by 1 / std, as published, not multiplied by std: the last bit differs.
    x, y, wide, high = (offsets[..., i] / (1 / std) for i, std in enumerate(stds))
    moved = torch.stack([x, y], dim=-1) * sides + centres
    grown = torch.stack([wide, high], dim=-1).clamp(max=_LARGEST_LOG).exp() * sides
    return torch.cat([moved - 0.5 * grown, moved + 0.5 * grown], dim=-1)


def suppress_groups(
    boxes: Float[Tensor, "N 4"], scores: Float[Tensor, " N"], groups: Int[Tensor, " N"], iou: float
) -> Int[Tensor, " M"]:
    """Non-maximum suppression within each group; indices of the kept boxes, best first."""
    if not torch.compiler.is_exporting():
        return batched_nms(boxes, scores, groups, iou)
    # NMS has no groups in an exported graph: shift each group beyond the extent of all boxes.
    apart = groups.to(boxes) * (boxes.max() + 1)
    return nms(boxes + apart[:, None], scores, iou)


def survives(
    boxes: Float[Tensor, "B N 4"],
    scores: Float[Tensor, "B N"],
    groups: Int[Tensor, "B N"],
    num_groups: int,
    iou: float,
) -> Bool[Tensor, "B N"]:
    """Which boxes no better one of their image and group suppresses; one NMS for the batch."""
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    apart = (image * num_groups + groups).flatten()
    kept = suppress_groups(boxes.flatten(0, 1), scores.flatten(), apart, iou)
    alive = torch.zeros_like(apart, dtype=torch.bool).index_fill(0, kept, True)
    return alive.view_as(scores)


def suppress(
    boxes: Float[Tensor, "N 4"],
    scores: Float[Tensor, " N"],
    groups: Int[Tensor, " N"],
    *,
    iou: float,
    kind: Suppression = "hard",
    limit: int = 1000,
    min_score: float = 0.0,
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """Remove duplicate boxes (NMS); gives indices of the kept boxes, best first, and their scores.

    A box is suppressed by a better one above an IoU of `iou`: "hard" removes it; "soft" multiplies
    its score by (1 - IoU), the linear rule of Bodla et al. 2017 (arXiv 1704.04503), after which
    `min_score` applies; "none" keeps all boxes. Boxes of different `groups` (classes) never
    suppress each other.
    """
    if kind == "none":
        # Stable: equal scores keep the order of the boxes on every device.
        order = scores.argsort(descending=True, stable=True)
        order = order[scores[order] >= min_score][:limit]
        return order, scores[order]
    if kind == "hard":
        keep = suppress_groups(boxes.float(), scores, groups, iou)
        keep = keep[scores[keep] >= min_score][:limit]
        return keep, scores[keep]
    return _suppress_softly(boxes, scores, groups, iou, limit, min_score)


def _suppress_softly(
    boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, limit: int, min_score: float
) -> tuple[Tensor, Tensor]:
    scores = scores.clone()
    kept: list[int] = []
    values: list[float] = []
    for _ in range(min(limit, len(boxes))):
        best = int(scores.argmax())
        value = float(scores[best])
        if value < min_score or value == -torch.inf:
            break
        kept.append(best)
        values.append(value)
        overlap = box_iou(boxes[best : best + 1], boxes)[0]
        # Linear Soft-NMS (equation 2): s <- s (1 - IoU) for boxes above the threshold.
        touched = (overlap > iou) & (groups == groups[best])
        scores = torch.where(touched, scores * (1 - overlap), scores)
        scores[best] = -torch.inf
    places = torch.tensor(kept, dtype=torch.long, device=boxes.device)
    return places, torch.tensor(values, dtype=scores.dtype, device=boxes.device)


def paste_mask(
    mask: Float[Tensor, "m m"], box: Float[Tensor, "4"], size: Size
) -> tuple[Bool[Tensor, "h w"], int, int]:
    """Resize the mask of a box, scores in [0, 1] on a grid over it, to pixels of the image.

    Gives the mask of the covered pixels, True where the score at the pixel centre is at least 0.5,
    and the row and column of its upper left pixel in the image. He et al. 2017 (arXiv 1703.06870),
    section 3.1; as in detectron2, scores fall to 0 beyond the centres of the outer cells.
    """
    left, top, right, bottom = box.tolist()
    first_row, first_column = max(0, int(top)), max(0, int(left))
    last_row, last_column = min(size[0], int(-(-bottom // 1))), min(size[1], int(-(-right // 1)))
    if last_row <= first_row or last_column <= first_column:
        return torch.zeros(0, 0, dtype=torch.bool), first_row, first_column
    rows = _sampling(first_row, last_row, top, bottom, mask.shape[0])
    columns = _sampling(first_column, last_column, left, right, mask.shape[1])
    # Two products, as bilinear weights are separable; column by column, as run lengths are.
    values = columns @ mask.t() @ rows.t()  # w, h
    return (values >= 0.5).t(), first_row, first_column


def _sampling(first: int, last: int, start: float, end: float, cells: int) -> Float[Tensor, "N m"]:
    """Weights of linear interpolation at pixels `first` to `last` from cells between two edges."""
    places = (np.arange(first, last) + 0.5 - start) * (cells / max(end - start, 1e-6)) - 0.5
    near = 1 - np.abs(places[:, None] - np.arange(cells))
    return torch.from_numpy(near.clip(0).astype(np.float32))


def check_regions(
    maps: Tensor, rois: Tensor, scale: float, high: int, wide: int, ratio: int, *rest: object
) -> None:
    """Check what RoIAlign does not: image numbers and coordinates of regions; its own arguments.

    Raises:
        ValueError: A region (image, x1, y1, x2, y2) is of no image or reaches far out of its map.
    """
    reach = 2 * max(maps.shape[2:]) + 2
    inside = (rois[:, 1:] * scale).abs() <= reach  # false for nan too
    if not (rois[:, 0] >= 0).logical_and(rois[:, 0] < len(maps)).all() or not inside.all():
        message = "regions outside of the images"
        raise ValueError(message)
    if ratio > 16:
        message = f"{ratio} samples a cell of a region"
        raise ValueError(message)
