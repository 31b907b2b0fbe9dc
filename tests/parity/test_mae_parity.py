# SPDX-License-Identifier: Apache-2.0
"""Masked autoencoders against transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from muntin.errors import WeightError
from muntin.features import TokenMask
from muntin.heads.classification_head import LinearHead
from muntin.heads.head_table import build_head
from muntin.heads.mae_head import MAEConfig
from muntin.heads.network import Network
from muntin.models.hiera import Hiera, HieraConfig
from muntin.models.vit import ViT, ViTConfig
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import TOLERANCE, perturb

pytestmark = pytest.mark.parity

HEAD = MAEConfig(dim=32, depth=2, num_heads=4, norm_pix=True)
FIELDS = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": (32, 32)}
HIERA = {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": 1, "img_size": (64, 96)}


def vit_peer(in_chans):
    config = transformers.ViTMAEConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        image_size=32, patch_size=8, num_channels=in_chans, layer_norm_eps=1e-6, mask_ratio=0.5,
        norm_pix_loss=True, decoder_hidden_size=32, decoder_num_hidden_layers=2,
        decoder_num_attention_heads=4, decoder_intermediate_size=128,
    )  # fmt: skip
    return transformers.ViTMAEForPreTraining(config)


def hiera_peer(pooled, in_chans):
    config = transformers.HieraConfig(
        embed_dim=8, depths=[1, 2, 1, 1], num_heads=[1, 2, 4, 8], image_size=[64, 96],
        num_query_pool=pooled, num_channels=in_chans, mask_ratio=0.5, decoder_hidden_size=32,
        decoder_depth=2, decoder_num_heads=4,
    )  # fmt: skip
    return transformers.HieraForPreTraining(config)


def build(body):
    torch.manual_seed(0)
    return Network(body, build_head(HEAD, body)).eval()


CASES = {
    "vit": (lambda: vit_peer(3), lambda: ViT(ViTConfig(**FIELDS))),
    "vit with 4 channels": (lambda: vit_peer(4), lambda: ViT(ViTConfig(**FIELDS, in_chans=4))),
    "hiera as published": (
        lambda: hiera_peer(2, 3),
        lambda: Hiera(HieraConfig(**HIERA, pooled_stages=2, out_norm="none")),
    ),
    "hiera of classifiers, grey": (
        lambda: hiera_peer(3, 1),
        lambda: Hiera(HieraConfig(**HIERA, in_chans=1, out_norm="none")),
    ),
}


def compare(peer, network):
    """Reconstruction and loss of both, with the same parts hidden."""
    size, channels = network.backbone.config.img_size, network.backbone.config.in_chans
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, channels, *size, generator=generator)
    rows, columns = network.backbone.mask_grid(size)
    noise = torch.rand(2, rows * columns, generator=generator)
    with torch.no_grad():
        theirs = peer(images, noise=noise)
        keep = noise.argsort(dim=1).argsort(dim=1) < rows * columns // 2
        features = network.features(images, mask=TokenMask(keep))
        torch.testing.assert_close(
            network.head(features), theirs.logits, rtol=TOLERANCE, atol=TOLERANCE
        )
        losses = network.head.losses(features, images)["reconstruction"]
    torch.testing.assert_close(losses.mean(), theirs.loss, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_reconstructions_and_losses_are_equal(name):
    make_peer, make_body = CASES[name]
    peer, network = perturb(make_peer()), build(make_body())
    report = load_weights(network, peer.state_dict())
    assert (report.dialect, report.reset, report.ignored) == ("transformers", (), ())
    compare(peer, network)
    # Their names in files are written, and read again.
    again = build(make_body())
    written = to_dialect(network, "transformers")
    assert load_weights(again, written).reset == ()
    for key, tensor in network.state_dict().items():
        assert again.state_dict()[key].equal(tensor), key
    # Names of facebookresearch, and all of a decoder is dropped for a classifier.
    facebook = to_dialect(network, "timm")
    body = make_body()
    assert {"decoder_embed.weight", "mask_token", "decoder_pos_embed"} <= facebook.keys()
    assert facebook["mask_token"].shape == (1, 1, 32)
    assert load_weights(again, facebook).reset == ()
    classifier = Network(body, LinearHead(body.embed_channels, 3))
    dropped = load_weights(classifier, facebook).ignored
    assert {key for key in facebook if key.startswith("decoder")} <= {*dropped}


@pytest.mark.parametrize("pooled", [2, 3])
def test_an_encoder_of_hiera_becomes_a_classifier(pooled):
    peer, body = perturb(hiera_peer(pooled, 3)), Hiera(HieraConfig(**HIERA, pooled_stages=pooled))
    report = load_weights(Network(body, LinearHead(body.embed_channels, 3)), peer.state_dict())
    assert (report.dialect, report.dropped) == ("transformers", ())
    assert report.reset == ("head.fc.weight", "head.fc.bias")
    assert body.norm.weight.equal(peer.encoder_norm.weight)


def test_a_folder_that_transformers_wrote(tmp_path):
    """Its names of the decoder's blocks in files are others than in memory and on the hub."""
    make_peer, make_body = CASES["vit"]
    peer, network = perturb(make_peer()), build(make_body())
    peer.save_pretrained(tmp_path)
    report = load_weights(network, tmp_path)
    assert (report.dialect, report.reset) == ("transformers", ())
    compare(peer, network)
    # No shape shows how many heads attend.
    body = make_body()
    other = Network(body, build_head(replace(HEAD, num_heads=2), body))
    with pytest.raises(WeightError, match=r"head\.num_heads must be 4.*got 2"):
        load_weights(other, tmp_path)
