# SPDX-License-Identifier: Apache-2.0
"""Which parameter learns how."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from muntin.errors import ConfigError
from muntin.train_config import TrainConfig
from muntin.training.optimization import (
    build_optimizers,
    freeze_stages,
    group_parameters,
    scaled_learning_rate,
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


def small(family):
    name, fields = SMALL[family]
    return create_model(name, num_classes=3, **fields)


PLAIN = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": 32}
# Tokens alike in all families: two stages of a hierarchy, or two blocks of a plain ViT.
SMALL = {
    "swin": ("swin_nano", {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2),
        "out_indices": (0, 1), "absolute_pos_embed": True}),
    "swin_v2": ("swinv2_tiny_window8_256", {"embed_dim": 8, "depths": (2, 1),
        "num_heads": (1, 2), "out_indices": (0, 1), "window_size": 4, "img_size": 32,
        "pretrained_windows": (0, 0)}),
    "vit": ("vit_tiny_patch16_224", PLAIN),
    "vit_mean": ("vit_tiny_patch16_224", {**PLAIN, "pool": "mean", "pool_norm": "after"}),
    "deit": ("deit_tiny_distilled_patch16_224", PLAIN),
    "t2t_vit": ("t2t_vit_7", {"depth": 2, "img_size": 32}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 8, "depths": (2, 1), "pooled_stages": 1,
        "global_from": 1, "out_indices": (0, 1), "img_size": 32}),
}  # fmt: skip
SWIN_LAYERS = {
    0: "patch_embed absolute_pos_embed", 1: "layers.0.blocks.0",
    2: "layers.0.blocks.1 layers.0.downsample", 3: "layers.1.blocks.0", 4: "norm",
}  # fmt: skip
VIT_LAYERS = {
    0: "patch_embed pos_embed cls_token dist_token tokens_to_token", 1: "blocks.0", 2: "blocks.1",
    3: "norm fc_norm",
}  # fmt: skip
HIERA_LAYERS = {
    0: "patch_embed pos_embed", 1: "blocks.0", 2: "blocks.1", 3: "blocks.2", 4: "norm",
}  # fmt: skip
LAYERS = {
    "swin": SWIN_LAYERS, "swin_v2": SWIN_LAYERS, "hiera": HIERA_LAYERS,
    **dict.fromkeys(("vit", "vit_mean", "deit", "t2t_vit"), VIT_LAYERS),
}  # fmt: skip


def by_name(network, layer_decay=1.0):
    groups = group_parameters(network, layer_decay)
    names = [name for group in groups for name in group.names]
    assert sorted(names) == sorted(n for n, p in network.named_parameters() if p.requires_grad)
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


@pytest.mark.parametrize("family", SMALL)
def test_layer_decay_of_every_parameter(family):
    network = small(family)
    layer_of = {
        f"backbone.{start}": layer
        for layer, starts in LAYERS[family].items()
        for start in starts.split()
    }
    last = max(layer_of.values())
    layer_of["head"] = last
    for name, group in by_name(network, 0.5).items():
        (layer,) = (n for start, n in layer_of.items() if f"{name}.".startswith(f"{start}."))
        assert group.scale == 0.5 ** (last - layer), name
    assert len(network.backbone.blocks) == last - 1


# Parameters of the stem, and one in its last block, by names of timm.
TIMM = {
    "test_vit": (("cls_token", "pos_embed", "patch_embed.proj.weight"), "blocks.5.mlp.fc2.bias"),
    "test_convnext": (("stem.0.weight", "stem.1.bias"), "stages.3.blocks.1.mlp.fc1.weight"),
    "test_resnet": (("conv1.0.weight", "bn1.weight"), "layer4.0.conv1.weight"),
    "swin_tiny_patch4_window7_224": (("patch_embed.proj.bias",), "layers.3.blocks.1.norm1.bias"),
}


@pytest.mark.parametrize("name", TIMM)
def test_layer_decay_of_timm_is_that_of_timm(name):
    timm, optim = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    with torch.device("meta"):
        network, theirs = create_model(f"timm:{name}", num_classes=3), timm.create_model(name)
    names = {parameter: key for key, parameter in theirs.named_parameters()}
    rows = optim.param_groups_layer_decay(theirs, layer_decay=0.5)
    expected = {names[one]: row["lr_scale"] for row in rows for one in row["params"]}
    scales = {key: group.scale for key, group in by_name(network, 0.5).items()}
    classifier = theirs.default_cfg["classifier"]
    for key, scale in scales.items():
        inner = key.removeprefix("backbone.net.").replace("head.fc", classifier)
        assert scale == expected.pop(inner), key
    assert not expected
    stem, inside = TIMM[name]
    blocks = len(network.backbone.blocks)
    assert blocks > 1
    assert {scales[f"backbone.net.{key}"] for key in stem} == {0.5 ** (blocks + 1)}
    assert scales[f"backbone.net.{inside}"] == 0.5
    assert scales["head.fc.weight"] == 1


@pytest.mark.parametrize("family", BUILD)
def test_muon_takes_the_matrices_of_the_blocks(family):
    network = BUILD[family]()
    adamw, muon = build_optimizers(network, TrainConfig(optimizer="muon", lr_batch=0))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    ends = ("qkv.weight", "proj.weight", "fc1.weight", "fc2.weight", "reduction.weight")
    assert all(name.endswith(ends) for name in by_muon)
    assert {"head.fc.weight", "backbone.patch_embed.proj.weight"} <= by_adamw


def test_groups_carry_rate_and_decay():
    config = TrainConfig(
        batch_size=50, learning_rate=0.1, lr_batch=100, layer_decay=0.5, weight_decay=0.3
    )
    (adamw,) = build_optimizers(swin(), config)
    peaks = {group["peak"] for group in adamw.param_groups}
    assert peaks == {0.05 * 0.5**layer for layer in range(5)}
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0, 0.3}


def test_learning_rate_follows_the_effective_batch():
    config = TrainConfig(batch_size=64, learning_rate=1e-3, lr_batch=512, accumulate=4)
    assert scaled_learning_rate(config) == pytest.approx(1e-3 * 256 / 512)
    assert scaled_learning_rate(replace(config, lr_batch=0)) == 1e-3


@pytest.mark.parametrize(
    ("family", "freeze", "learning"),
    [
        ("swin", 1, "layers.1 norm"),
        ("swin", 2, "norm"),
        ("swin_v2", 1, "layers.1 norm"),
        ("vit", 1, "blocks.1 norm"),
        ("vit", 0, "patch_embed cls_token pos_embed blocks norm"),
        ("deit", 1, "blocks.1 norm"),
        ("t2t_vit", 1, "blocks.1 norm"),
        ("hiera", 1, "blocks.2 norm"),
        ("hiera", 2, "norm"),
        *((family, -1, "") for family in SMALL),
    ],
)
def test_freezing(family, freeze, learning):
    check_frozen(small(family), freeze, learning)


@pytest.mark.parametrize(
    ("name", "freeze", "learning"),
    [
        ("test_vit", 5, "net.blocks.5 net.norm net.fc_norm"),
        ("test_convnext", 2, "net.stages.2 net.stages.3 net.norm_pre net.head"),
        ("test_resnet", 3, "net.layer4"),
        ("test_resnet", 4, ""),
        ("test_resnet", -1, ""),
    ],
)
def test_freezing_timm(name, freeze, learning):
    pytest.importorskip("timm")
    check_frozen(create_model(f"timm:{name}", num_classes=3), freeze, learning)


def check_frozen(network, freeze, learning):
    before = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = freeze_stages(network, freeze)
    starts = ("head.", *(f"backbone.{start}." for start in learning.split()))
    for name, parameter in network.named_parameters():
        learns = name in before and f"{name}.".startswith(starts)
        assert parameter.requires_grad == learns, name
        assert name in frozen or not f"{name}.".startswith("backbone.") or learns, name


@pytest.mark.parametrize(
    ("family", "count"),
    [
        ("swin", "2,.*stages.*Swin,"),
        ("swin_v2", "2,.*stages.*SwinV2,"),
        ("vit", "2,.*blocks.*ViT,"),
        ("t2t_vit", "2,.*blocks.*T2TViT,"),
        ("hiera", "2,.*stages.*Hiera,"),
    ],
)
def test_no_more_than_there_is_can_be_frozen(family, count):
    network = small(family)
    learning = [parameter.requires_grad for parameter in network.parameters()]
    with pytest.raises(ConfigError, match=rf"train\.freeze.*{count} got 3"):
        freeze_stages(network, 3)
    assert [parameter.requires_grad for parameter in network.parameters()] == learning


def test_no_more_of_timm_than_there_is_can_be_frozen():
    pytest.importorskip("timm")
    for name, count in (
        ("test_vit", "6,.*blocks"),
        ("test_convnext", "4,.*stages"),
    ):
        network = create_model(f"timm:{name}", num_classes=3)
        with pytest.raises(ConfigError, match=rf"train\.freeze.*{count}.*got 99"):
            freeze_stages(network, 99)


def test_something_must_learn():
    network = swin().requires_grad_(False)
    with pytest.raises(ConfigError, match=r"train\.freeze=-1"):
        build_optimizers(network, TrainConfig(freeze=-1))


def test_betas_must_be_decays():
    with pytest.raises(ConfigError, match=r"train\.betas.* 2"):
        build_optimizers(torch.nn.Linear(2, 2), TrainConfig(betas=(0.9, 2.0)))
