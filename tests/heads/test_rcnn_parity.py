# SPDX-License-Identifier: Apache-2.0
"""Faster and Mask R-CNN beside torchvision's own: same weights, same boxes, masks and losses.

All in float64, where rounding does not hide mistakes; boxes and scores of ours are float32 still.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchvision
from torchvision.models.detection import _utils as detection
from torchvision.ops import box_iou

import muntin
from muntin.heads.rcnn_stages import match_objects, sample_balanced
from muntin.targets import BoxTargets
from tests.heads.peers import (
    DEPTHS,
    HEADS,
    NARROW,
    NUM_CLASSES,
    WIDTH,
    detect,
    feed,
    objects,
    same,
    spread,
    swin_detector,
)

pytestmark = pytest.mark.parity

BOX, SCORE, LOSS = 1e-3, 1e-5, 1e-4  # pixels; score in [0, 1]; relative
# No side is a multiple of 32, and the padded sides are no multiples of 64.
SIZES = [(150, 211), (131, 243)]


def images(sizes=SIZES):
    return [torch.rand(3, *size, dtype=torch.float64) for size in sizes]


def ours_like(theirs, name, config, *, masks, **architecture):
    """Our detector with torchvision's weights, read from its own state dict."""
    model = muntin.create_detector(
        name, head=config, masks=masks, num_classes=NUM_CLASSES, **architecture
    )
    report = muntin.load_weights(model, theirs.state_dict())
    assert report.dialect == "torchvision"
    assert not report.reset
    assert not report.conventions
    theirs.double()
    return model.double().eval()


def agree(theirs, model, batch):
    with torch.no_grad():
        worst = same(model(batch.tensors, batch.sizes), detect(theirs, batch))
    assert worst["boxes"] < BOX
    assert worst["scores"] < SCORE
    assert worst["masks"] < SCORE


def swin_pair(*, masks, config=NARROW, **options):
    options = {"min_size": 150, "max_size": 300, "rpn_post_nms_top_n_test": 300, **options}
    theirs = spread(swin_detector(masks=masks, **options)).eval()
    config = replace(config, proposals=(config.proposals[0], 300))
    small = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS}
    return theirs, ours_like(theirs, "swin_tiny", config, masks=masks, out_norm="none", **small)


@pytest.mark.parametrize("masks", [pytest.param(False, marks=pytest.mark.slow), True])
def test_on_torchvisions_swin(masks):
    theirs, model = swin_pair(masks=masks)
    batch = feed(theirs, images())
    assert [side % 64 for side in batch.tensors.shape[2:]] == [32, 32]
    agree(theirs, model, batch)


def test_each_convention_changes_the_output():
    # The comparison would notice every one of them, so that agreement means something.
    theirs, model = swin_pair(masks=False)
    config, batch = model.head.config, feed(theirs, images()[:1])
    others = {"rounded_anchors": False, "aligned": True, "sampling": 1}
    others["stage_stds"] = ((0.11, 0.1, 0.2, 0.2),)
    with torch.no_grad():
        expected = detect(theirs, batch)[0]["boxes"]
        for name, value in others.items():
            model.head.set_config(replace(config, **{name: value}))
            found = model(batch.tensors, batch.sizes)[0].boxes
            count = min(len(found), len(expected))
            assert (found[:count] - expected[:count]).abs().max() > 100 * BOX, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fasterrcnn", "maskrcnn"])
def test_torchvisions_own_resnet_detector_on_timms_resnet(kind):
    masks = kind == "maskrcnn"
    build = getattr(torchvision.models.detection, f"{kind}_resnet50_fpn")
    theirs = build(
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        min_size=150,
        max_size=300,
        rpn_post_nms_top_n_test=200,
        box_detections_per_img=30,
    )
    spread(theirs).eval()
    config = muntin.create_detector("swin_nano", conventions="torchvision").head.config
    select = replace(config.select, max_detections=30)
    config = replace(config, proposals=(2000, 200), select=select)
    model = ours_like(theirs, "timm:resnet50", config, masks=masks)
    agree(theirs, model, feed(theirs, images()[:1]))
    assert_round_trip(model, theirs)


@pytest.mark.slow
def test_the_second_version_has_norms_and_convolutions():
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES + 1,
        min_size=150,
        max_size=300,
        rpn_post_nms_top_n_test=100,
        box_detections_per_img=30,
    )
    spread(theirs).eval()
    config = muntin.create_detector("swin_nano", conventions="torchvision").head.config
    config = replace(
        config,
        proposals=(2000, 100),
        neck=replace(config.neck, norm="batch"),
        rpn_convs=2,
        box_convs=4,
        box_linears=1,
        box_norm="batch",
        mask_norm="batch",
        select=replace(config.select, max_detections=30),
    )
    model = ours_like(theirs, "timm:resnet50", config, masks=True)
    agree(theirs, model, feed(theirs, images()[:1]))
    assert_round_trip(model, theirs)


def assert_round_trip(model, theirs):
    written, expected = muntin.to_dialect(model.float(), "torchvision"), theirs.float().state_dict()
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


# Losses.

TOTAL = 10**6
"""So many boxes are drawn to learn from that all of them are."""


def learning_pair():
    options = {
        "rpn_batch_size_per_image": TOTAL,
        "box_batch_size_per_image": TOTAL,
        "box_positive_fraction": 1.0,
        "rpn_post_nms_top_n_train": 300,
    }
    config = replace(NARROW, rpn_batch=TOTAL, roi_batch=TOTAL, roi_positive=1.0)
    config = replace(config, proposals=(300, 1000))
    theirs, model = swin_pair(masks=True, config=config, **options)
    theirs.train().backbone.eval()
    model.train().backbone.eval()
    return theirs, model


def their_losses(theirs, batch, targets):
    maps = theirs.backbone(batch.tensors)
    proposals, first = theirs.rpn(batch.list, maps, targets)
    _, second = theirs.roi_heads(maps, proposals, batch.list.image_sizes, targets)
    return {
        "objectness": first["loss_objectness"],
        "proposals": first["loss_rpn_box_reg"],
        "classes": second["loss_classifier"],
        "boxes": second["loss_box_reg"],
        "masks": second["loss_mask"],
    }


def test_losses_and_gradients_are_torchvisions_when_everything_is_drawn():
    theirs, model = learning_pair()
    for image in images():  # one at a time: their mean is over all images' boxes
        batch = feed(theirs, [image])
        ours, others = objects(batch.sizes, (5,), batch.tensors.shape[2:])
        expected = their_losses(theirs, batch, others)
        losses = model.head.losses(model.features(batch.tensors, batch.sizes), ours)
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            assert loss.shape == (1,)
            assert loss[0].item() > 0
            assert loss[0].item() == pytest.approx(expected[name].item(), rel=LOSS), name
        model.zero_grad()
        theirs.zero_grad()
        sum(loss.sum() for loss in losses.values()).backward()
        sum(expected.values()).backward()
        slopes = {
            key: parameter.grad
            for key, parameter in theirs.named_parameters()
            if parameter.grad is not None
        }
        grads = dict(model.named_parameters())
        pairs = (
            ("rpn.head.cls_logits.weight", "head.rpn.objectness.weight"),
            ("roi_heads.box_head.fc6.weight", "head.box_heads.0.linears.0.weight"),
            ("roi_heads.box_predictor.cls_score.weight", "head.box_heads.0.fc_cls.weight"),
            ("roi_heads.mask_head.0.0.weight", "head.mask_heads.0.convs.0.conv.weight"),
            ("backbone.fpn.inner_blocks.3.0.weight", "head.neck.lateral.3.conv.weight"),
            ("backbone.body.features.0.0.weight", "backbone.patch_embed.proj.weight"),
        )
        for key, name in pairs:
            torch.testing.assert_close(
                grads[name].grad, slopes[key], rtol=1e-3, atol=1e-4 * slopes[key].abs().max().item()
            )


def test_losses_of_a_batch_are_those_of_its_images():
    theirs, model = learning_pair()
    batch = feed(theirs, images())
    ours, others = objects(batch.sizes, (5, 2), batch.tensors.shape[2:])
    both = model.head.losses(model.features(batch.tensors, batch.sizes), ours)
    for number in range(2):
        alone = feed(theirs, images()[:1])
        alone.tensors, alone.sizes = batch.tensors[number : number + 1], batch.sizes[number:][:1]
        alone.list.tensors = alone.tensors
        alone.list.image_sizes = [tuple(alone.sizes[0].tolist())]
        expected = their_losses(theirs, alone, others[number : number + 1])
        for name, loss in both.items():
            assert loss[number].item() == pytest.approx(expected[name].item(), rel=LOSS), name


def test_a_image_without_objects_is_all_background():
    theirs, model = learning_pair()
    batch = feed(theirs, images()[:1])
    ours, others = objects(batch.sizes, (0,), batch.tensors.shape[2:])
    expected = their_losses(theirs, batch, others)
    losses = model.head.losses(model.features(batch.tensors, batch.sizes), ours)
    for name in ("objectness", "classes"):
        assert losses[name][0].item() == pytest.approx(expected[name].item(), rel=LOSS)
    for name in ("proposals", "boxes", "masks"):
        assert losses[name][0].item() == 0
        assert expected[name].item() == 0
    sum(loss.sum() for loss in losses.values()).backward()


def test_the_sampler_is_torchvisions():
    labels = torch.randint(-2, 3, (500,))
    torch.manual_seed(3)
    positive, negative = sample_balanced(labels, 64, 0.25)
    torch.manual_seed(3)
    drawn = detection.BalancedPositiveNegativeSampler(64, 0.25)
    expected = drawn([torch.where(labels >= 0, 1, torch.where(labels == -1, 0, -1))])
    assert torch.equal(positive, torch.where(expected[0][0])[0])
    assert torch.equal(negative, torch.where(expected[1][0])[0])
    assert len(positive) == 16
    assert len(negative) == 48


@pytest.mark.parametrize("keep_best", [False, True])
def test_matches_have_the_bits_of_torchvision(keep_best):
    torch.manual_seed(0)
    boxes = torch.rand(300, 4) * 60
    boxes[:, 2:] += boxes[:, :2] + 10
    boxes[1] = boxes[0]  # equal overlaps
    objects = boxes[:5] + torch.randn(5, 4)
    target = BoxTargets(
        boxes=objects, class_ids=torch.zeros(5, dtype=torch.long), ignored=torch.zeros(0, 4),
        layers=torch.zeros(0, 9, 9, dtype=torch.int32), layer_of=torch.zeros(0, dtype=torch.long),
    )  # fmt: skip
    matched = match_objects(boxes, target, 0.7, 0.3, keep_best=keep_best)
    peer = detection.Matcher(0.7, 0.3, allow_low_quality_matches=keep_best)
    assert torch.equal(matched, peer(box_iou(objects, boxes)))
