# SPDX-License-Identifier: Apache-2.0
"""Detectors as graphs: always equally many boxes, and the same ones as in eager mode."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import muntin
from muntin.errors import ConfigError
from muntin.heads.detector import FixedDetector
from muntin.heads.head_table import DETECTORS, MASK_DETECTORS
from tests.detectors import tiny_detector

HEADS = [
    "fcos_small",
    "dense_small",
    "mask_rcnn_small",
    pytest.param("faster_rcnn_small", marks=pytest.mark.slow),
    pytest.param("cascade_mask_rcnn_small", marks=pytest.mark.slow),
]


def detector(head):
    task = "instance" if head in MASK_DETECTORS else "detect"
    network = tiny_detector(head, 3, task=task)
    with torch.no_grad():
        for name, parameter in network.head.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            if name.endswith("fc_cls.weight") or name.startswith("classes.weight"):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
            if name == "twin.weight":  # small: of equal scores, of 1, any may come first
                parameter.copy_(torch.randn_like(parameter) * 0.02)
    return network


@pytest.mark.filterwarnings("ignore:`create_unbacked_symint` is deprecated:FutureWarning")
@pytest.mark.parametrize("head", HEADS)
def test_a_graph_gives_what_eager_gives(head):
    network = detector(head)
    most = network.head.config.select.max_detections
    example = torch.randn(2, 3, 96, 128)
    fixed_detector = FixedDetector(network, network.head)
    graph = torch.export.export(fixed_detector, (example,), strict=False).module()
    for images in (example, torch.randn(2, 3, 96, 128) * 2):
        with torch.no_grad():
            eager, fixed = network(images), graph(images)
        for row, found in enumerate(eager):
            count = len(found.boxes)
            assert 0 < count <= most
            assert fixed[0].shape == (2, most, 4)
            assert int((fixed[1][row] > 0).sum()) == count
            torch.testing.assert_close(fixed[0][row, :count], found.boxes, atol=1e-3, rtol=0)
            torch.testing.assert_close(fixed[1][row, :count], found.scores, atol=1e-5, rtol=0)
            assert fixed[2][row, :count].equal(found.class_ids)
            if found.masks is not None:
                torch.testing.assert_close(fixed[3][row, :count], found.masks, atol=1e-3, rtol=0)


def test_soft_suppression_is_refused():
    config = DETECTORS["fcos_small"]
    config = replace(config, select=replace(config.select, suppression="soft"))
    network = muntin.create_detector("swin_nano", head=config, num_classes=2).eval()
    with pytest.raises(ConfigError, match=r'select\.suppression.*"hard"'):
        FixedDetector(network, network.head)(torch.randn(1, 3, 64, 64))


def test_reading_candidates_later_keeps_the_mode_they_were_computed_in():
    network = detector("mask_rcnn_small")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = network(torch.randn(1, 3, 64, 64))
    assert len(found) == 1
    assert not found[0].masks.requires_grad
    assert found[0].masks.shape[0] == len(found[0].boxes)
