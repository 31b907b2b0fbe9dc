# SPDX-License-Identifier: Apache-2.0
"""Swin V2 against timm, torchvision and transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
import transformers
from timm.models.swin_transformer_v2 import SwinTransformerV2 as TimmSwinV2
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

from muntin.heads.classification_head import LinearHead
from muntin.heads.network import Network
from muntin.models.swin_v2 import SwinV2, SwinV2Config, swin_v2_preset
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import (
    NUM_CLASSES,
    assert_equal_outputs,
    batch_images,
    perturb,
    record_plain,
    run_peer,
)

pytestmark = pytest.mark.parity

SMALL = SwinV2Config(
    embed_dim=16,
    depths=(2, 2, 2),
    num_heads=(1, 2, 4),
    window_size=4,
    img_size=(32, 32),
    patch_size=2,
    out_indices=(0, 1, 2),
    pretrained_windows=(0, 0, 0),
)


def timm_peer(config):
    return TimmSwinV2(
        img_size=config.img_size,
        patch_size=config.patch_size,
        num_classes=NUM_CLASSES,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        pretrained_window_sizes=config.pretrained_windows,
        strict_img_size=False,
    )


def torchvision_peer(config):
    return torchvision.models.SwinTransformer(
        [config.patch_size] * 2,
        config.embed_dim,
        list(config.depths),
        list(config.num_heads),
        [config.windows[0]] * 2,
        num_classes=NUM_CLASSES,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
    )


def transformers_peer(config):
    peer_config = transformers.Swinv2Config(
        image_size=config.img_size[0],
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.num_heads),
        window_size=config.windows[0],
        pretrained_window_sizes=list(config.pretrained_windows),
        num_labels=NUM_CLASSES,
    )
    return transformers.Swinv2ForImageClassification(peer_config)


PEERS = {
    "timm": timm_peer,
    "torchvision": torchvision_peer,
    "transformers": transformers_peer,
}
SIZES = {
    "timm": [(32, 32), (32, 64), (46, 58), (34, 62), (6, 10)],
    "torchvision": [(32, 32), (32, 64), (45, 59), (37, 50), (6, 10)],
    "transformers": [(32, 32), (32, 64), (45, 59), (51, 37)],
}


def without_key_bias(peer):
    """Torchvision zeroes the bias of the keys in its forward, and so at the start."""
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if name.endswith("attn.qkv.bias"):
                parameter.chunk(3)[1].zero_()
    return peer


def build(config, num_classes=NUM_CLASSES):
    body = SwinV2(config)
    return Network(body, LinearHead(body.embed_channels, num_classes)).eval()


def loaded(dialect, config=SMALL, **changes):
    peer = without_key_bias(perturb(PEERS[dialect](config)))
    model = build(replace(config, **changes))
    report = load_weights(model, peer.state_dict())
    assert report.dialect == dialect
    return model, peer


@pytest.mark.parametrize("attention", ["reference", "sdpa"])
@pytest.mark.parametrize(
    ("dialect", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes]
)
def test_small_model_equals_its_peer(dialect, size, attention):
    model, peer = loaded(dialect, attention=attention)
    record_plain(model, dialect, dialect, assert_equal_outputs(model, peer, size))


BUILT = {
    "window larger than the last map": {"window_size": 7},
    "pre-trained with other windows": {"window_size": 8, "pretrained_windows": (6, 6, 3)},
    "one window a stage": {"window_size": (2, 4, 3)},
}


@pytest.mark.parametrize("size", [(32, 32), (46, 58), (4, 6)])
@pytest.mark.parametrize("name", BUILT)
def test_scale_of_the_offsets_follows_the_build(name, size):
    model, peer = loaded("timm", replace(SMALL, **BUILT[name]))
    assert_equal_outputs(model, peer, size)


def test_pretrained_windows_of_transformers():
    config = replace(SMALL, window_size=8, pretrained_windows=(6, 6, 3))
    model, peer = loaded("transformers", config)
    assert_equal_outputs(model, peer, (32, 64))


@pytest.mark.parametrize("dialect", ["timm", "torchvision", "transformers"])
def test_export_to_the_peer_is_bit_exact(dialect, tmp_path):
    model, peer = loaded(dialect)
    back = to_dialect(model, dialect)
    for key, tensor in back.items():
        assert torch.equal(tensor, peer.state_dict()[key]), key
    other = PEERS[dialect](SMALL).eval()
    other.load_state_dict(back, strict=True)
    images = batch_images((46, 58))
    with torch.no_grad():
        assert torch.equal(run_peer(other, images), run_peer(peer, images))


def test_another_order_of_query_key_value_or_merging_is_seen():
    model, peer = loaded("timm")
    images = batch_images((32, 32))
    with torch.no_grad():
        right = run_peer(peer, images)
        for part in ("attn.qkv.weight", "downsample.reduction.weight"):
            wrong = {
                key: tensor.roll(tensor.shape[0] // 3, 0)
                if key.endswith(part) and "qkv" in part
                else tensor.roll(tensor.shape[1] // 4, 1)
                if key.endswith(part)
                else tensor
                for key, tensor in peer.state_dict().items()
            }
            load_weights(model, wrong)
            assert (model(images) - right).abs().max() > 1e-3 * right.abs().max()


PUBLISHED = [
    ("timm", lambda: timm.create_model("swinv2_tiny_window8_256", strict_img_size=False)),
    ("torchvision", torchvision.models.swin_v2_t),
]


@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "make"), PUBLISHED)
def test_published_tiny_equals_its_peer(dialect, make):
    peer = without_key_bias(perturb(make()))
    model = build(swin_v2_preset("tiny", 8, 256), num_classes=1000)
    assert load_weights(model, peer.state_dict()).dialect == dialect
    for size in ((256, 256), (256, 320), (300, 196)):
        assert_equal_outputs(model, peer, size)


@pytest.mark.slow
def test_published_base_with_pretrained_windows_equals_timm():
    name = "swinv2_base_window12to16_192to256"
    peer = perturb(timm.create_model(name, strict_img_size=False))
    model = build(swin_v2_preset("base", 16, 256, pretrained=True), num_classes=1000)
    load_weights(model, peer.state_dict())
    assert_equal_outputs(model, peer, (256, 256))
