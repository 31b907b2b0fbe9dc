# SPDX-License-Identifier: Apache-2.0
"""What an error advises leads to equal outputs, and what no field gives is named."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import transformers
from timm.layers import RmsNorm, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from muntin import configs
from muntin.errors import WeightError
from muntin.heads.classification_head import build_classifier
from muntin.heads.network import Network
from muntin.models.hiera import HieraConfig
from muntin.models.swin import SwinConfig
from muntin.models.swin_v2 import SwinV2Config
from muntin.models.t2t_vit import T2TViTConfig
from muntin.models.vit import ViTConfig
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights
from muntin.zoo import build_backbone, change_model
from tests.parity.peers import TOLERANCE, batch_images, distance, perturb, run_peer

VIT = ViTConfig(embed_dim=24, depth=2, num_heads=3, patch_size=8, img_size=(32, 32))
TIMM = {
    "img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5,
}  # fmt: skip
BEIT = {"use_abs_pos_emb": False, "use_rel_pos_bias": True}


def build(config) -> Network:
    backbone = build_backbone(config)
    return Network(backbone, build_classifier(backbone, 5)).eval()


def timm_vit(**changed) -> nn.Module:
    return VisionTransformer(**{**TIMM, **changed})


def hf_dinov2(kind="Dinov2", **changed) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        mlp_ratio=4, num_labels=5, **changed,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForImageClassification")(config)


def hf_beit() -> nn.Module:
    config = transformers.BeitConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, num_labels=5, use_relative_position_bias=True, layer_norm_eps=1e-6,
    )  # fmt: skip
    return transformers.BeitForImageClassification(config)


GATED = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
# (source, fields of our model that are wrong, fields that the message must name)
ADVICE = {
    "norm of the mean": (lambda: timm_vit(global_pool="avg"), {}, "pool pool_norm"),
    "norm of all tokens": (timm_vit, {"pool": "mean", "pool_norm": "after"}, "pool pool_norm"),
    "layer scale": (lambda: timm_vit(init_values=0.1), {}, "layer_scale"),
    "no layer scale": (timm_vit, {"layer_scale": 0.1}, "layer_scale"),
    "registers": (lambda: timm_vit(reg_tokens=4, no_embed_class=True), {}, "registers"),
    "fewer registers": (
        lambda: timm_vit(reg_tokens=1, no_embed_class=True), {"registers": 2}, "registers",
    ),
    "gated": (lambda: timm_vit(**GATED), {}, "activation mlp_ratio"),
    "not gated": (timm_vit, {"activation": "swiglu"}, "activation"),
    "as DINOv2": (
        lambda: timm_vit(init_values=0.1, reg_tokens=2, no_embed_class=True, **GATED), {},
        "activation layer_scale mlp_ratio registers",
    ),
    "depth": (lambda: timm_vit(depth=3), {}, "depth"),
    "less depth": (lambda: timm_vit(depth=1), {}, "depth"),
    "width": (lambda: timm_vit(embed_dim=32, num_heads=4), {}, "embed_dim num_heads"),
    "MLP": (lambda: timm_vit(mlp_ratio=2.5), {}, "mlp_ratio"),
    "no qkv bias": (lambda: timm_vit(qkv_bias=False), {}, "qkv_bias"),
    "no class token": (
        lambda: timm_vit(class_token=False, global_pool="avg", fc_norm=False), {},
        "class_token pool",
    ),
    "distillation token": (
        lambda: VisionTransformerDistilled(**TIMM), {}, "distillation_token",
    ),
    "no distillation token": (timm_vit, {"distillation_token": True}, "distillation_token"),
    "tables": (
        lambda: Beit(**TIMM, **BEIT, init_values=0.1), {},
        "absolute_pos_embed key_bias layer_scale pool pool_norm relative_pos_bias",
    ),
    "tables of another layout": (
        hf_beit, {},
        "absolute_pos_embed key_bias layer_scale pool pool_norm relative_pos_bias",
    ),
    "DINOv2 of transformers": (hf_dinov2, {}, "layer_scale pool"),
    "DINOv2 of transformers, registers": (
        lambda: hf_dinov2("Dinov2WithRegisters", use_swiglu_ffn=True), {},
        "activation layer_scale mlp_ratio pool registers",
    ),
}  # fmt: skip


def advice(model, state) -> dict:
    """The fields that the error advises."""
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightError, match="build it with") as caught:
        load_weights(model, state)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    text = re.search(r"build it with (.*?), then the weights fit", str(caught.value))[1]
    return eval(f"dict({text})", {})


@pytest.mark.parity
@pytest.mark.parametrize("name", ADVICE)
def test_advice_leads_to_equal_outputs(name):
    make, wrong, named = ADVICE[name]
    peer = perturb(make())
    config = replace(VIT, **wrong)
    fields = advice(build(config), peer.state_dict())
    assert sorted(fields) == named.split()
    model = build(replace(config, **fields))
    load_weights(model, peer.state_dict())
    images = batch_images((32, 32))
    with torch.no_grad():
        assert distance(model(images), run_peer(peer, images)) < TOLERANCE


@pytest.mark.parity
@pytest.mark.parametrize("prefix_positions", [True, False])
@pytest.mark.parametrize("no_embed_class", [True, False])
def test_a_position_of_the_class_token_more_or_less_needs_no_advice(
    prefix_positions, no_embed_class
):
    peer = perturb(timm_vit(no_embed_class=no_embed_class, dynamic_img_size=True))
    model = build(replace(VIT, prefix_positions=prefix_positions))
    load_weights(model, peer.state_dict())
    for size in ((32, 32), (24, 48), (40, 16)):
        images = batch_images(size)
        with torch.no_grad():
            assert distance(model(images), peer(images)) < TOLERANCE


SWIN = SwinConfig(
    embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4, img_size=(32, 32),
    out_indices=(0, 1),
)  # fmt: skip
V2 = SwinV2Config(
    embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4, img_size=(32, 32),
    out_indices=(0, 1), pretrained_windows=(0, 0), bias_hidden=8,
)  # fmt: skip
T2T = T2TViTConfig(embed_dim=16, depth=2, num_heads=2, token_dim=8, img_size=(32, 32))
HIERA = HieraConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=1, img_size=(64, 64))
FAMILIES = {
    "Swin, depths": (SWIN, {"depths": (2, 2)}, "microsoft"),
    "Swin, heads": (SWIN, {"num_heads": (2, 4)}, "torchvision"),
    "Swin, width": (SWIN, {"embed_dim": 16}, "transformers"),
    "Swin, stages": (
        SWIN, {"depths": (1, 1, 1), "num_heads": (1, 2, 4), "out_indices": (0, 1, 2)}, "timm",
    ),
    "Swin, patch norm": (SWIN, {"patch_norm": False}, "microsoft"),
    "Swin, positions": (SWIN, {"absolute_pos_embed": True}, "microsoft"),
    "Swin, no bias": (SWIN, {"qkv_bias": False, "mlp_ratio": 2.0}, "timm"),
    "Swin V2, heads": (V2, {"num_heads": (2, 4), "bias_hidden": 16}, "timm"),
    "Swin V2, stages": (
        V2, {"depths": (1, 1, 1), "num_heads": (1, 2, 4), "out_indices": (0, 1, 2)}, "timm",
    ),
    "Swin V2, no bias": (V2, {"qkv_bias": False}, "timm"),
    "T2T-ViT": (T2T, {"token_attention": "transformer", "token_dim": 4, "depth": 3}, "timm"),
    "T2T-ViT, width": (T2T, {"embed_dim": 32, "num_heads": 4, "mlp_ratio": 2.0}, "timm"),
    "Hiera": (HIERA, {"depths": (1, 2, 1, 1), "mlp_ratio": 2.0}, "timm"),
    "Hiera, width": (HIERA, {"embed_dim": 16, "num_heads": 2}, "timm"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_advice_in_other_families_leads_to_the_source(name):
    config, changed, dialect = FAMILIES[name]
    source = perturb(build(configs.replace(config, changed)))
    state = to_dialect(source, dialect)
    fields = advice(build(config), state)
    assert fields == changed
    rule = {} if config == T2T else {"size_rule": "muntin"}
    model = build(configs.replace(config, {**fields, **rule}))
    load_weights(model, state)
    images = batch_images(config.img_size)
    with torch.no_grad():
        assert distance(model(images), source(images)) < TOLERANCE


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("config", "other"), [(SWIN, V2), (V2, SWIN)])
def test_weights_of_the_other_swin_are_named(config, other, native):
    source = build(other)
    state = source.state_dict() if native else to_dialect(source, "timm")
    name = type(other).__name__.removesuffix("Config")
    with pytest.raises(WeightError, match=rf"\bof a {name}\b"):
        load_weights(build(config), state)


@pytest.mark.parametrize("fields", [{"depths": (1, 3)}, {"embed_dim": 16}, {"mlp_ratio": 2.0}])
def test_a_change_that_weights_do_not_follow_is_not_advised_back(fields):
    with pytest.raises(WeightError, match=f"keep {next(iter(fields))}") as caught:
        change_model(build(SWIN), **fields)
    assert "build it with" not in str(caught.value)


PLAIN = to_dialect(build(VIT), "timm")
LACKING = {
    "convolutional stem": {"patch_embed.backbone.stem.conv.weight": torch.ones(8, 3, 7, 7)},
    "frames": {"patch_embed.proj.weight": torch.ones(24, 3, 2, 8, 8)},
    "group of channels": {"channel_embed": torch.ones(1, 2, 24)},
    "positions in time": {"temporal_embed": torch.ones(1, 4, 24)},
    "rotary positions": {"rope_embed.periods": torch.ones(4)},
    "before the blocks": {"norm_pre.weight": torch.ones(24)},
    "inside the attention": {"blocks.0.attn.q_norm.weight": torch.ones(8)},
    "learned tokens": {"pretext_token": torch.ones(1, 1, 24), "pos_embed": torch.ones(1, 18, 24)},
    "positions for 2 tokens": {"pos_embed": torch.ones(1, 18, 24)},
    "pooling by attention": {"attn_pool.latent": torch.ones(1, 1, 24)},
}


@pytest.mark.parametrize(
    ("options", "words"),
    [({"norm_layer": RmsNorm}, r"RMSNorm.*norm1\.bias"), ({"final_norm": False}, r"norm\.weight")],
)
def test_norms_of_another_kind_are_named(options, words):
    with pytest.raises(WeightError, match=rf"{words}\).*timm:"):
        load_weights(build(VIT), timm_vit(**options).state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Swin", "Swin V2", "BEiT"])
def test_the_advice_for_torchscript_leads_to_equal_outputs(kind, tmp_path):
    swin = {"img_size": 32, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "num_classes": 5}
    peer, config = {
        "Swin": lambda: (SwinTransformer(window_size=4, **swin), SWIN),
        "Swin V2": lambda: (SwinTransformerV2(window_size=4, **swin), replace(V2, bias_hidden=512)),
        "BEiT": lambda: (
            Beit(**TIMM, **BEIT, init_values=0.1),
            replace(
                VIT, absolute_pos_embed=False, key_bias=False, layer_scale=0.1, pool="mean",
                pool_norm="after", relative_pos_bias=True,
            ),
        ),
    }[kind]()  # fmt: skip
    images = batch_images((32, 32))
    torch.jit.trace(perturb(peer).eval(), images).save(tmp_path / "model.pt")
    with pytest.raises(WeightError, match="TorchScript") as caught:
        load_weights(build(config), tmp_path / "model.pt")
    advised = re.search(r"torch\.save\((.*), 'weights\.pth'\)", str(caught.value))[1]
    model = build(config)
    load_weights(model, eval(advised, {"torch": torch}))
    with torch.no_grad():
        assert distance(model(images), peer(images)) < TOLERANCE


@pytest.mark.parametrize("words", LACKING)
def test_what_no_field_gives_is_named(words):
    with pytest.raises(WeightError, match=words) as caught:
        load_weights(build(VIT), PLAIN | LACKING[words])
    assert "build it with" not in str(caught.value)
    assert "timm:" in str(caught.value)


def test_dinov3_of_transformers_is_named():
    config = transformers.DINOv3ViTConfig(
        image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=1, num_attention_heads=3
    )
    with pytest.raises(WeightError, match=r"DINOv3.*timm:"):
        load_weights(build(VIT), transformers.DINOv3ViTModel(config).state_dict())
