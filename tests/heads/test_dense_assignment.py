# SPDX-License-Identifier: Apache-2.0
"""Dynamic assignment equals plain loops over objects and cells."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou

from muntin.heads.dense_assignment import (
    REACH,
    Cells,
    Objects,
    assign_many,
    assign_one,
    find_pairs,
    overlap,
    pair_cells,
    rank_within,
)

CELLS = Cells(((6, 7), (3, 4), (2, 2)), (8.0, 16.0, 32.0))
WIDE, HIGH = 56, 48


def places():
    for (high, wide), stride in zip(CELLS.sizes, CELLS.strides, strict=True):
        for row in range(high):
            for column in range(wide):
                yield (column + 0.5) * stride, (row + 0.5) * stride, stride


def scene(counts, *, seed=0, largest=30.0, classes=3):
    """Random objects of some images, and predictions near them."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    corners = torch.rand(total, 2, generator=generator) * torch.tensor([WIDE - 4.0, HIGH - 4.0])
    sides = torch.rand(total, 2, generator=generator) * largest + 1
    objects = Objects(
        torch.cat([corners, corners + sides], dim=1),
        torch.randint(classes, (total,), generator=generator),
        torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
    )
    points = torch.tensor([[x, y] for x, y, _ in places()]).repeat(len(counts), 1)
    distances = torch.rand(len(points), 4, generator=generator) * 16 + 1
    boxes = torch.cat([points - distances[:, :2], points + distances[:, 2:]], dim=1)
    logits = torch.randn(len(points), classes, generator=generator)
    return objects, boxes, logits


def slow_pairs(objects, boxes, logits):
    """(object, cell) -> (overlap, cost, distance), by the formulas of the docstrings."""
    found = {}
    for number, (box, class_id, image) in enumerate(zip(*objects, strict=True)):
        left, top, right, bottom = box.tolist()
        x, y = (left + right) / 2, (top + bottom) / 2
        for index, (px, py, stride) in enumerate(places()):
            dx, dy = abs(px - x), abs(py - y)
            wide, high = (right - left) / 2, (bottom - top) / 2
            if dx >= max(wide, stride) or dy >= max(high, stride):
                continue
            if max(dx, dy) >= REACH * stride:
                continue
            cell = int(image) * CELLS.total + index
            iou = float(box_iou(box[None], boxes[cell : cell + 1]))
            logit = logits[cell, class_id]
            score = float(logit.sigmoid())
            entropy = float(F.binary_cross_entropy_with_logits(logit, torch.tensor(iou)))
            cost = entropy * (score - iou) ** 2 - 3 * math.log(iou + 1e-7)
            away = math.hypot(dx, dy) / stride
            # Four cells a side are free of cost, so are the nearest levels of what is beyond.
            side = math.sqrt(4 * wide * high) / 4
            level = math.log2(min(max(side, 8.0), 32.0) / stride)
            found[number, cell] = (iou, cost + 10 ** (away - 3) + level**2, away)
    return found


def slow_many(pairs, count):
    wanted = {}
    for number in range(count):
        mine = [(cost, cell, iou) for (n, cell), (iou, cost, _) in pairs.items() if n == number]
        best = sorted((iou for _, _, iou in mine), reverse=True)[:13]
        for cost, cell, _ in sorted(mine)[: max(1, int(sum(best)))]:
            if cell not in wanted or cost < wanted[cell][0]:
                wanted[cell] = (cost, number)
    return {cell: number for cell, (_, number) in wanted.items()}


def slow_one(pairs):
    """Objects propose to their cheapest free cell; of several, a cell takes the cheapest."""
    free = {key: (iou, cost + away**2) for key, (iou, cost, away) in pairs.items()}
    taken = {}
    while free:
        wishes = {}
        for (number, cell), (_, cost) in free.items():
            if number not in wishes or cost < wishes[number][0]:
                wishes[number] = (cost, cell)
        won = {}
        for number, (cost, cell) in wishes.items():
            if cell not in won or cost < won[cell][0]:
                won[cell] = (cost, number)
        taken |= {cell: number for cell, (_, number) in won.items()}
        free = {
            (n, c): v for (n, c), v in free.items() if c not in taken and n not in taken.values()
        }
    return taken


def as_dict(pairs):
    return dict(zip(pairs.cells.tolist(), pairs.objects.tolist(), strict=True))


@pytest.mark.parametrize(
    ("counts", "largest"), [((3, 0, 5), 30.0), ((12,), 3.0), ((1, 1), 60.0), ((0, 0), 1.0)]
)
def test_as_plain_loops(counts, largest):
    objects, boxes, logits = scene(counts, largest=largest)
    (pairs,) = find_pairs(objects, CELLS, boxes, logits)
    slow = slow_pairs(objects, boxes, logits)
    keys = [*zip(pairs.objects.tolist(), pairs.cells.tolist(), strict=True)]
    assert set(keys) == set(slow)
    expected = [slow[pair] for pair in keys]
    values = torch.stack([pairs.overlaps, pairs.costs, pairs.distances], dim=1)
    torch.testing.assert_close(values, torch.tensor(expected).view(-1, 3), atol=1e-4, rtol=1e-4)
    assert as_dict(assign_many(pairs, len(objects.boxes))) == slow_many(slow, len(objects.boxes))
    assert as_dict(assign_one(pairs)) == slow_one(slow)


def test_the_twin_learns_what_the_classifier_learns_too():
    # With the same predictions the cell of the twin is one that the classifier learns for that
    # object: neither teaches against the other. Others got none there, or a better one is taken.
    objects, boxes, logits = scene((4, 3), seed=3, largest=30.0)
    (pairs,) = find_pairs(objects, CELLS, boxes, logits)
    many, one = assign_many(pairs, len(objects.boxes)), assign_one(pairs)
    assert len(one.objects.unique()) == len(one.objects) == len(objects.boxes)
    several = as_dict(many)
    same = [several.get(cell) == number for cell, number in as_dict(one).items()]
    assert sum(same) >= 5
    assert all(
        several.get(cell, n) in (n, *objects_near(objects, n)) for cell, n in as_dict(one).items()
    )


def objects_near(objects, number):
    overlaps = box_iou(objects.boxes[number][None], objects.boxes)[0]
    return torch.where(overlaps > 0)[0].tolist()


def test_levels_by_size():
    # Four cells of 8 or 16 pixels, and what is nearest to those on the finest or coarsest level.
    for side, expected in (
        (1.0, [0, 1, 4]),
        (32.0, [0, 1, 4]),
        (64.0, [1, 0, 1]),
        (500.0, [4, 1, 0]),
    ):
        box = torch.tensor([[28.0, 24.0, 28.0, 24.0]]) + side / 2 * torch.tensor([-1, -1, 1, 1])
        one = Objects(box, torch.zeros(1).long(), torch.zeros(1).long())
        _, cells, _, octaves = pair_cells(one, CELLS)
        firsts = [octaves[cells >= start][0] for start in (0, 42, 54)]  # finest levels come first
        assert firsts == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_tiny_objects_have_cells_on_every_level(size):
    box = torch.tensor([[21.3, 17.8, 21.3 + size, 17.8 + size]])
    objects = Objects(box, torch.tensor([1]), torch.tensor([0]))
    _, boxes, logits = scene((1,))
    (pairs,) = find_pairs(objects, CELLS, boxes, logits)
    starts = [0, 42, 54, 58]
    for first, last in pairwise(starts):
        assert ((pairs.cells >= first) & (pairs.cells < last)).any()
    assert pairs.costs.isfinite().all()
    assert len(assign_one(pairs).cells) == 1


def test_objects_beyond_the_image_have_no_cells():
    objects = Objects(
        torch.tensor([[500.0, 500.0, 520.0, 520.0]]), torch.tensor([0]), torch.tensor([0])
    )
    _, boxes, logits = scene((1,))
    (pairs,) = find_pairs(objects, CELLS, boxes, logits)
    assert len(pairs.cells) == len(assign_one(pairs).cells) == len(assign_many(pairs, 1).cells) == 0


def test_many_objects_stay_small():
    # 400 objects an image: pairs are bounded by the reach, whatever the size of the map.
    cells = Cells(((192, 192), (96, 96), (48, 48)), (4.0, 8.0, 16.0))
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(400, 2, generator=generator) * 700
    objects = Objects(
        torch.cat([corners, corners + 60], dim=1),
        torch.zeros(400, dtype=torch.long),
        torch.zeros(400, dtype=torch.long),
    )
    boxes = torch.zeros(cells.total, 4)
    (pairs,) = find_pairs(objects, cells, boxes, torch.zeros(cells.total, 1))
    assert len(pairs.cells) <= 400 * 3 * (2 * REACH + 1) ** 2
    assert len(assign_one(pairs).objects.unique()) == 400


def test_ranks_within_groups():
    groups = torch.tensor([5, 2, 5, 5, 2])
    values = torch.tensor([0.3, 0.9, 0.1, 0.3, 0.2])
    assert rank_within(groups, values).tolist() == [1, 1, 0, 2, 0]
    assert rank_within(groups[:0], values[:0]).tolist() == []


def test_overlap_is_that_of_torchvision():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(20, 4, generator=generator) * 10 for _ in range(2))
    first, second = (torch.cat([b[:, :2], b[:, :2] + b[:, 2:]], dim=1) for b in (first, second))
    torch.testing.assert_close(overlap(first, second), box_iou(first, second).diagonal())
    empty = torch.zeros(1, 4)
    assert overlap(empty, empty).tolist() == [0.0]
