# SPDX-License-Identifier: Apache-2.0
"""Where fresh attention starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from muntin.nn.layers import init_linear_weights
from muntin.nn.mimetic_init import init_mimetic
from muntin.zoo import create_model

BUILD = {
    "swin": lambda: create_model(
        "swin_nano_patch2_window4_32", embed_dim=32, depths=(2, 1), num_heads=(2, 4),
        out_indices=(0, 1),
    ),
    "vit": lambda: create_model("vit_tiny", embed_dim=48, depth=3, num_heads=3, img_size=32),
}  # fmt: skip


def attention(network):
    return [part for part in network.modules() if hasattr(part, "qkv") and hasattr(part, "proj")]


@pytest.mark.parametrize("family", BUILD)
def test_every_attention_layer_is_changed_and_nothing_else(family):
    network = BUILD[family]()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert init_mimetic(network, 0) == len(attention(network)) == 3
    changed = {n for n, p in network.named_parameters() if not p.equal(before[n])}
    ends = ("qkv.weight", "proj.weight", "relative_position_bias_table")
    assert changed == {n for n in before if ".attn." in n and n.endswith(ends)}


@pytest.mark.parametrize("family", BUILD)
def test_it_depends_on_the_seed_alone(family):
    networks = [BUILD[family]() for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        torch.rand(seed)
        init_mimetic(network, seed)
    one, same, other = ([a.qkv.weight for a in attention(network)] for network in networks)
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not any(a.equal(b) for a, b in zip(one, other, strict=True))
    layers = [a.proj.weight for a in attention(networks[0])]
    assert not layers[0].equal(layers[1]), "each layer draws its own"


@pytest.mark.parametrize("family", BUILD)
def test_products_lean_to_the_identity(family):
    network = BUILD[family]()
    init_mimetic(network, 0)
    for part in attention(network.requires_grad_(False)):
        dim = part.qkv.in_features
        _, _, value = part.qkv.weight.view(3, dim, dim)
        product = part.proj.weight @ value
        assert product.diagonal().mean() == pytest.approx(-0.4, abs=0.12)
        assert (product - product.diagonal().diag()).mean().abs() < 0.05
        heads = part.num_heads
        queries, keys = part.qkv.weight[: 2 * dim].view(2, heads, dim // heads, dim)
        for query, key in zip(queries, keys, strict=True):
            assert (query.T @ key).diagonal().mean() > 0


def test_loaded_weights_stay(tmp_path):
    from muntin.weights.weight_files import write_weights
    from tests.small import train_small, write_images

    data = write_images(tmp_path / "trees")
    settings = {"train.init": "mimetic", "train.learning_rate": 0, "train.optimizer": "adamw"}
    first = train_small(data, tmp_path / "first", settings=settings, epochs=1)
    from muntin.runs import Run

    network = Run.open(first.path).load_network()
    with torch.no_grad():
        for part in attention(network):
            part.qkv.weight.fill_(0.01)
    path = tmp_path / "mine.safetensors"
    write_weights(path, network.state_dict(), {"dialect": "muntin"})
    second = train_small(data, tmp_path / "second", settings=settings, epochs=1, weights=str(path))
    kept = Run.open(second.path).load_network()
    for part in attention(kept):
        torch.testing.assert_close(part.qkv.weight, torch.full_like(part.qkv.weight, 0.01))


def test_linears():
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False), nn.LayerNorm(3))
    init_linear_weights(layers.requires_grad_(False))
    assert layers[0].weight.std() == pytest.approx(0.02, rel=0.1)
    assert layers[0].weight.abs().max() <= 2.0
    assert not layers[0].bias.any()
    assert layers[2].weight.tolist() == [1, 1, 1]
