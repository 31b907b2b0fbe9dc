# SPDX-License-Identifier: Apache-2.0
"""Masked image modeling against transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from muntin.heads.classification_head import LinearHead
from muntin.heads.head_table import build_head
from muntin.heads.network import Network
from muntin.heads.simmim_head import SimMIMConfig
from muntin.models.swin import Swin, SwinConfig
from muntin.models.swin_v2 import SwinV2, SwinV2Config
from muntin.models.vit import ViT, ViTConfig
from muntin.ops.masks import draw_units
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import TOLERANCE, perturb

pytestmark = pytest.mark.parity

SWIN = SwinConfig(
    embed_dim=16, depths=(1, 2, 1), num_heads=(1, 2, 4), window_size=4, img_size=(64, 64),
    out_indices=(0, 1, 2), drop_path_rate=0.0,
)  # fmt: skip
SWIN_V2 = SwinV2Config(
    embed_dim=16, depths=(1, 2, 1), num_heads=(1, 2, 4), window_size=4, img_size=(64, 64),
    out_indices=(0, 1, 2), drop_path_rate=0.0, pretrained_windows=(0, 0, 0),
)  # fmt: skip
VIT = ViTConfig(embed_dim=24, depth=2, num_heads=3, patch_size=8, img_size=(64, 64))


def swin_peer(config):
    kind, model = transformers.SwinConfig, transformers.SwinForMaskedImageModeling
    if isinstance(config, SwinV2Config):
        kind, model = transformers.Swinv2Config, transformers.Swinv2ForMaskedImageModeling
    return model(
        kind(
            image_size=64, patch_size=4, num_channels=config.in_chans, embed_dim=16,
            depths=[1, 2, 1], num_heads=[1, 2, 4], window_size=4, drop_path_rate=0.0,
            encoder_stride=16,
        )
    )  # fmt: skip


def vit_peer(config):
    return transformers.ViTForMaskedImageModeling(
        transformers.ViTConfig(
            hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
            image_size=64, patch_size=8, num_channels=config.in_chans, encoder_stride=8,
            layer_norm_eps=1e-6,
        )
    )  # fmt: skip


CASES = {
    "swin": (SWIN, Swin, swin_peer, "microsoft"),
    "swin of 1 channel": (replace(SWIN, in_chans=1), Swin, swin_peer, "microsoft"),
    "swin v2 of 4 channels": (replace(SWIN_V2, in_chans=4), SwinV2, swin_peer, "microsoft"),
    "vit": (VIT, ViT, vit_peer, "timm"),
}
UNIT = SimMIMConfig(mask_unit=16)


def build(config, family):
    torch.manual_seed(0)
    body = family(config)
    return Network(body, build_head(UNIT, body)).eval()


def hide(network, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, network.backbone.config.in_chans, *size, generator=generator)
    side = network.backbone.mask_px
    mask = draw_units(2, network.backbone.mask_grid(size), 16 // side, 0.6, generator)
    return images, mask


@pytest.mark.parametrize("name", CASES)
def test_reconstructions_and_losses_are_equal(name):
    config, family, make_peer, official = CASES[name]
    peer, network = perturb(make_peer(config)), build(config, family)
    report = load_weights(network, peer.state_dict())
    assert (report.dialect, report.reset) == ("transformers", ())
    images, mask = hide(network, (64, 64))
    with torch.no_grad():
        theirs = peer(images, bool_masked_pos=~mask.keep)
        features = network.features(images, mask=network.head.make_mask(mask))
        ours, losses = network.head(features), network.head.losses(features, images)
    torch.testing.assert_close(ours, theirs.reconstruction, rtol=TOLERANCE, atol=TOLERANCE)
    mean = losses["reconstruction"].mean()
    torch.testing.assert_close(mean, theirs.loss, rtol=TOLERANCE, atol=TOLERANCE)
    # Names of transformers and of the official code are written, and read again.
    for dialect in ("transformers", official):
        written = to_dialect(network, dialect)
        again = build(config, family)
        report = load_weights(again, written)
        assert (report.dialect, report.reset, report.dropped) == (dialect, (), ())
        for key, tensor in network.state_dict().items():
            assert again.state_dict()[key].equal(tensor), key
    assert {"encoder.mask_token", "decoder.0.weight", "decoder.0.bias"} <= written.keys()
    # All of it is dropped for a classifier.
    body = family(config)
    unused = load_weights(Network(body, LinearHead(body.embed_channels, 3)), written).ignored
    assert {"encoder.mask_token", "decoder.0.weight", "decoder.0.bias"} <= {*unused}


@pytest.mark.parametrize("size", [(64, 96), (52, 71)])
@pytest.mark.parametrize("name", ["swin", "swin v2 of 4 channels"])
def test_odd_sizes(name, size):
    """Their reconstruction is square, so it is made of their maps; pixels beyond it are cut."""
    config, family, make_peer, _ = CASES[name]
    peer, network = perturb(make_peer(config)), build(config, family)
    load_weights(network, peer.state_dict())
    images, mask = hide(network, size)
    encoder = peer.swinv2 if config is not SWIN else peer.swin
    with torch.no_grad():
        tokens = encoder(images, bool_masked_pos=~mask.keep).last_hidden_state
        rows = -(-size[0] // 16)
        maps = tokens.transpose(1, 2).unflatten(2, (rows, -1))
        theirs = peer.decoder(maps)[:, :, : size[0], : size[1]]
        features = network.features(images, mask=network.head.make_mask(mask))
        ours, loss = network.head(features), network.head.losses(features, images)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)
    # By hand: mean error of the pixels whose token is hidden.
    side = network.backbone.mask_px
    for image in range(2):
        errors = [
            (theirs[image, :, y, x] - images[image, :, y, x]).abs().mean()
            for y in range(size[0])
            for x in range(size[1])
            if not mask.keep[image].view(-(-size[0] // side), -1)[y // side, x // side]
        ]
        expected = torch.stack(errors).mean()
        torch.testing.assert_close(loss["reconstruction"][image], expected)
