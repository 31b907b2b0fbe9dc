# SPDX-License-Identifier: Apache-2.0
"""The dense detector: what it learns, what it returns, and what counts in its losses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.ops import box_iou

import muntin
from muntin.configs import with_texts
from muntin.errors import ConfigError
from muntin.heads.dense_head import Dense, keep_peaks
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS, build_detector
from muntin.targets import BoxTargets
from tests.detectors import BODY, tiny_detector


def objects(boxes, class_ids, *, size=(96, 96), ignored=()):
    """Rectangles with their masks."""
    layers = torch.zeros(1, *size, dtype=torch.int32)
    for number, (left, top, right, bottom) in enumerate(boxes):
        layers[0, int(top) : int(bottom), int(left) : int(right)] = number + 1
    return BoxTargets(
        boxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        class_ids=torch.tensor(class_ids, dtype=torch.long),
        ignored=torch.tensor(ignored, dtype=torch.float32).view(-1, 4),
        layers=layers,
        layer_of=torch.zeros(len(boxes), dtype=torch.long),
    )


NOTHING = BoxTargets.empty((96, 96))


def crowd(count):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=generator) * 90
    sides = torch.rand(count, 2, generator=generator) * 6
    boxes = torch.cat([corners, corners + sides], dim=1)
    return objects(boxes.tolist(), [n % 3 for n in range(count)])


@pytest.mark.parametrize("task", ["detect", "instance"])
@pytest.mark.parametrize(
    "targets",
    [
        (objects([(8, 8, 40, 48)], [1]), NOTHING),
        (NOTHING, NOTHING),
        (objects([(20, 20, 21, 21), (50.2, 50.2, 50.9, 50.9)], [0, 2]), NOTHING),
        (crowd(400), objects([(0, 0, 96, 96)], [0], ignored=[(0, 0, 96, 96)])),
    ],
    ids=["one", "none", "pixels", "many"],
)
def test_losses_are_finite_and_teach_every_parameter(task, targets):
    network = tiny_detector("dense_small", 3, task=task).train()
    torch.manual_seed(1)
    losses = network.head.losses(network.features(torch.randn(2, 3, 96, 96)), [*targets])
    masks = ["masks"] if task == "instance" else []
    assert sorted(losses) == sorted(["classes", "twin", "boxes", *masks])
    assert all(part.shape == (2,) and part.isfinite().all() for part in losses.values())
    sum(part.sum() for part in losses.values()).backward()
    # Each of several processes must have the same gradients, whatever its images show.
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, grad in grads.items() if grad is None] == []
    assert all(grad.isfinite().all() for grad in grads.values())


def test_images_without_objects_hardly_count():
    network = tiny_detector("dense_small", 3, task="detect").train()
    both = [objects([(8, 8, 40, 48)], [1]), NOTHING]
    torch.manual_seed(0)
    losses = network.head.losses(network.features(torch.randn(2, 3, 96, 96)), both)
    assert 0 < float(losses["classes"][1].detach()) < 0.1 * float(losses["classes"][0].detach())
    assert float(losses["boxes"][1].detach()) == 0


def test_cells_inside_crowds_do_not_count():
    network = tiny_detector("dense_small", 3, task="detect").eval()
    features = network.features(torch.randn(1, 3, 96, 96))
    outside = objects([(8, 8, 24, 24)], [1])
    plain, part, covered = (
        {
            name: float(loss.sum().detach())
            for name, loss in network.head.losses(features, [t]).items()
        }
        for t in (
            outside,
            outside._replace(ignored=torch.tensor([[48.0, 48.0, 96.0, 96.0]])),
            outside._replace(ignored=torch.tensor([[-1.0, -1.0, 200.0, 200.0]])),
        )
    )
    for name in ("classes", "twin"):
        assert plain[name] > part[name] > covered[name] > 0  # the object itself counts
    assert plain["boxes"] == part["boxes"] == covered["boxes"]


def test_prediction_asks_the_twin_unless_boxes_are_suppressed():
    network = tiny_detector("dense_small", 3, task="detect", threshold=0.3)
    head = network.head
    with torch.no_grad():
        head.twin.bias.fill_(-90.0)  # finds nothing
        head.twin.weight.zero_()
        head.classes.bias.fill_(9.0)  # finds everything
    assert len(network(torch.randn(1, 3, 96, 96))[0].boxes) == 0
    head.config = replace(head.config, select=replace(head.select, suppression="hard"))
    assert len(network(torch.randn(1, 3, 96, 96))[0].boxes) == head.select.max_detections
    assert set(head.class_layers()) == {"classes", "twin"}


def test_what_is_explained_is_the_cell_of_a_box():
    network = tiny_detector("dense_small", 3, task="detect")
    features = network.features(torch.randn(1, 3, 96, 96))
    (found,) = network.head(features)
    score = network.head.score_of(features, found.boxes[2], int(found.class_ids[2]))(features)
    torch.testing.assert_close(score[0], found.scores[2])
    # In another image it is that of the same cell, even where a neighbour scores better.
    others = network.features(torch.randn(4, 3, 96, 96))
    values = network.head.score_of(features, found.boxes[2], int(found.class_ids[2]))(others)
    assert (values > 0).all()


def slow_peaks(scores, sizes):
    """Each score, if none of those around its place is better, on its level and the next ones."""
    starts = [0]
    for high, wide in sizes:
        starts.append(starts[-1] + high * wide)

    def around(at, row, column):
        high, wide = sizes[at]
        for i in range(max(0, row - 1), min(high, row + 2)):
            for j in range(max(0, column - 1), min(wide, column + 2)):
                yield float(scores[starts[at] + i * wide + j])

    kept = []
    for at, (high, wide) in enumerate(sizes):
        for row in range(high):
            for column in range(wide):
                rivals = [*around(at, row, column)]
                if at:
                    rivals += around(at - 1, 2 * row, 2 * column)
                if at + 1 < len(sizes):
                    rivals += around(at + 1, row // 2, column // 2)
                score = float(scores[starts[at] + row * wide + column])
                kept.append(score if score >= max(rivals) else 0.0)
    return torch.tensor(kept)


@pytest.mark.parametrize("sizes", [[(8, 12), (4, 6), (2, 3)], [(4, 4)], [(2, 6), (1, 3)]])
def test_peaks_as_plain_loops(sizes):
    count = sum(high * wide for high, wide in sizes)
    scores = torch.rand(2, count, 3, generator=torch.Generator().manual_seed(0))
    kept = keep_peaks(scores, sizes)
    for image in range(2):
        for class_id in range(3):
            expected = slow_peaks(scores[image, :, class_id], sizes)
            torch.testing.assert_close(kept[image, :, class_id], expected)
    assert 0 < int((kept > 0).sum()) < kept.numel()


@pytest.mark.parametrize("sizes", [[(5, 7), (3, 4), (2, 2), (1, 1)], [(1, 1), (1, 1)]])
def test_the_best_score_is_always_a_peak(sizes):
    scores = torch.rand(1, sum(h * w for h, w in sizes), 1)
    kept = keep_peaks(scores, sizes)
    assert float(kept.max()) == float(scores.max())


def test_a_mask_is_drawn_from_what_lies_in_its_box():
    # The first prototype is the left half of the image; the layers of a cell read that alone.
    head = tiny_detector("dense_small", 1).head
    count = head.config.prototypes
    maps = torch.zeros(1, count, 24, 24)
    maps[0, 0, :, :12] = 20.0
    layers = torch.zeros(2, head.mask_layers.out_channels)
    layers[:, 0] = 1.0  # first hidden channel = first prototype
    inner = (count + 2) * 8
    layers[:, inner + 8] = 1.0  # which is the mask, less a half
    layers[:, -1] = -10.0
    boxes = torch.tensor([[16.0, 0.0, 80.0, 96.0], [60.0, 10.0, 90.0, 30.0]])
    masks = head._draw(maps, layers, boxes, torch.zeros(2, dtype=torch.long)).sigmoid() > 0.5
    assert masks[0, :, :14].all()
    assert not masks[0, :, 14:].any()
    assert not masks[1].any()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_nano"])
@pytest.mark.parametrize("finest", [4, 8])
def test_every_backbone_and_odd_sizes(name, finest):
    neck = {"neck.channels": 16, "neck.finest": finest, "num_convs": 1}
    config = with_texts(MASK_DETECTORS["dense"], [(k, str(v)) for k, v in neck.items()])
    small = {"embed_dim": 32, "depths": (1, 1), "num_heads": (1, 2)}
    small = small if name == "swin_nano" else {"embed_dim": 32, "depth": 1, "num_heads": 2}
    network = muntin.create_detector(name, head=config, masks=True, num_classes=2, **small).train()
    images = torch.randn(1, 3, 72, 104)
    losses = network.head.losses(
        network.features(images), [objects([(3, 3, 30, 20)], [1], size=(72, 104))]
    )
    assert all(part.isfinite().all() for part in losses.values())
    assert network.head.strides[0] == finest
    with torch.no_grad():
        network.eval().head.twin.bias.fill_(0.0)
        found = network(images)[0]
    assert found.masks.shape == (len(found.boxes), 28, 28)
    assert (found.boxes[:, 2] <= 104).all()


def test_masks_need_prototypes():
    body = muntin.create_backbone(BODY, embed_dim=16, depths=(1, 1, 1), num_heads=(1, 1, 2))
    with pytest.raises(ConfigError, match=r"dense with head\.prototypes=0"):
        build_detector(body, 2, DETECTORS["dense"], masks=True)
    head = build_detector(body, 2, MASK_DETECTORS["dense"], masks=False)
    assert isinstance(head, Dense)
    assert head.mask_layers is None
    assert isinstance(muntin.create_detector("swin_nano", head="dense").head, Dense)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "instance"])
def test_a_scene_is_learnt_by_heart(task):
    torch.manual_seed(0)
    network = tiny_detector("dense_small", 2, task=task, threshold=0.3).train()
    boxes = [(8, 8, 40, 48), (44, 20, 60, 34), (60, 60, 90, 92), (70, 4, 76, 12)]
    scene = objects(boxes, [0, 1, 0, 1])
    images = torch.randn(1, 3, 96, 96) * 0.1
    for number, (left, top, right, bottom) in enumerate(boxes):
        images[0, number % 2, top:bottom, left:right] += 2.0
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=120)
    for _ in range(120):
        losses = network.head.losses(network.features(images), [scene])
        optimizer.zero_grad()
        sum(part.sum() for part in losses.values()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = network.eval()(images)[0]
    # Each object once, without suppression; the last one has no cell's centre within it.
    assert len(found.boxes) == 4
    overlaps = box_iou(found.boxes, scene.boxes)
    assert overlaps.amax(dim=0).min() > 0.8
    assert found.class_ids.equal(scene.class_ids[overlaps.argmax(dim=1)])
    if task == "instance":
        assert (found.masks > 0.5).float().mean() > 0.8
