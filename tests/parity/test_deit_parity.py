# SPDX-License-Identifier: Apache-2.0
"""DeiT, DeiT III, MAE and SimMIM against timm and transformers, live, with random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import transformers
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT

from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.models.swin import Swin
from muntin.models.vit import ViT
from muntin.models.vit_presets import deit3_preset, vit_preset
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from tests.parity.peers import (
    NUM_CLASSES,
    SWIN,
    TOLERANCE,
    VIT,
    assert_equal_outputs,
    batch_images,
    distance,
    perturb,
)

pytestmark = pytest.mark.parity

DISTILLED = replace(VIT, distillation_token=True)
DEIT3 = replace(VIT, layer_scale=0.1, prefix_positions=False)
MAE = replace(VIT, pool="mean", pool_norm="after")
SIZES = [(32, 32), (32, 64), (48, 40), (16, 24)]


def build(config, num_classes=NUM_CLASSES):
    body = ViT(config)
    return Network(body, build_classifier(body, num_classes)).eval()


def arguments(config):
    return {
        "img_size": config.img_size,
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "num_classes": NUM_CLASSES,
        "dynamic_img_size": True,
    }


PEERS = {
    "distilled": (DISTILLED, lambda: VisionTransformerDistilled(**arguments(VIT))),
    "DeiT III": (
        DEIT3,
        lambda: TimmViT(**arguments(VIT), init_values=0.1, no_embed_class=True),
    ),
    "MAE": (MAE, lambda: TimmViT(**arguments(VIT), global_pool="avg", fc_norm=True)),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PEERS)
def test_small_model_equals_timm(name, size):
    config, make = PEERS[name]
    peer, model = perturb(make()), build(config)
    assert load_weights(model, peer.state_dict()).dialect == "timm"
    assert_equal_outputs(model, peer, size)


@pytest.mark.parametrize("name", PEERS)
def test_export_to_timm_is_strict_and_bit_exact(name):
    config, make = PEERS[name]
    peer, model = perturb(make()), build(config)
    load_weights(model, peer.state_dict())
    back = to_dialect(model, "timm")
    assert back.keys() == peer.state_dict().keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in peer.state_dict().items())


def test_both_heads_of_a_distilled_model_equal_timm_s():
    config, make = PEERS["distilled"]
    peer, model = perturb(make()), build(config)
    load_weights(model, peer.state_dict())
    peer.set_distilled_training(True)
    peer.train()
    images = batch_images((32, 32))
    with torch.no_grad():
        first, second = model.features(images).vector.chunk(2, dim=1)
        both = (model.head.fc(first), model.head.fc_dist(second))
        for ours, theirs in zip(both, peer(images), strict=True):
            assert distance(ours, theirs) < TOLERANCE


def test_distilled_model_equals_transformers(tmp_path):
    peer_config = transformers.DeiTConfig(
        image_size=32,
        patch_size=VIT.patch_size,
        hidden_size=VIT.embed_dim,
        num_hidden_layers=VIT.depth,
        num_attention_heads=VIT.num_heads,
        intermediate_size=4 * VIT.embed_dim,
        layer_norm_eps=VIT.norm_eps,
        num_labels=NUM_CLASSES,
    )
    peer = perturb(transformers.DeiTForImageClassificationWithTeacher(peer_config))
    peer.save_pretrained(tmp_path)
    for source in (tmp_path, peer.state_dict()):
        model = build(DISTILLED)
        assert load_weights(model, source).dialect == "transformers"
        assert_equal_outputs(model, peer, (32, 32))


def test_encoder_of_mae_equals_transformers(tmp_path):
    peer_config = transformers.ViTMAEConfig(
        image_size=32,
        patch_size=VIT.patch_size,
        hidden_size=VIT.embed_dim,
        num_hidden_layers=VIT.depth,
        num_attention_heads=VIT.num_heads,
        intermediate_size=4 * VIT.embed_dim,
        layer_norm_eps=VIT.norm_eps,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        mask_ratio=0.0,
    )
    whole = perturb(transformers.ViTMAEForPreTraining(peer_config))
    whole.save_pretrained(tmp_path)
    body = ViT(VIT).eval()
    report = load_weights(body, tmp_path)
    assert any(name.startswith("decoder.") for name in report.ignored)
    images = batch_images((32, 32))
    with torch.no_grad():
        out = whole.vit(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        (features,) = body(images)
        assert distance(features.flatten(2).transpose(1, 2), out[:, 1:]) < TOLERANCE


SIMMIM = replace(
    MAE,
    absolute_pos_embed=False,
    relative_pos_bias=True,
    key_bias=False,
    layer_scale=0.1,
)


def beit(shared=False):
    return Beit(
        img_size=VIT.img_size,
        patch_size=VIT.patch_size,
        num_classes=NUM_CLASSES,
        embed_dim=VIT.embed_dim,
        depth=VIT.depth,
        num_heads=VIT.num_heads,
        use_abs_pos_emb=False,
        use_rel_pos_bias=not shared,
        use_shared_rel_pos_bias=shared,
        init_values=0.1,
        global_pool="avg",
    )


@pytest.mark.parametrize("shared", [False, True])
def test_vit_of_simmim_equals_beit_of_timm(shared):
    # While it is pre-trained, all blocks share one table; SimMIM's fine-tuning copies it.
    peer, model = perturb(beit(shared)), build(SIMMIM)
    report = load_weights(model, peer.state_dict())
    assert report.dialect == "timm"
    assert not report.reset
    assert_equal_outputs(model, peer, (32, 32))


def test_encoder_of_simmim_is_taken_out_of_its_pretraining():
    peer = perturb(beit(shared=True))
    state = {f"encoder.{key}": tensor for key, tensor in peer.state_dict().items()}
    state = {key: tensor for key, tensor in state.items() if "head" not in key}
    state |= {"encoder.mask_token": torch.zeros(1, 1, 24), "decoder.0.weight": torch.zeros(2, 2)}
    body = ViT(SIMMIM).eval()
    report = load_weights(body, {"model": state})
    assert set(report.ignored) == {"encoder.mask_token", "decoder.0.weight"}
    images = batch_images((32, 32))
    with torch.no_grad():
        features = peer.forward_features(images)
        expected = peer.forward_head(features, pre_logits=True)
        assert distance(body.embed(images), expected) < TOLERANCE


def test_relative_bias_is_resized_for_other_sizes_and_on_load():
    model = build(SIMMIM)
    perturb(model)
    assert model(torch.rand(1, 3, 48, 40)).shape == (1, NUM_CLASSES)
    larger = build(replace(SIMMIM, img_size=(48, 48)))
    report = load_weights(larger, model.state_dict())
    assert len(report.resized) == SIMMIM.depth
    images = batch_images((48, 48))
    with torch.no_grad():
        assert distance(larger(images), model(images)) < TOLERANCE


def test_swin_of_simmim_is_taken_out_of_transformers(tmp_path):
    peer_config = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2, 2],
        num_heads=[1, 2, 4],
        window_size=4,
        encoder_stride=8,
    )
    peer = perturb(transformers.SwinForMaskedImageModeling(peer_config))
    peer.save_pretrained(tmp_path)
    body = Swin(SWIN).eval()
    report = load_weights(body, tmp_path)
    assert {"decoder.0.weight", "swin.embeddings.mask_token"} <= set(report.ignored)
    images = batch_images((32, 32))
    with torch.no_grad():
        out = peer.swin(images).last_hidden_state
        assert distance(body(images)[-1].flatten(2).transpose(1, 2), out) < TOLERANCE


PUBLISHED = [
    (
        "deit_tiny_distilled_patch16_224",
        replace(vit_preset("tiny", 16, 224), distillation_token=True),
    ),
    ("deit3_small_patch16_224", deit3_preset("small", 16, 224)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "config"), PUBLISHED)
def test_published_model_equals_timm(name, config):
    peer = perturb(timm.create_model(name, dynamic_img_size=True))
    model = build(config, num_classes=1000)
    load_weights(model, peer.state_dict())
    for size in ((224, 224), (256, 192)):
        assert_equal_outputs(model, peer, size)
