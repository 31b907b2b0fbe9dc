# SPDX-License-Identifier: Apache-2.0
"""Registers, gated MLPs and other forms of GELU in everything that handles a network."""

from __future__ import annotations

import copy
from dataclasses import replace

import onnxruntime
import pytest
import torch

from muntin.features import TokenMask
from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.inference.inference_network import build_inference
from muntin.models.vit import ViT, ViTConfig
from muntin.training.optimization import group_parameters
from muntin.training.recompute import recompute_layers
from muntin.zoo import change_model, create_model, create_segmenter
from tests.parity.peers import distance, perturb

VIT = ViTConfig(embed_dim=24, depth=2, num_heads=3, patch_size=8, img_size=(32, 32))
OPTIONS = {
    "registers": {"registers": 3, "layer_scale": 0.1},
    "gated": {"activation": "swiglu", "mlp_ratio": 8 / 3, "pool": "token_and_mean"},
    "tanh": {"activation": "gelu_tanh"},
    "logistic": {"activation": "quick_gelu"},
}
PLAIN = ("tanh", "logistic")
options = pytest.mark.parametrize("name", OPTIONS)


def build(name: str) -> Network:
    body = ViT(replace(VIT, **OPTIONS[name]))
    return perturb(Network(body, LinearHead(body.embed_channels, 3)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
# A graph takes seconds; that of another activation differs from these in one operator.
@pytest.mark.parametrize(
    "name", ["registers", "gated", *(pytest.param(n, marks=pytest.mark.slow) for n in PLAIN)]
)
@torch.no_grad()
def test_an_exported_graph_is_equal(tmp_path, name):
    network, images = build(name), torch.randn(2, 3, 40, 24)
    program = torch.export.export(build_inference(network, (40, 24)), (images,))
    torch.onnx.export(program, (), tmp_path / "a.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert distance(torch.from_numpy(out), network(images)) < 1e-4


@options
def test_recomputed_layers_have_the_same_gradients(name):
    network = build(name).train()
    other = copy.deepcopy(network)
    assert recompute_layers(other) > 1
    images = torch.randn(2, 3, 32, 32)
    for one in (network, other):
        one(images).square().sum().backward()
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        assert left.grad.equal(right.grad)


@options
def test_options_survive_another_size(name):
    network = build(name)
    moved = change_model(network, img_size=(48, 32))
    assert moved.backbone.config == replace(network.backbone.config, img_size=(48, 32))
    images = torch.randn(1, 3, 48, 32)
    with torch.no_grad():
        assert distance(moved(images), network(images)) < 1e-4


def test_registers_are_tokens_before_the_blocks():
    network = build("registers")
    assert network.backbone.layer_of("reg_token") == 0
    spared = {
        name for group in group_parameters(network, 1.0) if not group.decays for name in group.names
    }
    assert {"backbone.reg_token", "backbone.blocks.0.ls1.gamma"} <= spared


def test_a_mask_drops_patches_only():
    body = build("registers").backbone
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[:, ::2] = True
    with torch.no_grad():
        tokens = body.features(torch.randn(2, 3, 32, 32), mask=TokenMask(keep)).tokens
    assert tokens.shape == (2, 1 + 3 + 8, 24)


def test_dense_heads_read_the_patches_of_a_dinov2():
    fields = {"depth": 2, "embed_dim": 24, "num_heads": 3, "img_size": 56}
    network = create_segmenter("vit_small_patch14_reg4_dinov2", num_classes=3, **fields).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 56, 84)).shape[:2] == (1, 3)


def test_a_vector_of_token_and_mean_is_both():
    both, token, mean = (
        create_model("vit_tiny", num_classes=0, depth=1, img_size=32, pool=pool).eval()
        for pool in ("token_and_mean", "token", "mean")
    )
    for other in (token, mean):
        other.load_state_dict(both.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(both(images), torch.cat([token(images), mean(images)], dim=1))
