# SPDX-License-Identifier: Apache-2.0
"""Stages and blocks may be counted from the end."""

from __future__ import annotations

import pytest
import torch

import muntin
from muntin.errors import ConfigError, DataError, ShapeError

BODIES = ["swin_nano", "swinv2_tiny_window8_256", "hiera_tiny_224", "vit_tiny", "t2t_vit_7"]


@pytest.mark.parametrize("name", BODIES)
def test_from_the_end(name):
    count = len(muntin.create_backbone(name).blocks) if "vit" in name else None
    stages = count or len(muntin.create_backbone(name).config.depths)
    last = muntin.create_backbone(name, out_indices=(-2, -1))
    same = muntin.create_backbone(name, out_indices=(stages - 2, stages - 1))
    assert last.spec == same.spec
    same.load_state_dict(last.state_dict())
    images = torch.rand(1, 3, *last.config.img_size)
    with torch.no_grad():
        for ours, theirs in zip(last.eval()(images), same.eval()(images), strict=True):
            assert torch.equal(ours, theirs)


def test_a_detector_on_the_last_stages():
    detector = muntin.create("detect", "swin_nano", head="fcos_small", out_indices=(-2, -1))
    assert detector.backbone.config.out_indices == (1, 2)


def test_what_is_no_head_and_no_batch():
    with pytest.raises((ConfigError, TypeError), match=r"(?s)head.*Linear"):
        muntin.create("semantic", "swin_nano", head=torch.nn.Linear(1, 1))
    network = muntin.create_model("swin_nano", num_classes=2)
    with pytest.raises((ShapeError, TypeError), match=r"3, 50, 61|shape"):
        network(torch.zeros(3, 50, 61))


def test_boxes_without_an_image():
    from muntin.prediction.batch import read_images

    image = torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()
    with pytest.raises(DataError, match=r"boxes.*got 2"):
        list(read_images([image], [[], []]))
