# SPDX-License-Identifier: Apache-2.0
"""Necks: the feature pyramid beside torchvision's, the simple one beside a twin in plain steps."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

import muntin
from muntin.errors import ConfigError
from muntin.features import FeatureSpec
from muntin.heads.necks import FeaturePyramid, NeckConfig, SimplePyramid, build_neck

SPEC = FeatureSpec(channels=(8, 16, 32, 48), strides=(4, 8, 16, 32))
ODD = [(25, 37), (13, 19), (7, 10), (4, 5)]
EVEN = [(32, 48), (16, 24), (8, 12), (4, 6)]


def maps_of(sizes, channels=SPEC.channels):
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]


def torchvision_pyramid(neck, extra):
    """torchvision's with the weights of ours."""
    peer = FeaturePyramidNetwork([m.conv.in_channels for m in neck.lateral], 16, extra_blocks=extra)
    for ours, theirs in ((neck.lateral, peer.inner_blocks), (neck.output, peer.layer_blocks)):
        for conv, block in zip(ours, theirs, strict=True):
            nn.init.normal_(conv.conv.bias)
            block[0].load_state_dict(conv.conv.state_dict())
    return peer


@pytest.mark.parity
@pytest.mark.parametrize("sizes", [ODD, EVEN])
@pytest.mark.parametrize("extra", ["pool", "conv"])
def test_pyramid_is_torchvisions(sizes, extra):
    finest = 4 if extra == "pool" else 8
    config = NeckConfig(
        channels=16, finest=finest, extra=extra, extra_levels=1 if extra == "pool" else 2
    )
    neck = build_neck(SPEC, config)
    assert isinstance(neck, FeaturePyramid)
    blocks = LastLevelMaxPool() if extra == "pool" else LastLevelP6P7(16, 16)
    peer = torchvision_pyramid(neck, blocks)
    if extra == "conv":
        blocks.p6.load_state_dict(neck.extra.convs[0].state_dict())
        blocks.p7.load_state_dict(neck.extra.convs[1].state_dict())
    maps = maps_of(sizes)
    read = maps[neck.skipped :]
    with torch.no_grad():
        expected = list(peer(OrderedDict((str(i), m) for i, m in enumerate(read))).values())
        levels = neck(maps)
    assert neck.strides == ((4, 8, 16, 32, 64) if extra == "pool" else (8, 16, 32, 64, 128))
    for level, other in zip(levels, expected, strict=True):
        torch.testing.assert_close(level, other, rtol=1e-5, atol=1e-5)


def test_a_backbone_coarser_than_wanted_keeps_its_last_map():
    neck = build_neck(SPEC, NeckConfig(channels=16, finest=128, extra_levels=0))
    assert neck.strides == (32,)
    assert [level.shape for level in neck(maps_of(EVEN))] == [(2, 16, 4, 6)]


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
def test_norms_stand_behind_every_convolution(norm):
    neck = build_neck(SPEC, NeckConfig(channels=16, norm=norm))
    for conv in (*neck.lateral, *neck.output):
        assert (conv.conv.bias is None) == (norm != "none")
    assert all(level.shape[1] == 16 for level in neck(maps_of(ODD)))


# The simple pyramid.


def channel_norm(maps, weight, bias, eps=1e-6):
    """Over the channels of every cell, written out."""
    mean = maps.mean(dim=1, keepdim=True)
    variance = ((maps - mean) ** 2).mean(dim=1, keepdim=True)
    return (maps - mean) / (variance + eps).sqrt() * weight[:, None, None] + bias[:, None, None]


def doubled(maps, weight, bias):
    """A transposed convolution with kernel and stride 2: every cell becomes four."""
    parts = torch.einsum("bchw,cdyx->bdhywx", maps, weight)  # B, d, H, 2, W, 2
    batch, dim, high, _, wide, _ = parts.shape
    return parts.reshape(batch, dim, 2 * high, 2 * wide) + bias[:, None, None]


def simple_twin(state, last, norm):
    """Section 3 of Li et al. 2022, level by level."""

    def transposed(name, maps):
        return doubled(maps, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(name, maps, padding):
        bias = state.get(f"{name}.conv.bias")
        maps = F.conv2d(maps, state[f"{name}.conv.weight"], bias, padding=padding)
        if norm == "layer":
            maps = channel_norm(maps, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
        return maps

    quarter = channel_norm(
        transposed("scaling.0.0", last), state["scaling.0.1.weight"], state["scaling.0.1.bias"]
    )
    scaled = [
        transposed("scaling.0.3", F.gelu(quarter)),
        transposed("scaling.1.0", last),
        last,
        F.max_pool2d(last, 2),
    ]
    levels = [
        conv(f"output.{i}", conv(f"lateral.{i}", maps, 0), 1) for i, maps in enumerate(scaled)
    ]
    return [*levels, levels[-1][:, :, ::2, ::2]]


@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_simple_pyramid_matches_its_reference(norm, size):
    neck = build_neck(FeatureSpec(channels=(24,), strides=(16,)), NeckConfig(channels=8, norm=norm))
    assert isinstance(neck, SimplePyramid)
    with torch.no_grad():
        for parameter in neck.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    state = {key: tensor.double() for key, tensor in neck.state_dict().items()}
    last = torch.randn(2, 24, *size)
    expected = simple_twin(state, last.double(), norm)
    for level, other in zip(neck([last]), expected, strict=True):
        torch.testing.assert_close(level.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("finest", "strides"), [(4, (4, 8, 16, 32, 64)), (8, (8, 16, 32, 64)), (16, (16, 32, 64))]
)
def test_a_real_vit_gets_levels_of_every_stride(finest, strides):
    body = muntin.create_backbone("vit_tiny_patch16_224", depth=2)
    neck = build_neck(body.spec, NeckConfig(channels=16, finest=finest, norm="layer"))
    assert neck.strides == strides
    levels = neck(body(torch.rand(1, 3, 64, 96)))
    expected = [(1, 16, 64 // s, 96 // s) for s in strides[:-1]]
    assert [level.shape for level in levels[:-1]] == expected
    assert levels[-1].shape == (1, 16, 1, 2)


@pytest.mark.parametrize("changes", [{"channels": 0}, {"extra_levels": 5}])
def test_impossible_necks_are_refused(changes):
    with pytest.raises(ConfigError, match="neck"):
        NeckConfig(**changes)
