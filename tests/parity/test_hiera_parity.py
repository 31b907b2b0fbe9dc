# SPDX-License-Identifier: Apache-2.0
"""Hiera against timm and transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import transformers
from timm.models.hiera import Hiera as TimmHiera

from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.hiera import HIERA_TINY, Hiera, HieraConfig
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import (
    NUM_CLASSES,
    TOLERANCE,
    assert_equal_outputs,
    batch_images,
    distance,
    logits_and_gradient,
    perturb,
    record_plain,
)

pytestmark = pytest.mark.parity

SMALL = HieraConfig(embed_dim=8, depths=(1, 2, 3, 2), num_heads=1, img_size=(64, 64))


def timm_peer(config):
    return TimmHiera(
        img_size=config.img_size,
        num_classes=NUM_CLASSES,
        embed_dim=config.embed_dim,
        num_heads=config.num_heads,
        stages=config.depths,
    )


def transformers_peer(config):
    peer_config = transformers.HieraConfig(
        image_size=list(config.img_size),
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=[config.num_heads * 2**i for i in range(4)],
        num_labels=NUM_CLASSES,
        layer_norm_eps=config.norm_eps,
    )
    return transformers.HieraForImageClassification(peer_config)


PEERS = {"timm": timm_peer, "transformers": transformers_peer}


def build(config, num_classes=NUM_CLASSES):
    body = Hiera(config)
    return Network(body, LinearHead(body.embed_channels, num_classes)).eval()


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 192)])
@pytest.mark.parametrize("dialect", PEERS)
def test_small_model_equals_its_peer(dialect, size):
    config = replace(SMALL, img_size=size)
    peer, model = perturb(PEERS[dialect](config)), build(config)
    assert load_weights(model, peer.state_dict()).dialect == dialect
    record_plain(model, dialect, dialect, assert_equal_outputs(model, peer, size))


@pytest.mark.parametrize("size", [(96, 64), (128, 192)])
def test_positions_are_resized_as_transformers_does(size):
    peer, model = perturb(transformers_peer(SMALL)), build(SMALL)
    assert load_weights(model, peer.state_dict()).size_rule == "transformers"
    images = batch_images(size)
    with torch.no_grad():
        theirs = peer(images, interpolate_pos_encoding=True).logits
        assert distance(model(images), theirs) < TOLERANCE


@pytest.mark.parametrize("dialect", PEERS)
def test_export_to_the_peer_is_strict_and_bit_exact(dialect):
    peer, model = perturb(PEERS[dialect](SMALL)), build(SMALL)
    load_weights(model, peer.state_dict())
    back = to_dialect(model, dialect)
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in peer.state_dict().items())


def test_maps_equal_those_of_timm():
    peer = perturb(timm_peer(SMALL))
    body = Hiera(replace(SMALL, out_norm="none")).eval()
    load_weights(body, peer.state_dict())
    images = batch_images((64, 64))
    with torch.no_grad():
        theirs = peer.forward_intermediates(images, intermediates_only=True)
        for ours, expected in zip(body(images), theirs, strict=True):
            assert distance(ours, expected) < TOLERANCE


def test_maps_follow_the_image_size():
    body = Hiera(SMALL).eval()
    maps = body(torch.rand(2, 3, 45, 70))
    assert [tuple(m.shape[2:]) for m in maps] == [(12, 18), (6, 9), (3, 5), (2, 3)]
    assert body.embed(torch.rand(1, 3, 5, 90)).shape == (1, 64)


@pytest.mark.slow
def test_published_tiny_equals_timm():
    peer = perturb(timm.create_model("hiera_tiny_224"))
    model = build(HIERA_TINY, num_classes=1000)
    load_weights(model, peer.state_dict())
    # Where two of four pooled queries are equal to the last bit of float32, rounding decides which
    # one the gradient goes to; in float64 none are.
    images = batch_images((224, 224)).double()
    logits, gradient = logits_and_gradient(model.double(), images)
    their_logits, their_gradient = logits_and_gradient(peer.double(), images)
    assert distance(logits, their_logits) < 1e-12
    assert distance(gradient, their_gradient) < 1e-10
