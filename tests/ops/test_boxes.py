# SPDX-License-Identifier: Apache-2.0
"""Boxes against torchvision where it has them, and against loops written from the papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection import _utils as detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, box_iou
from torchvision.ops.poolers import LevelMapper

from muntin.ops.boxes import (
    assign_levels,
    covered_fraction,
    decode_offsets,
    encode_offsets,
    grid_points,
    make_anchors,
    paste_mask,
    suppress,
)

RATIOS = (0.5, 1.0, 2.0)


def random_boxes(count: int, seed: int = 0, side: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    starts = torch.rand(count, 2, generator=generator) * side
    return torch.cat([starts, starts + torch.rand(count, 2, generator=generator) * side / 2], 1)


@pytest.mark.parametrize("cells", [(1, 1), (3, 7), (8, 5)])
@pytest.mark.parametrize(("stride", "side"), [(4, 32), (8, 48), (16, 100), (32, 256)])
def test_rounded_anchors_are_torchvisions(cells, stride, side):
    generator = AnchorGenerator(sizes=((side,),), aspect_ratios=(RATIOS,))
    high, wide = cells[0] * stride, cells[1] * stride
    images = ImageList(torch.zeros(1, 3, high, wide), [(high, wide)])
    (expected,) = generator(images, [torch.zeros(1, 1, *cells)])
    assert make_anchors(cells, stride, side, RATIOS, rounded=True).equal(expected)


def test_anchors_by_a_loop():
    rows = []
    for y in range(2):
        for x in range(3):
            for ratio in RATIOS:
                wide, high = 24 / math.sqrt(ratio), 24 * math.sqrt(ratio)
                rows.append(
                    [x * 8 - wide / 2, y * 8 - high / 2, x * 8 + wide / 2, y * 8 + high / 2]
                )
    anchors = make_anchors((2, 3), 8, 24, RATIOS, rounded=False)
    torch.testing.assert_close(anchors, torch.tensor(rows))
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(1)
    torch.testing.assert_close(areas, torch.full_like(areas, 24.0**2))


def test_points_of_cells():
    assert grid_points((2, 3), 4, offset=0.5).tolist() == [
        [2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]
    ]  # fmt: skip
    assert grid_points((1, 2), 8, offset=0.0).tolist() == [[0, 0], [8, 0]]


def test_levels_are_torchvisions():
    boxes = torch.cat([random_boxes(500, side=s) for s in (8, 40, 200, 1000, 5000)])
    expected = LevelMapper(2, 5)([boxes])
    assert assign_levels(boxes, (4.0, 8.0, 16.0, 32.0)).equal(expected)
    assert set(expected.tolist()) == {0, 1, 2, 3}


def test_levels_are_those_of_openmmlab_away_from_borders():
    # mmdet's SingleRoIExtractor: floor(log2(scale / 56 + 1e-6)).
    boxes = torch.cat([random_boxes(500, side=s) for s in (8, 40, 200, 1000, 5000)])
    scale = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    exact = torch.log2(scale / 56)
    clear = (exact - exact.round()).abs() > 1e-3
    expected = torch.floor(torch.log2(scale / 56 + 1e-6)).clamp(0, 3).long()
    assert clear.sum() > 2000
    assert assign_levels(boxes, (4.0, 8.0, 16.0, 32.0))[clear].equal(expected[clear])


def test_levels_at_borders_and_extremes():
    sides = torch.tensor([0.0, 1e-3, 111.9, 112.0, 223.9, 224.0, 448.0, 1e6])
    boxes = torch.stack([sides * 0, sides * 0, sides, sides], 1)
    assert assign_levels(boxes, (4.0, 8.0, 16.0, 32.0)).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]
    assert assign_levels(boxes, (8.0, 16.0)).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert assign_levels(boxes[:0], (4.0, 8.0)).shape == (0,)


def test_covered_share_by_a_loop():
    boxes, others = random_boxes(30), random_boxes(7, seed=1)
    expected = []
    for left, top, right, bottom in boxes.tolist():
        best = 0.0
        for x1, y1, x2, y2 in others.tolist():
            wide = max(0.0, min(right, x2) - max(left, x1))
            high = max(0.0, min(bottom, y2) - max(top, y1))
            best = max(best, wide * high / ((right - left) * (bottom - top)))
        expected.append(best)
    torch.testing.assert_close(covered_fraction(boxes, others), torch.tensor(expected))
    assert covered_fraction(boxes, boxes).allclose(torch.ones(30))
    assert covered_fraction(boxes, others[:0]).eq(0).all()
    assert covered_fraction(boxes[:0], others).shape == (0,)
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert covered_fraction(point, boxes).isfinite().all()


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_hard_suppression_is_torchvisions(iou, seed):
    boxes = random_boxes(200, seed)
    scores = torch.rand(200, generator=torch.Generator().manual_seed(seed))
    class_ids = torch.arange(200) % 3
    kept, values = suppress(boxes, scores, class_ids, iou=iou)
    assert kept.equal(batched_nms(boxes, scores, class_ids, iou))
    assert values.equal(scores[kept])
    assert (values.diff() <= 0).all()
    few, _ = suppress(boxes, scores, class_ids, iou=iou, limit=5, min_score=0.2)
    assert few.equal(kept[:5])
    sure, _ = suppress(boxes, scores, class_ids, iou=iou, min_score=0.5)
    assert sure.equal(kept[values >= 0.5])


def suppress_softly_by_a_loop(boxes, scores, class_ids, iou, least):
    """Figure 2 of Bodla et al. with the linear rule, on python lists."""
    left = list(range(len(boxes)))
    scores = scores.tolist()
    kept = []
    while left:
        best = max(left, key=lambda i: scores[i])
        if scores[best] < least:
            break
        kept.append((best, scores[best]))
        left.remove(best)
        for other in left:
            overlap = float(box_iou(boxes[best][None], boxes[other][None]))
            if overlap > iou and class_ids[best] == class_ids[other]:
                scores[other] *= 1 - overlap
    return kept


@pytest.mark.parametrize("iou", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_soft_suppression_is_that_of_the_paper(iou, class_agnostic):
    boxes = random_boxes(60, side=40)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(5))
    class_ids = torch.arange(60) % 2
    expected = suppress_softly_by_a_loop(
        boxes, scores, class_ids * (not class_agnostic), iou, least=0.05
    )
    kept, values = suppress(
        boxes, scores, class_ids * (not class_agnostic), iou=iou, kind="soft", min_score=0.05
    )
    assert kept.tolist() == [place for place, _ in expected]
    np.testing.assert_allclose(values, [value for _, value in expected], rtol=1e-5)
    few, _ = suppress(boxes, scores, class_ids, iou=iou, kind="soft", limit=3)
    assert len(few) == 3


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_suppression_of_few_and_of_equals(kind):
    none = torch.zeros(0, 4)
    kept, values = suppress(none, none[:, 0], torch.zeros(0).long(), iou=0.5, kind=kind)
    assert kept.shape == values.shape == (0,)
    assert kept.dtype == torch.long
    twice = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10]])
    ids = torch.tensor([0, 1])
    both, _ = suppress(twice, torch.tensor([0.9, 0.8]), ids, iou=0.5, kind=kind)
    assert both.tolist() == [0, 1], "classes do not suppress each other"
    one, _ = suppress(twice, torch.tensor([0.9, 0.8]), ids * 0, iou=0.5, kind=kind, min_score=0.05)
    assert one.tolist() == [0]


def paste_by_a_loop(mask, box, size):
    """As detectron2 does it: the whole image, sampled; here pixel by pixel."""
    m = mask.shape[0]
    padded = F.pad(mask, (1, 1, 1, 1)).tolist()
    left, top, right, bottom = box
    out = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            y = (row + 0.5 - top) / (bottom - top) * m - 0.5 + 1
            x = (column + 0.5 - left) / (right - left) * m - 0.5 + 1
            y0, x0 = math.floor(y), math.floor(x)
            value = 0.0
            for j, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                for i, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                    if 0 <= j < m + 2 and 0 <= i < m + 2:
                        value += wy * wx * padded[j][i]
            out[row, column] = value >= 0.5
    return out


BOXES = {
    "inside": (3.2, 4.7, 17.1, 20.9),
    "whole pixels": (2.0, 3.0, 10.0, 9.0),
    "all": (0.0, 0.0, 31.0, 24.0),
    "over the upper left": (-5.5, -3.2, 8.4, 9.9),
    "over the lower right": (20.3, 15.1, 44.0, 31.0),
    "within a pixel": (4.3, 5.2, 4.9, 5.9),
    "thin": (4.0, 5.2, 5.1, 22.0),
}


@pytest.mark.parametrize("name", BOXES)
def test_pasting_is_that_of_a_loop(name):
    mask = torch.rand(7, 7, generator=torch.Generator().manual_seed(3))
    mask[2:5, 2:6] = 0.9
    size = (24, 31)
    part, top, left = paste_mask(mask, torch.tensor(BOXES[name]), size)
    whole = np.zeros(size, bool)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part.numpy()
    expected = paste_by_a_loop(mask, BOXES[name], size)
    # Beyond the box the sampled mask can only fade; detectron2 cuts it at whole pixels likewise.
    x1, y1, x2, y2 = BOXES[name]
    limit = np.zeros(size, bool)
    limit[max(0, math.floor(y1)) : math.ceil(y2), max(0, math.floor(x1)) : math.ceil(x2)] = True
    np.testing.assert_array_equal(whole, expected & limit)


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 5), (5, 5, 9, 5), (40, 3, 50, 9), (-9, 2, -3, 8), (31, 24, 31, 24), (-8, -8, 0, 0)],
)
def test_pasting_where_nothing_is(box):
    part, top, left = paste_mask(torch.ones(4, 4), torch.tensor(box, dtype=torch.float32), (24, 31))
    assert part.numel() == 0 or part.shape[0] * part.shape[1] <= 24 * 31
    assert top >= 0
    assert left >= 0
    assert not part.any()


def test_pasting_a_full_mask_fills_the_box():
    part, top, left = paste_mask(torch.ones(28, 28), torch.tensor([2.0, 3.0, 12.0, 9.0]), (20, 20))
    assert (top, left) == (3, 2)
    assert part.shape == (6, 10)
    assert part.all()


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2), (1 / 30,) * 4])
def test_offsets_have_the_bits_of_torchvision(stds):
    torch.manual_seed(0)
    boxes, targets = (torch.rand(40, 4) * 90 for _ in range(2))
    boxes[:, 2:] += boxes[:, :2] + 0.5
    targets[:, 2:] += targets[:, :2] + 0.5
    offsets = torch.randn(40, 12)
    offsets[0] = 1e4  # is limited
    coder = detection.BoxCoder(tuple(1 / std for std in stds))
    assert torch.equal(encode_offsets(targets, boxes, stds), coder.encode_single(targets, boxes))
    moved = decode_offsets(offsets.unflatten(1, (3, 4)), boxes, stds)
    assert torch.equal(moved.flatten(1), coder.decode_single(offsets, boxes))
