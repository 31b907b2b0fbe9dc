# SPDX-License-Identifier: Apache-2.0
"""FCOS beside torchvision's: same weights, same boxes, same cells for objects, same losses.

Theirs has a bias before each group norm and points at the corners of cells; ours has neither by
default, so that these biases are zero and `centre` is 0 here. Theirs tells boxes without area, that
lie beyond the image; ours does not. Both in float64.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import muntin
from muntin.heads.fcos import MIN_POSITIVES, FCOSConfig, assign_cells
from tests.heads.peers import NUM_CLASSES, feed, objects, same, spread

pytestmark = pytest.mark.parity

BOX, SCORE, LOSS = 1e-3, 1e-5, 1e-4
CHANNELS, ALL = 64, 10**6
STRIDES = (8, 16, 32, 64, 128)

CONFIG = FCOSConfig(
    neck=replace(FCOSConfig().neck, channels=CHANNELS),
    num_convs=2,
    centre=0.0,
    top=ALL,
    select=replace(FCOSConfig().select, score_threshold=0.2, max_detections=10**5),
)


class Pyramid(nn.Module):
    """torchvision's pyramid on a body of ours."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.out_channels = CHANNELS
        self.fpn = FeaturePyramidNetwork(
            list(body.spec.channels), CHANNELS, extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS)
        )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(images))))


def weights_from(theirs) -> dict[str, Tensor]:
    """Their weights under our names; biases before a group norm are left out, being zero."""
    state = {}
    pyramid = theirs.backbone.fpn
    for index in range(3):
        state |= named(f"neck.lateral.{index}.conv", pyramid.inner_blocks[index][0])
        state |= named(f"neck.output.{index}.conv", pyramid.layer_blocks[index][0])
    state |= named("neck.extra.convs.0", pyramid.extra_blocks.p6)
    state |= named("neck.extra.convs.1", pyramid.extra_blocks.p7)
    head = theirs.head
    for branch, ours in (
        (head.classification_head, "class_convs"),
        (head.regression_head, "box_convs"),
    ):
        for index in range(2):
            state[f"{ours}.{index}.conv.weight"] = branch.conv[3 * index].weight
            state |= named(f"{ours}.{index}.norm", branch.conv[3 * index + 1])
    state |= named("classes", head.classification_head.cls_logits)
    state |= named("boxes", head.regression_head.bbox_reg)
    return state | named("centredness", head.regression_head.bbox_ctrness)


def named(name, module) -> dict[str, Tensor]:
    return {f"{name}.{key}": tensor for key, tensor in module.state_dict().items()}


@pytest.fixture
def pair():
    model = muntin.create_detector(
        "swin_tiny", head=CONFIG, num_classes=NUM_CLASSES, embed_dim=24, depths=(1, 1, 2, 1)
    )
    assert model.spec.strides == (8, 16, 32)
    theirs = detection.FCOS(
        Pyramid(model.backbone),
        num_classes=NUM_CLASSES,
        min_size=150,
        max_size=300,
        size_divisible=128,
        anchor_generator=AnchorGenerator(tuple((s,) for s in STRIDES), ((1.0,),) * 5),
        topk_candidates=ALL,
        detections_per_img=ALL,
    )
    branches = theirs.head.classification_head, theirs.head.regression_head
    for branch in branches:
        branch.conv = branch.conv[:6]
    spread(theirs)
    with torch.no_grad():
        branches[1].bbox_reg.weight.mul_(2.0)
        branches[1].bbox_reg.bias.fill_(2.0)
        for branch in branches:
            for layer in branch.conv:
                if isinstance(layer, nn.Conv2d):
                    layer.bias.zero_()
                if isinstance(layer, nn.GroupNorm):
                    layer.weight.uniform_(0.7, 1.3)
                    layer.bias.normal_(std=0.2)
    model.head.load_state_dict(weights_from(theirs))
    return theirs.double(), model.double().eval()


def batch_images():
    return [torch.rand(3, *size, dtype=torch.float64) for size in ((150, 211), (131, 243))]


def test_boxes_scores_and_classes(pair):
    theirs, model = pair
    batch = feed(theirs, batch_images())
    with torch.no_grad():
        expected = theirs(images_of(theirs, batch))
        found = model(batch.tensors, batch.sizes)
    for row in expected:
        whole = (row["boxes"][:, 2:] - row["boxes"][:, :2]).amin(dim=1) >= 1e-2
        row |= {key: values[whole] for key, values in row.items()}
        row["labels"] += 1
    worst = same(found, expected)
    assert worst["boxes"] < BOX
    assert worst["scores"] < SCORE


def images_of(theirs, batch):
    """Let their transform give this very batch, and leave boxes in its pixels."""
    theirs.transform.forward = lambda images, targets: (batch.list, targets)
    theirs.transform.postprocess = lambda found, *_: found
    return list(batch.tensors)


@pytest.mark.parametrize("counts", [(6, 3), (40, 0), (0, 0)])
def test_cells_learn_the_same_objects_with_the_same_losses(pair, counts):
    theirs, model = pair
    batch = feed(theirs, batch_images())
    ours, others = objects(batch.sizes, counts, batch.tensors.shape[2:], masks=False)
    others = [{**target, "labels": target["labels"] - 1} for target in others]
    theirs.train().backbone.eval()
    images, seen, compute = images_of(theirs, batch), [], theirs.head.compute_loss

    def listen(targets, outputs, anchors, matched):
        seen.append(matched)
        return compute(targets, outputs, anchors, matched)

    theirs.head.compute_loss = listen
    expected = theirs(images, others)

    model.train().backbone.eval()
    head = model.head
    levels = head.neck(model.backbone(batch.tensors))
    points = [head._points(level, stride) for level, stride in zip(levels, STRIDES, strict=True)]
    for target, matched in zip(ours, seen[0], strict=True):
        cells = assign_cells(points, head.strides, target, CONFIG.radius, CONFIG.reach)
        assert torch.equal(cells, matched)
    assert any((matched >= 0).any() for matched in seen[0]) == (sum(counts) > 0)

    losses = head.losses(model.features(batch.tensors, batch.sizes), ours)
    names = {"classes": "classification", "boxes": "bbox_regression", "centredness": "bbox_ctrness"}
    assert losses.keys() == names.keys()
    # Theirs divides by the cells that learn an object, if only one; ours counts a few an image.
    found = sum(int((matched >= 0).sum()) for matched in seen[0])
    lighter = max(found, 1) / max(found, MIN_POSITIVES * len(ours))
    for name, other in names.items():
        assert losses[name].shape == (2,)
        assert losses[name].mean().item() == pytest.approx(
            expected[other].item() * lighter, rel=LOSS, abs=1e-9
        )
    sum(loss.sum() for loss in losses.values()).backward()


def test_a_crowd_is_neither_object_nor_background(pair):
    _, model = pair
    batch = feed(pair[0], batch_images()[:1])
    targets, _ = objects(batch.sizes, (2,), batch.tensors.shape[2:], masks=False)
    whole = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])
    crowded = [targets[0]._replace(ignored=whole)]
    features = model.features(batch.tensors, batch.sizes)
    plain, without = (model.head.losses(features, one) for one in (targets, crowded))
    assert without["classes"][0] < plain["classes"][0]
    assert without["boxes"][0] == plain["boxes"][0]
