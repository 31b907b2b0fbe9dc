# SPDX-License-Identifier: Apache-2.0
"""Operators without torchvision's Python package answer as with it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torchvision import ops as peer

from muntin.ops import torchvision_operators as ours
from muntin.ops.boxes import box_iou


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 90
    return torch.cat([corners, corners + torch.rand(count, 2, generator=generator) * 40], dim=1)


@pytest.mark.parametrize("count", [0, 1, 60, 1200])
def test_suppression_in_groups(count):
    boxes, scores = random_boxes(count, 0), torch.rand(count).round(decimals=2)
    groups = torch.arange(count) % 5
    wanted = peer.batched_nms(boxes, scores, groups, 0.4)
    assert torch.equal(ours.batched_nms(boxes, scores, groups, 0.4), wanted)
    assert torch.equal(ours.nms(boxes, scores, 0.4), peer.nms(boxes, scores, 0.4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overlaps(dtype):
    one, other = random_boxes(9, 1).to(dtype), random_boxes(4, 2).to(dtype)
    assert torch.equal(box_iou(one, other), peer.box_iou(one, other))
    assert box_iou(one[:0], other).shape == (0, 4)


def test_pooled_regions_and_their_gradient():
    torch.manual_seed(0)
    features = torch.rand(2, 3, 20, 30, requires_grad=True)
    regions = torch.cat([torch.tensor([[0.0], [1.0], [1.0]]), random_boxes(3, 3)], dim=1)
    out = ours.roi_align(features, regions, 5, scale=0.25, sampling=2, aligned=True)
    wanted = peer.roi_align(features, regions, 5, 0.25, 2, True)
    assert torch.equal(out, wanted)
    weights = torch.rand_like(out)
    (slope,) = torch.autograd.grad((out * weights).sum(), features)
    (wanted,) = torch.autograd.grad((wanted * weights).sum(), features)
    assert torch.equal(slope, wanted)


def test_pooling_is_that_of_the_package_where_it_must_be_deterministic(monkeypatch):
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    asked, wanted = [], peer.roi_align
    monkeypatch.setattr(peer, "roi_align", lambda *row: asked.append(row[2:]) or wanted(*row))
    maps, regions = torch.rand(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 8, 8]])
    out = ours.roi_align(maps, regions, 5, scale=0.25, sampling=2, aligned=True)
    assert asked == [(5, 0.25, 2, True)]
    assert torch.equal(out, wanted(maps, regions, 5, 0.25, 2, True))


ALONE = """
import sys, torch
from muntin.ops.torchvision_operators import nms, roi_align
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]])
scores = torch.tensor([0.5, 0.9, 0.1])
with torch.no_grad():
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]
assert "torchvision" not in sys.modules
maps = torch.rand(1, 1, 8, 8, requires_grad=True)
region = torch.tensor([[0.0, 0, 0, 8, 8]])
assert roi_align(maps, region, 2, scale=1.0, sampling=1, aligned=False).requires_grad
assert "torchvision" in sys.modules
with torch.no_grad():
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]
"""


def test_gradients_import_the_package_and_nothing_else_does():
    done = subprocess.run([sys.executable, "-c", ALONE], timeout=300, check=False)
    assert done.returncode == 0
