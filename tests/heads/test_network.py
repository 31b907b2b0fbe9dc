# SPDX-License-Identifier: Apache-2.0
"""One backbone and several heads: one pass, and the answers of each alone."""

from __future__ import annotations

import pytest
import torch

from muntin.errors import ConfigError, ShapeError
from muntin.heads.classification_head import build_classifier
from muntin.heads.head_table import DETECTORS, build_detector
from muntin.heads.network import Network
from muntin.heads.semantic_head import MAP_HEADS, SemanticHead
from muntin.zoo import create_backbone


def two_heads(name: str, **fields: object) -> Network:
    torch.manual_seed(0)
    body = create_backbone(name, **fields)
    classes = build_classifier(body, 3)
    pixels = SemanticHead(body, 2, MAP_HEADS["light_small"])
    return Network(body, {"classes": classes, "pixels": pixels}).eval()


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@torch.no_grad()
def test_two_heads_cost_one_pass():
    network = two_heads("swin_nano", out_norm="each")
    images = torch.randn(2, 3, 64, 64)
    calls = count_calls(network.backbone.patch_embed)
    raw = network(images)
    assert len(calls) == 1
    for name, head in network.heads.items():
        assert raw[name].equal(Network(network.backbone, head).eval()(images))
    assert {key.partition(".")[0] for key in network.state_dict()} == {
        "backbone", "classes", "pixels",
    }  # fmt: skip
    assert network.decode(raw)["classes"].equal(raw["classes"])


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_convnext"])
@torch.no_grad()
def test_two_heads_cost_one_pass_of_timm(name):
    pytest.importorskip("timm")
    network = two_heads(f"timm:{name}")
    images = torch.randn(1, 3, 160, 160)
    calls = count_calls(next(m for m in network.backbone.modules() if not [*m.children()]))
    raw = network(images)
    assert len(calls) == 1
    assert raw["pixels"].equal(network.pixels(network.backbone.features(images)))
    torch.testing.assert_close(raw["classes"], network.classes(network.backbone.features(images)))


@torch.no_grad()
def test_parts_are_computed_when_they_are_read():
    body = create_backbone("swin_nano", out_norm="each").eval()
    calls = count_calls(body.norm0)
    features = body.features(torch.randn(1, 3, 64, 64))
    _ = features.vector
    assert not calls
    assert features.maps is features.maps
    assert len(calls) == 1


def test_raw_output_is_the_same_in_training():
    body = create_backbone("swin_nano", out_norm="each", drop_path_rate=0.0)
    network = Network(body, build_detector(body, 2, DETECTORS["fcos_small"], masks=False))
    images = torch.randn(1, 3, 64, 64)
    first, second = network.train()(images), network.eval()(images)
    assert first.boxes.equal(second.boxes)
    assert first.scores.equal(second.scores)
    assert len(second) == 1


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((1, 1, 64, 64), r"3 channels.*\(1, 1, 64"),
        ((3, 64, 64), r"\(3, 64"),
        ((64, 64), r"\(64, 64"),
    ],
)
def test_images_of_another_shape(shape, told):
    network = two_heads("swin_nano", out_norm="each")
    for call in (network, network.features, network.backbone, network.backbone.embed):
        with pytest.raises(ShapeError, match=told):
            call(torch.randn(shape))


@pytest.mark.parametrize("name", ["backbone", "two words", "forward"])
def test_names_that_a_head_cannot_have(name):
    body = create_backbone("swin_nano")
    with pytest.raises(ConfigError, match=name):
        Network(body, {name: build_classifier(body, 2)})
