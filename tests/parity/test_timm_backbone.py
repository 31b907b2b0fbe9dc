# SPDX-License-Identifier: Apache-2.0
"""Timm models as backbones and classifiers: outputs equal timm's."""

from __future__ import annotations

import importlib.util

import pytest
import timm
import torch

from muntin.errors import ConfigError, MissingExtra, WeightError
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from muntin.zoo import create_backbone, create_model, describe_models, find_model, list_models
from tests.parity.peers import assert_equal_outputs, batch_images, distance, perturb

pytestmark = pytest.mark.parity

NAMES = [
    "convnext_tiny",
    "mobilevit_s",
    "efficientnetv2_rw_s",
    "mobilenetv3_large_100",
    "resnet50",
]
SMALL = ["mobilenetv3_small_050", "resnet10t", "convnext_atto"]


def check(name, size):
    peer = perturb(timm.create_model(name, num_classes=7))
    model = create_model(f"timm:{name}", num_classes=7).eval()
    report = load_weights(model, peer.state_dict())
    assert report.dialect == "timm"
    assert not report.reset
    assert_equal_outputs(model, peer, size)
    images = batch_images(size)
    with torch.no_grad():
        theirs = peer.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")
        maps = model.backbone(images)
    for ours, expected in zip(maps, theirs[-4:], strict=True):
        assert distance(ours, expected) == 0
    assert [m.shape[1] for m in maps] == list(model.spec.channels)
    assert [-(-size[0] // s) for s in model.spec.strides] == [m.shape[2] for m in maps]
    back = to_dialect(model, "timm")
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in peer.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_small_model_equals_itself_in_timm(name):
    check(name, (96, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_model_that_swin_is_compared_with_equals_itself_in_timm(name):
    check(name, (128, 96))


def test_another_number_of_classes_resets_the_head_only():
    peer = timm.create_model("resnet10t", num_classes=7)
    model = create_model("timm:resnet10t", num_classes=3)
    assert load_weights(model, peer.state_dict()).reset == ("head.fc.weight", "head.fc.bias")
    with pytest.raises(WeightError, match=r"resnet10t|stem|layer|blocks|net\."):
        load_weights(model, timm.create_model("resnet14t", num_classes=3).state_dict())


def test_maps_can_be_chosen():
    body = create_backbone("timm:resnet10t", out_indices=(1, 3))
    assert [tuple(m.shape[2:]) for m in body(torch.rand(1, 3, 64, 96))] == [(16, 24), (4, 6)]
    with pytest.raises(ConfigError, match="0 to 4"):
        create_backbone("timm:resnet10t", out_indices=(1, 7))


def test_the_zoo_knows_them():
    assert "timm:convnext_tiny" in list_models("timm:convnext_t*")
    entry = find_model("timm:mobilevit_s")
    assert entry.config.img_size == (256, 256)
    assert entry.mean == (0.0, 0.0, 0.0)
    (row,) = describe_models("timm:resnet10t")
    assert row["params"] == sum(p.numel() for p in timm.create_model("resnet10t").parameters())
    assert row["macs"] > 10**8
    with pytest.raises(ConfigError, match=r"'resnet5'.*'resnet50'"):
        create_model("timm:resnet5")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'muntin\[timm\]'"):
        create_model("timm:resnet50")
