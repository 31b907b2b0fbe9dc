# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Which parameter learns how."""

from __future__ import annotations

import pytest
import torch

from muntin.errors import ConfigError
from muntin.recipes import TrainConfig
from muntin.training.optimization import (
    build_optimizers,
    freeze_stages,
    group_parameters,
    scaled_rate,
)
from muntin.zoo import create_model


def swin():
    return create_model(
        "swin_nano_patch2_window4_32",
        num_classes=3,
        embed_dim=8,
        depths=(2, 1),
        num_heads=(1, 2),
        out_indices=(0, 1),
        absolute_pos_embed=True,
    )


def vit():
    return create_model("vit_tiny_patch16_224", num_classes=3, embed_dim=12, depth=2, img_size=32)


BUILD = {"swin": swin, "vit": vit}


def by_name(network, layer_decay=1.0):
    groups = group_parameters(network, layer_decay)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    return {name: group for group in groups for name in group.names}


@pytest.mark.parametrize("family", BUILD)
def test_what_weight_decay_spares(family):
    network = BUILD[family]()
    spared = {name for name, group in by_name(network).items() if not group.decays}
    expected = {
        name
        for name, parameter in network.named_parameters()
        if "norm" in name
        or name.endswith((".bias", "relative_position_bias_table", "pos_embed", "cls_token"))
    }
    assert spared == expected
    assert "head.fc.weight" not in spared
    assert "backbone.patch_embed.proj.weight" not in spared


def test_layer_decay_of_swin():
    # Layers: patches 0, blocks 1, 2 (and the way down), 3, norm and head 4.
    scales = {name: group.scale for name, group in by_name(swin(), 0.5).items()}
    expected = {
        "backbone.patch_embed.proj.weight": 4,
        "backbone.absolute_pos_embed": 4,
        "backbone.layers.0.blocks.0.attn.qkv.weight": 3,
        "backbone.layers.0.blocks.1.mlp.fc1.weight": 2,
        "backbone.layers.0.downsample.reduction.weight": 2,
        "backbone.layers.1.blocks.0.attn.relative_position_bias_table": 1,
        "backbone.norm.weight": 0,
        "head.fc.weight": 0,
    }
    assert {name: scales[name] for name in expected} == {n: 0.5**k for n, k in expected.items()}


def test_layer_decay_of_vit():
    scales = {name: group.scale for name, group in by_name(vit(), 0.5).items()}
    expected = {
        "backbone.cls_token": 3,
        "backbone.pos_embed": 3,
        "backbone.patch_embed.proj.bias": 3,
        "backbone.blocks.0.attn.qkv.weight": 2,
        "backbone.blocks.1.mlp.fc2.bias": 1,
        "backbone.norm.bias": 0,
        "head.fc.bias": 0,
    }
    assert {name: scales[name] for name in expected} == {n: 0.5**k for n, k in expected.items()}


@pytest.mark.parametrize("family", BUILD)
def test_muon_takes_the_matrices_of_the_blocks(family):
    network = BUILD[family]()
    adamw, muon = build_optimizers(network, TrainConfig(optimizer="muon", lr_batch=0), 8)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    ends = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")
    assert all(name.endswith(ends) for name in by_muon)
    assert {"head.fc.weight", "backbone.patch_embed.proj.weight"} <= by_adamw


def test_groups_carry_rate_and_decay():
    config = TrainConfig(learning_rate=0.1, lr_batch=100, layer_decay=0.5, weight_decay=0.3)
    (adamw,) = build_optimizers(swin(), config, 50)
    peaks = {group["peak"] for group in adamw.param_groups}
    assert peaks == {0.05 * 0.5**layer for layer in range(5)}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.3}


def test_learning_rate_follows_the_effective_batch():
    config = TrainConfig(learning_rate=1e-3, lr_batch=512, accumulate=4)
    assert scaled_rate(config, 64) == pytest.approx(1e-3 * 256 / 512)
    assert scaled_rate(TrainConfig(learning_rate=1e-3, lr_batch=0, accumulate=4), 64) == 1e-3


@pytest.mark.parametrize(
    ("family", "freeze", "learning"),
    [
        ("swin", 1, ("backbone.layers.1.", "backbone.norm.", "head.")),
        ("swin", 2, ("backbone.norm.", "head.")),
        ("swin", -1, ("head.",)),
        ("vit", 1, ("backbone.blocks.1.", "backbone.norm.", "head.")),
        ("vit", -1, ("head.",)),
        ("vit", 0, ("backbone.", "head.")),
    ],
)
def test_freezing(family, freeze, learning):
    network = BUILD[family]()
    frozen = freeze_stages(network, freeze)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == name.startswith(learning), name
        assert (name in frozen) != parameter.requires_grad


def test_something_must_learn():
    network = swin().requires_grad_(False)
    with pytest.raises(ConfigError, match=r"train\.freeze=-1"):
        build_optimizers(network, TrainConfig(freeze=-1), 8)


def test_betas_must_be_decays():
    with pytest.raises(ConfigError, match=r"train\.betas.* 2"):
        build_optimizers(torch.nn.Linear(2, 2), TrainConfig(betas=(0.9, 2.0)), 8)
