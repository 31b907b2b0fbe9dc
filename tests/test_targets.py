# SPDX-License-Identifier: Apache-2.0
"""Masks read on a grid: what torchvision reads, and the area by counting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from muntin.data.joint_transforms import to_box_targets
from muntin.run_lengths import encode_mask
from muntin.samples import Objects
from muntin.synthetic.scenes import make_scene


def scene_targets(seed=0, index=0, size=(90, 120), kept=None):
    scene = make_scene(seed, index, size=size, max_objects=6)
    objects = Objects(
        boxes=np.array([one.box_xyxy for one in scene.objects], np.float64).reshape(-1, 4),
        class_ids=np.array([one.class_id for one in scene.objects], np.int64),
        crowd=np.zeros(len(scene.objects), bool),
        areas=np.array([one.mask.sum() for one in scene.objects], np.float64),
        masks=tuple(encode_mask(one.mask) for one in scene.objects),
    )
    return scene, to_box_targets(objects, size, kept or size)


@pytest.mark.parametrize("index", range(4))
def test_layers_hold_every_mask(index):
    scene, targets = scene_targets(index=index)
    for number, one in enumerate(scene.objects):
        seen = targets.layers[targets.layer_of[number]] == number + 1
        np.testing.assert_array_equal(seen.numpy(), one.mask)


@pytest.mark.parametrize("side", [14, 28])
def test_masks_are_those_of_roi_align(side):
    """Here a sample is the pixel that it lies in, there a blend of four."""
    agree, excess, count = 0.0, 0.0, 0
    for index in range(6):
        scene, targets = scene_targets(index=index, size=(200, 260))
        rows = torch.arange(len(scene.objects)).repeat(3)
        shift = torch.randn(len(rows), 4, generator=torch.Generator().manual_seed(index)) * 4
        boxes = (targets.boxes[rows] + shift).clamp(min=0)
        masks = torch.stack([torch.from_numpy(one.mask) for one in scene.objects]).float()
        regions = torch.cat([rows[:, None].float(), boxes], 1)
        theirs = roi_align(masks[:, None], regions, (side, side), 1.0, 0, aligned=True)[:, 0]
        ours = targets.masks_in(boxes, rows, side)
        assert ours.shape == (len(rows), side, side)
        agree += float(((ours >= 0.5) == (theirs >= 0.5)).float().mean()) * len(rows)
        count += len(rows)
        excess += float(((ours >= 0.5).float() - (theirs >= 0.5).float()).mean()) * len(rows)
        torch.testing.assert_close(ours.mean((1, 2)), theirs.mean((1, 2)), atol=0.03, rtol=0)
    assert agree / count > 0.985
    assert abs(excess / count) < 0.002, "cut at 0.5, masks are neither too large nor too small"


def test_masks_are_the_area_by_counting():
    """Cells of 3 x 3 pixels: each sample is one of them."""
    scene, targets = scene_targets(size=(64, 64))
    for number, one in enumerate(scene.objects):
        box = torch.tensor([[8.0, 4.0, 8.0 + 3 * 14, 4.0 + 3 * 14]])
        got = targets.masks_in(box, torch.tensor([number]), 14)[0]
        part = one.mask[4 : 4 + 42, 8 : 8 + 42].reshape(14, 3, 14, 3).mean((1, 3))
        np.testing.assert_allclose(got.numpy(), part)


def test_a_box_over_the_edge_and_objects_in_other_layers():
    bitmap = np.zeros((20, 30), bool)
    bitmap[5:15, 5:15] = True
    over = np.zeros((20, 30), bool)
    over[8:20, 8:30] = True
    objects = Objects(
        boxes=np.array([[5, 5, 15, 15], [8, 8, 30, 20]], np.float64),
        class_ids=np.array([0, 1]), crowd=np.zeros(2, bool), areas=np.ones(2),
        masks=(encode_mask(bitmap), encode_mask(over)),
    )  # fmt: skip
    targets = to_box_targets(objects, (20, 30), (20, 30))
    assert targets.layers.shape == (2, 20, 30)
    assert sorted(targets.layer_of.tolist()) == [0, 1]
    boxes = targets.boxes
    assert targets.masks_in(boxes, torch.tensor([0, 1]), 5).eq(1).all()
    swapped = targets.masks_in(boxes, torch.tensor([1, 0]), 10)
    assert swapped[0].sum() == 49  # 7 x 7 of 10 x 10 pixels
    assert targets.masks_in(boxes[:0], torch.zeros(0).long(), 7).shape == (0, 7, 7)
    outside = torch.tensor([[25.0, 15.0, 40.0, 25.0]])
    assert targets.masks_in(outside, torch.tensor([0]), 7).eq(0).all()


def test_crowds_and_objects_without_masks_have_no_layer():
    bitmap = np.zeros((8, 8), bool)
    bitmap[2:4, 2:4] = True
    mask = encode_mask(bitmap)
    objects = Objects(
        boxes=np.array([[0, 0, 8, 8], [2, 2, 4, 4], [1, 1, 5, 5]], np.float64),
        class_ids=np.array([0, 1, 2]), crowd=np.array([True, False, False]), areas=np.ones(3),
        masks=(mask, mask, None),
    )  # fmt: skip
    targets = to_box_targets(objects, (8, 8), (8, 8))
    assert targets.class_ids.tolist() == [1, 2]
    assert targets.ignored.tolist() == [[0, 0, 8, 8]]
    assert targets.layer_of.tolist() == [0, -1]
    assert int((targets.layers == 1).sum()) == 4


def test_shrunken_images_keep_boxes_and_masks_together():
    _, targets = scene_targets(size=(90, 120), kept=(60, 80))
    whole = scene_targets(size=(90, 120))[1]
    torch.testing.assert_close(targets.boxes, whole.boxes * 2 / 3)
    for number in range(len(targets.boxes)):
        seen = targets.layers[targets.layer_of[number]] == number + 1
        rows, columns = torch.where(seen)
        tight = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (tight - targets.boxes[number]).abs().max() <= 1
