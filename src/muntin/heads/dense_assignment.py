# SPDX-License-Identifier: Apache-2.0
"""Soft-label dynamic assignment: which cells of a pyramid learn which objects.

An object may be learnt by the cells around its centre. The cost of each such pair of object and
cell is computed from what the cell predicts at the moment; several cheap cells learn the object
(`assign_many`), or the cheapest one alone (`assign_one`). Only pairs are in memory, never a matrix
of all cells and all objects, and a batch is assigned at once.

Source:
    Lyu et al. 2022, "RTMDet" (arXiv 2212.07784), section 3.3: the three costs and their weights,
    and the number of cells from the summed overlap (Ge et al. 2021, YOLOX, arXiv 2107.08430).
    `assign_one` uses the same costs for a second classifier, as Wang et al. 2024, YOLOv10
    (arXiv 2405.14458), section 3.1, propose with another measure. Compared with plain loops in
    tests/heads/test_dense_assignment.py. Differs: an object smaller than a cell may be learnt by
    the cells around it, and cells more than `REACH` strides from its centre never learn it, which
    the cost of the centre all but excludes.

Letters: B images, N cells of an image, G objects of the batch, P pairs, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from muntin.shapes import Float, Int, Size

REACH = 4
"""Farthest distance of a cell from the centre of what it learns, in strides across and down."""

MOST_CELLS = 13
"""The best overlaps that are summed to the number of cells of an object (RTMDet)."""

BOX_COST = 3.0
"""Weight of the overlap beside the other two costs (RTMDet: 1, 3, 1)."""

ROUNDS = 5
"""How often `assign_one` gives objects without a cell another one."""


class Cells(NamedTuple):
    """The cells of a pyramid: of each level its size in cells and its stride in pixels."""

    sizes: tuple[Size, ...]
    strides: tuple[float, ...]

    @property
    def total(self) -> int:
        """Cells of an image."""
        return sum(high * wide for high, wide in self.sizes)


class Objects(NamedTuple):
    """The objects of all images of a batch, one after another."""

    boxes: Float[Tensor, "G 4"]
    class_ids: Int[Tensor, " G"]
    images: Int[Tensor, " G"]


class Pairs(NamedTuple):
    """Cells and the objects that they learn, or may learn.

    Attributes:
        objects: Number of the object.
        cells: Number of the cell, counted over all images of the batch.
        overlaps: IoU of the box that the cell predicts and that of the object.
        costs: What the pair costs.
        distances: Of both centres, in strides.
    """

    objects: Int[Tensor, " P"]
    cells: Int[Tensor, " P"]
    overlaps: Float[Tensor, " P"]
    costs: Float[Tensor, " P"]
    distances: Float[Tensor, " P"]

    def select(self, rows: Tensor) -> Pairs:
        """Keep some pairs, by number or by truth."""
        return Pairs(*(part[rows] for part in self))


def pair_cells(objects: Objects, cells: Cells) -> tuple[Tensor, ...]:
    """Pair each object with the cells in its box and within `REACH` strides of its centre.

    A box narrower than two cells counts as that wide, so that every object has a cell on each
    level. Gives numbers of objects, of cells, the distance of both centres in strides and what the
    level costs, (P) each: squared octaves from the one where the object has four cells a side,
    nothing on the nearest one for objects that are too small or too large for every level.
    """
    steps = torch.arange(-REACH, REACH + 1, device=objects.boxes.device)
    middles = (objects.boxes[:, :2] + objects.boxes[:, 2:]) / 2
    halves = (objects.boxes[:, 2:] - objects.boxes[:, :2]) / 2
    wanted = (halves.clamp(min=5e-4).prod(dim=1).sqrt() / 2).clamp(
        cells.strides[0], cells.strides[-1]
    )
    parts, start = [], 0
    for (high, wide), stride in zip(cells.sizes, cells.strides, strict=True):
        places = (middles / stride).floor().long()  # G, 2: column and row of the centre
        columns, rows = places[:, :1] + steps, places[:, 1:] + steps  # G, 2*REACH + 1
        away = tuple(
            ((numbers + 0.5) * stride - middles[:, axis, None]).abs()
            for axis, numbers in enumerate((columns, rows))
        )
        near = tuple(
            (part < halves[:, axis, None].clamp(min=stride))
            & (part < REACH * stride)
            & (numbers >= 0)
            & (numbers < side)
            for axis, (part, numbers, side) in enumerate(
                zip(away, (columns, rows), (wide, high), strict=True)
            )
        )
        which, down, across = torch.where(near[1][:, :, None] & near[0][:, None, :])
        at = start + rows[which, down] * wide + columns[which, across]
        distance = torch.hypot(away[0][which, across], away[1][which, down]) / stride
        octaves = torch.log2(wanted / stride).square()
        parts.append((which, objects.images[which] * cells.total + at, distance, octaves[which]))
        start += high * wide
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


@torch.no_grad()
def find_pairs(
    objects: Objects, cells: Cells, boxes: Float[Tensor, "N 4"], *logits: Float[Tensor, "N K"]
) -> list[Pairs]:
    """Compute what each pair of object and cell costs for each classifier of the cells.

    Boxes and logits are those of the images one after another. The cost falls with the overlap
    and with how close the score of the object's class is to it, and rises with the distance.
    """
    numbers, at, distance, octaves = pair_cells(objects, cells)
    overlaps = overlap(boxes[at], objects.boxes[numbers])
    class_ids = objects.class_ids[numbers]
    apart = BOX_COST * torch.log(overlaps + 1e-7)
    # RTMDet: equals the other costs three strides from the centre.
    away = 10 ** (distance - 3)
    costs = (focal_loss(one[at, class_ids], overlaps) - apart + away + octaves for one in logits)
    return [Pairs(numbers, at, overlaps, cost, distance) for cost in costs]


def assign_many(pairs: Pairs, num_objects: int) -> Pairs:
    """Give each object its cheapest cells, as many as its best overlaps sum to, at least one.

    A cell that several objects want learns that for which it is cheapest.
    """
    best = rank_within(pairs.objects, -pairs.overlaps) < MOST_CELLS
    sums = pairs.overlaps.new_zeros(num_objects)
    sums = sums.index_add(0, pairs.objects, pairs.overlaps * best)
    counts = sums.long().clamp(min=1)
    wanted = pairs.select(rank_within(pairs.objects, pairs.costs) < counts[pairs.objects])
    return wanted.select(rank_within(wanted.cells, wanted.costs) == 0)


def assign_one(pairs: Pairs) -> Pairs:
    """Give each object its cheapest cell, and no cell to two objects.

    The distance costs more than in `assign_many`, so that which cell it is can be seen early. Where
    two objects want the same cell, the one for which it is cheaper gets it, and the other takes the
    next free one.
    """
    pairs = pairs._replace(costs=pairs.costs + pairs.distances.square())
    taken = [pairs.select(torch.zeros_like(pairs.objects, dtype=torch.bool))]
    for _ in range(ROUNDS):
        wanted = pairs.select(rank_within(pairs.objects, pairs.costs) == 0)
        won = wanted.select(rank_within(wanted.cells, wanted.costs) == 0)
        taken.append(won)
        over = torch.isin(pairs.objects, won.objects) | torch.isin(pairs.cells, won.cells)
        pairs = pairs.select(~over)
    return Pairs(*(torch.cat(parts) for parts in zip(*taken, strict=True)))


def rank_within(groups: Int[Tensor, " P"], values: Float[Tensor, " P"]) -> Int[Tensor, " P"]:
    """Rank each value, from 0 for the smallest, among those of its group; ties keep their order."""
    order = values.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    places = torch.arange(len(groups), device=groups.device)
    # Where the group of a place begins: the first place that has its number.
    starts = torch.searchsorted(ordered, ordered)
    return torch.empty_like(places).index_copy(0, order, places - starts)


def overlap(boxes: Float[Tensor, "P 4"], others: Float[Tensor, "P 4"]) -> Float[Tensor, " P"]:
    """IoU of each box with the other one of its row; 0 for boxes without area."""
    upper, lower = torch.maximum(boxes, others), torch.minimum(boxes, others)
    both = (lower[:, 2:] - upper[:, :2]).clamp(min=0).prod(dim=1)
    areas = [(part[:, 2:] - part[:, :2]).clamp(min=0).prod(dim=1) for part in (boxes, others)]
    return both / (areas[0] + areas[1] - both).clamp(min=1e-6)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Quality focal loss of each logit: cross-entropy times the squared error of the score.

    `wanted` are scores in [0, 1] of any value (Li et al. 2020, arXiv 2006.04388, equation 2).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return entropy * (logits.sigmoid() - wanted).square()
