# SPDX-License-Identifier: Apache-2.0
"""Keypoint R-CNN: it learns one image, and tells pixels as they are."""

from __future__ import annotations

from dataclasses import replace

import torch
from torchvision.models.detection import keypoint_rcnn, roi_heads

from muntin.heads.keypoint_rcnn import (
    KEYPOINT_DETECTORS,
    KeypointRCNN,
    _find_peaks,
    _heatmap_loss,
)
from muntin.heads.network import Network
from muntin.heads.rcnn_config import RCNNConfig
from muntin.targets import BoxTargets
from muntin.zoo import create_backbone


def small() -> RCNNConfig:
    config = KEYPOINT_DETECTORS["keypoint_rcnn_small"]
    return replace(
        config, neck=replace(config.neck, channels=32), mask_convs=2, mask_dim=32, box_dim=64,
        roi_batch=32, rpn_batch=64, pre_nms=(100, 100), proposals=(50, 50),
    )  # fmt: skip


def build(num_keypoints=3, seed=0) -> Network:
    torch.manual_seed(seed)
    small_body = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 1, 2)}
    body = create_backbone("swin_nano", out_norm="each", **small_body)
    return Network(body, KeypointRCNN(body, 1, num_keypoints, small()))


def target(points=None) -> BoxTargets:
    if points is None:
        points = torch.tensor([[[30.0, 40.0, 2], [70.0, 44.0, 2], [50.0, 80.0, 0]]])
    return BoxTargets(
        boxes=torch.tensor([[16.0, 20.0, 88.0, 104.0]]),
        class_ids=torch.tensor([0]),
        ignored=torch.zeros(0, 4),
        layers=torch.zeros(0, 128, 128, dtype=torch.int32),
        layer_of=torch.tensor([-1]),
        points=points,
    )


def learn(seed: int, steps: int = 30) -> tuple[float, float]:
    """One image by heart: how far the loss falls, and how far off keypoints are, in pixels."""
    model, one = build(seed=seed), target()
    image = torch.zeros(1, 3, 128, 128)
    for k, (x, y, _) in enumerate(one.points[0]):
        image[0, k, int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4] = 2.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(steps):
        losses = model.head.losses(model.features(image), [one])
        assert "keypoints" in losses
        total = sum(part.sum() for part in losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    with torch.no_grad():
        found = model.eval()(image)[0]
    assert found.points.shape == (len(found.boxes), 3, 3)
    assert (found.points[..., 2] >= 0).all()
    apart = (found.points[0, :2, :2] - one.points[0, :2, :2]).abs().max()
    return sum(totals[-5:]) / 5 / totals[0], apart.item()


def test_learns_one_image() -> None:
    # Steps from random weights are chaotic, so that CPUs part; a wrong place is 20 pixels
    # off, a right one 1.
    left, apart = zip(*(learn(seed) for seed in range(2)), strict=True)
    assert sum(left) / 2 < 0.6
    assert sum(apart) / 2 < 8


def test_nothing_known_and_nothing_there():
    model = build()
    images = torch.randn(2, 3, 96, 96)
    none = target(torch.zeros(1, 3, 3))
    empty = BoxTargets(
        boxes=torch.zeros(0, 4), class_ids=torch.zeros(0, dtype=torch.long),
        ignored=torch.zeros(0, 4), layers=torch.zeros(0, 96, 96, dtype=torch.int32),
        layer_of=torch.zeros(0, dtype=torch.long), points=torch.zeros(0, 3, 3),
    )  # fmt: skip
    losses = model.head.losses(model.features(images), [none, empty])
    assert losses["keypoints"].tolist() == [0, 0]
    sum(part.sum() for part in losses.values()).backward()
    model.eval()
    with torch.no_grad():
        found = model(images)
    assert all(one.points.shape == (len(one.boxes), 3, 3) for one in found)


def test_layers_equal_torchvision():
    ours = build(num_keypoints=3, seed=1).head
    torch.manual_seed(0)
    head = keypoint_rcnn.KeypointRCNNHeads(32, (32, 32))
    predictor = keypoint_rcnn.KeypointRCNNPredictor(32, 3)
    head.load_state_dict(ours.keypoint_head.state_dict())
    predictor.load_state_dict(ours.keypoint_predictor.state_dict())
    boxes = [torch.tensor([[4.0, 4.0, 60.0, 50.0]])]
    levels = [torch.randn(1, 32, 64 // 2**i, 64 // 2**i) for i in range(3)]
    side = 2 * ours.config.roi_size
    regions = ours._pool_rows(levels, boxes[0], torch.zeros(1, dtype=torch.long), side)
    assert torch.equal(ours._heatmaps(levels, boxes), predictor(head(regions)))


def test_loss_and_peaks_equal_torchvision():
    torch.manual_seed(0)
    logits = torch.randn(6, 5, 28, 28)
    boxes = torch.rand(6, 4) * 40
    boxes[:, 2:] += boxes[:, :2] + 3
    points = torch.cat([torch.rand(6, 5, 2) * 100, torch.randint(0, 3, (6, 5, 1))], dim=2)
    points[0, 0, :2] = boxes[0, 2:]  # on the far edge
    wanted = roi_heads.keypointrcnn_loss(logits, [boxes], [points], [torch.arange(6)])
    assert torch.equal(_heatmap_loss(logits, boxes, points), wanted)
    (places,), (heights,) = roi_heads.keypointrcnn_inference(logits, [boxes])
    found = _find_peaks(logits, boxes)
    assert torch.equal(found[..., :2], places[..., :2] - 0.5)
    assert torch.equal(found[..., 2], heights.sigmoid())
