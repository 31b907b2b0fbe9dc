# SPDX-License-Identifier: Apache-2.0
"""Cascades beside a twin in plain loops: region by region, stage by stage, as published ones work.

The twin follows Cai and Vasconcelos 2019 (arXiv 1906.09756) and what OpenMMLab and detectron2 do:
the box of each stage is that of the likeliest class, regions of the next stage are these boxes cut
off at the image, scores are those of all stages together, boxes those of the last.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import muntin
from muntin.errors import ConfigError
from muntin.heads.necks import NeckConfig
from muntin.heads.rcnn_config import CONVENTIONS, RCNNConfig
from muntin.heads.rcnn_stages import pool_regions
from muntin.targets import BoxTargets
from tests.heads.peers import objects

NUM_CLASSES = 3
SMALL: RCNNConfig = replace(
    CONVENTIONS["openmmlab"]["cascade"],
    neck=NeckConfig(channels=12),
    box_convs=1,
    box_dim=24,
    mask_convs=2,
    mask_dim=8,
    proposals=(40, 30),
    roi_size=5,
)
SIZES = torch.tensor([[61, 90], [75, 58]])
SHAPE = (96, 96)


# One region, sample by sample.


def value_at(level, y, x):
    """Bilinear value between the middles of four cells; 0 beyond the map."""
    _, high, wide = level.shape
    if not (-1 <= y <= high and -1 <= x <= wide):
        return np.zeros(len(level))
    y, x = min(max(y, 0.0), high - 1.0), min(max(x, 0.0), wide - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, high - 1), min(left + 1, wide - 1)
    down, along = y - top, x - left
    upper = level[:, top, left] * (1 - along) + level[:, top, right] * along
    lower = level[:, bottom, left] * (1 - along) + level[:, bottom, right] * along
    return upper * (1 - down) + lower * down


def region(level, box, stride, side, *, sampling, aligned):
    """RoIAlign of one box (He et al. 2017, section 3), in numpy."""
    left, top, right, bottom = (float(edge) / stride - (0.5 if aligned else 0.0) for edge in box)
    wide, high = right - left, bottom - top
    if not aligned:
        wide, high = max(wide, 1.0), max(high, 1.0)
    rows = sampling or math.ceil(high / side)
    columns = sampling or math.ceil(wide / side)
    cells = np.zeros((len(level), side, side))
    for row in range(side):
        for column in range(side):
            samples = [
                value_at(
                    level,
                    top + (row + (i + 0.5) / rows) * high / side,
                    left + (column + (j + 0.5) / columns) * wide / side,
                )
                for i in range(rows)
                for j in range(columns)
            ]
            cells[:, row, column] = np.sum(samples, axis=0) / max(len(samples), 1)
    return cells


def level_of(box, count):
    """Equation 1 of Lin et al. 2017: 112 pixels belong to stride 8, and so on."""
    side = math.sqrt(max(0.0, float((box[2] - box[0]) * (box[3] - box[1]))))
    return min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), count - 1)


@pytest.mark.parametrize(("aligned", "sampling"), [(True, 0), (True, 2), (False, 2), (False, 0)])
def test_regions_are_pooled_by_the_convention(aligned, sampling):
    levels = [torch.randn(2, 3, 40 >> i, 50 >> i, dtype=torch.float64) for i in range(3)]
    strides = (4.0, 8.0, 16.0)
    boxes = torch.tensor(
        [[10.3, 20.7, 60.1, 50.2], [0, 0, 150, 140], [3, 4, 5, 6], [-9, 100, 199, 170.5]]
    )
    images = torch.tensor([0, 1, 1, 0])
    config = replace(SMALL, aligned=aligned, sampling=sampling)
    read = pool_regions(levels, strides, boxes, images, side=7, config=config)
    for box, image, ours in zip(boxes, images.tolist(), read, strict=True):
        number = level_of(box, 3)
        level = levels[number][image].numpy()
        twin = region(level, box, strides[number], 7, sampling=sampling, aligned=aligned)
        np.testing.assert_allclose(ours.numpy(), twin, atol=1e-5)


# The detector.


def convolve(state, name, values):
    """A convolution, its batch norm if there is one, and ReLU."""
    bias = state.get(f"{name}.conv.bias")
    values = F.conv2d(values, state[f"{name}.conv.weight"], bias, padding=1)
    if f"{name}.norm.weight" in state:
        mean, variance = state[f"{name}.norm.running_mean"], state[f"{name}.norm.running_var"]
        values = (values - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        values = values * state[f"{name}.norm.weight"][:, None, None]
        values = values + state[f"{name}.norm.bias"][:, None, None]
    return values.relu()


def look(state, config, stage, cells):
    """Logits with "nothing" last, and offsets of each class, of one region."""
    name = f"box_heads.{stage}"
    values = cells[None]
    for number in range(config.box_convs):
        values = convolve(state, f"{name}.convs.{number}", values)
    values = values.flatten()
    for number in range(config.box_linears):
        layer = f"{name}.linears.{number}"
        values = (state[f"{layer}.weight"] @ values + state[f"{layer}.bias"]).relu()
    logits = state[f"{name}.fc_cls.weight"] @ values + state[f"{name}.fc_cls.bias"]
    offsets = state[f"{name}.fc_reg.weight"] @ values + state[f"{name}.fc_reg.bias"]
    offsets = [offsets[4 * i : 4 * i + 4] for i in range(len(offsets) // 4)]
    if config.background == "first":
        logits = torch.cat([logits[1:], logits[:1]])
        offsets = offsets if config.class_agnostic else offsets[1:]
    return logits, offsets


def move(box, offset, stds, size):
    """Apply offsets to a box, and cut it off at the image."""
    left, top, right, bottom = box.tolist()
    wide, high = right - left, bottom - top
    dx, dy, dw, dh = (float(o) * s for o, s in zip(offset, stds, strict=True))
    limit = math.log(1000 / 16)
    x, y = left + wide / 2 + dx * wide, top + high / 2 + dy * high
    wide, high = wide * math.exp(min(dw, limit)), high * math.exp(min(dh, limit))
    edges = [x - wide / 2, y - high / 2, x + wide / 2, y + high / 2]
    most = [float(size[1]), float(size[0])] * 2
    return torch.tensor([min(max(e, 0.0), m) for e, m in zip(edges, most, strict=True)])


def overlap(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


class Twin:
    """What a cascade finds in one image, by plain loops."""

    def __init__(self, head, levels, size):
        self.state = {key: tensor.double() for key, tensor in head.state_dict().items()}
        self.config, self.levels, self.size = head.config, levels, size
        self.stages = len(head.config.stage_ious)
        self.num_masks = len(head.mask_heads)

    def read(self, box, side):
        number = level_of(box, len(self.levels))
        cells = region(
            self.levels[number],
            box,
            4 * 2**number,
            side,
            sampling=self.config.sampling,
            aligned=self.config.aligned,
        )
        return torch.from_numpy(cells)

    def candidates(self, proposals):
        for box in proposals:
            said = []
            for stage in range(self.stages):
                cells = self.read(box, self.config.roi_size)
                logits, offsets = look(self.state, self.config, stage, cells)
                said.append(logits)
                stds = self.config.stage_stds[stage]
                boxes = [move(box, offset, stds, self.size) for offset in offsets]
                likeliest = int(logits[:-1].argmax())
                box = boxes[0 if self.config.class_agnostic else likeliest]
            if self.config.stage_average == "logits":
                scores = (sum(said) / len(said)).softmax(0)
            else:
                scores = sum(logits.softmax(0) for logits in said) / len(said)
            for class_id in range(NUM_CLASSES):
                place = boxes[0 if self.config.class_agnostic else class_id]
                yield float(scores[class_id]), class_id, place

    def find(self, proposals):
        select = self.config.select
        ranked = sorted(
            (c for c in self.candidates(proposals) if c[0] > select.score_threshold),
            key=lambda candidate: -candidate[0],
        )
        kept = []
        for score, class_id, box in ranked:
            if min(box[2] - box[0], box[3] - box[1]) < 1e-2:
                continue
            rivals = [other for _, other_class, other in kept if other_class == class_id]
            if all(overlap(box, other) <= select.iou for other in rivals):
                kept.append((score, class_id, box))
        return kept[: select.max_detections]

    def mask(self, box, class_id):
        cells = self.read(box, 2 * self.config.roi_size)
        drawn = []
        for number in range(self.num_masks):
            name, values = f"mask_heads.{number}", cells[None]
            for layer in range(self.config.mask_convs):
                values = convolve(self.state, f"{name}.convs.{layer}", values)
            weight, bias = (
                self.state[f"{name}.upsample.weight"],
                self.state[f"{name}.upsample.bias"],
            )
            values = F.conv_transpose2d(values, weight, bias, stride=2).relu()
            weight, bias = self.state[f"{name}.logits.weight"], self.state[f"{name}.logits.bias"]
            values = F.conv2d(values, weight, bias)[0]
            drawn.append(values[class_id + (self.config.background == "first")].sigmoid())
        return sum(drawn) / len(drawn)


def build(config, **options):
    """A detector with weights that find many things, and batch norms that do something."""
    options = {"num_classes": NUM_CLASSES, "masks": True, **options}
    model = muntin.create_detector("swin_nano_patch4_window4_64", head=config, **options)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            gain = 0.4 if "fc_cls" in name else 1.5  # no two scores are both almost 1
            scale = gain * fan_in**-0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn_like(parameter) * scale + (".norm.weight" in name))
        for name, buffer in model.head.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5 * ("var" in name))
    return model.double().eval()


VARIANTS = {
    "openmmlab": {},
    "detectron2": {
        "stage_average": "scores",
        "class_agnostic": True,
        "mask_heads": "one",
        "box_convs": 0,
        "box_linears": 2,
        "box_norm": "none",
        "stage_stds": CONVENTIONS["detectron2"]["cascade"].stage_stds,
    },
    "background first": {"background": "first", "stage_average": "scores", "sampling": 2},
    "first and agnostic": {"background": "first", "class_agnostic": True, "aligned": False},
    "one stage": {"stage_ious": (0.5,)},
    "two stages": {"stage_ious": (0.5, 0.6), "mask_norm": "batch"},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_cascade_matches_its_reference(changes):
    model = build(replace(SMALL, **changes))
    head = model.head
    images = torch.randn(2, 3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        found = model(images, SIZES)
        levels = head.neck(model.backbone(images))
        boxes, valid, *_ = head.rpn(levels, SIZES)
    assert sum(len(one.boxes) for one in found) > 20
    for image, ours in enumerate(found):
        maps = [level[image].numpy() for level in levels[:-1]]
        twin = Twin(head, maps, SIZES[image].tolist())
        expected = twin.find(boxes[image][valid[image]])
        assert len(ours.boxes) == len(expected)
        for row, (score, class_id, box) in enumerate(expected):
            assert int(ours.class_ids[row]) == class_id
            assert float(ours.scores[row]) == pytest.approx(score, abs=1e-5)
            torch.testing.assert_close(ours.boxes[row], box, atol=1e-3, rtol=0)
        for row in range(min(3, len(expected))):
            mask = twin.mask(ours.boxes[row], expected[row][1])
            torch.testing.assert_close(ours.masks[row].double(), mask, atol=1e-5, rtol=0)


def test_averages_of_scores_and_of_logits_differ():
    model = build(SMALL)
    images = torch.randn(1, 3, *SHAPE, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)[0]
        model.head.set_config(replace(SMALL, stage_average="scores"))
        scores = model(images)[0]
    assert not torch.allclose(logits.scores[:5], scores.scores[:5], atol=1e-3)


# Learning.


def targets(counts, *, masks=True):
    return objects(SIZES, counts, SHAPE, masks=masks)[0]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("mask_rcnn_small", (3, 2)),
        ("cascade_mask_rcnn_small", (4, 0)),
        ("mask_rcnn_small", (0, 0)),
        pytest.param("cascade_mask_rcnn_small", (3, 2), marks=pytest.mark.slow),
        pytest.param("mask_rcnn_small", (4, 0), marks=pytest.mark.slow),
        pytest.param("cascade_mask_rcnn_small", (0, 0), marks=pytest.mark.slow),
    ],
)
def test_every_part_learns(name, counts):
    model = muntin.create_detector(
        "swin_nano_patch4_window4_64", head=name, num_classes=4, drop_path_rate=0.0
    )
    features = model.features(torch.randn(2, 3, *SHAPE), SIZES)
    losses = model.head.losses(features, targets(counts))
    assert set(losses) == {"objectness", "proposals", "classes", "boxes", "masks"}
    assert all(loss.shape == (2,) and loss.isfinite().all() for loss in losses.values())
    sum(loss.sum() for loss in losses.values()).backward()
    if sum(counts):
        still = [key for key, value in model.named_parameters() if value.grad is None]
        assert not still


def test_masks_are_learnt_where_there_are_some():
    model = build(SMALL).float().train()
    with_masks, without = targets((3, 2)), targets((3, 2), masks=False)
    torch.manual_seed(0)
    features = model.features(torch.randn(2, 3, *SHAPE), SIZES)
    losses = model.head.losses(features, [with_masks[0], without[1]])
    assert losses["masks"][0] > 0
    assert losses["masks"][1] == 0


def test_crowds_are_no_background():
    model = build(replace(SMALL, stage_ious=(0.5,), box_loss="l1")).float()
    model.train().backbone.eval()
    for target in targets((1, 1), masks=False):
        everywhere = torch.tensor([[0.0, 0.0, *SIZES[0].flip(0).float() * 2]])
        crowded: BoxTargets = target._replace(ignored=everywhere)
        boxes = torch.tensor([[0.0, 0, 5, 5], [50, 50, 80, 57]])
        drawn, matched = model.head._sample_regions(0, boxes, crowded, torch.Generator())
        assert (matched >= 0).all()
        assert len(drawn) >= 1


def test_a_detector_finds_nothing_without_falling_over():
    config = replace(SMALL, select=replace(SMALL.select, score_threshold=1.0))
    found = build(config)(torch.randn(2, 3, *SHAPE, dtype=torch.float64), SIZES)
    assert [len(one.boxes) for one in found] == [0, 0]
    assert found[0].masks.shape == (0, 20, 20)


# Building.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head": "mask_rcn"}, "mask_rcnn"),
        ({"conventions": "mmdet"}, "openmmlab"),
        ({"head": "cascade_mask_rcnn", "conventions": "torchvision"}, "openmmlab, detectron2"),
        ({"head": "fcos", "conventions": "torchvision"}, "fcos.*torchvision|torchvision.*fcos"),
        ({"head": "mask_rcnn_small", "conventions": "detectron2"}, "'mask_rcnn_small'"),
        ({"head": SMALL, "conventions": "detectron2"}, "detectron2"),
        ({"head": "faster_rcnn", "masks": True}, "masks"),
        ({"num_classes": 0}, "num_classes.*0"),
        ({"window": 3}, "window"),
    ],
)
def test_what_does_not_go_together_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        muntin.create_detector("swin_nano", **options)


def test_names_lead_to_heads():
    cascade = muntin.create_detector(
        "swin_nano", head="cascade_rcnn", num_classes=2, conventions="detectron2"
    )
    assert cascade.head.config == CONVENTIONS["detectron2"]["cascade"]
    assert len(cascade.head.box_heads) == 3
    assert not cascade.head.mask_heads
    fcos = muntin.create_detector("swin_nano", head="fcos_small", num_classes=2)
    assert fcos.spec.strides[0] == 8
    assert fcos.training
    plain = muntin.create_detector("swin_nano", out_indices=(1, 2), out_norm="none")
    assert plain.spec.strides == (8, 16)
