# SPDX-License-Identifier: Apache-2.0
"""Weights of pretraining in other heads, other sizes and other models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from muntin.errors import WeightError
from muntin.heads.classification_head import LinearHead
from muntin.heads.head_table import build_head
from muntin.heads.mae_head import MAEConfig
from muntin.heads.network import Network
from muntin.heads.simmim_head import SimMIMConfig
from muntin.heads.views_head import ViewsConfig
from muntin.models.hiera import Hiera, HieraConfig
from muntin.models.swin import Swin, SwinConfig
from muntin.models.vit import ViT, ViTConfig
from muntin.ops.positions import resample_grid
from muntin.weights.dialects import to_dialect
from muntin.weights.weight_loading import load_weights

VIT = ViTConfig(embed_dim=24, depth=1, num_heads=3, patch_size=8, img_size=(32, 32))
HIERA = HieraConfig(
    embed_dim=8, depths=(1, 1), num_heads=1, img_size=(64, 64), pooled_stages=1, out_norm="none",
    out_indices=(0, 1),
)  # fmt: skip
SWIN = SwinConfig(
    embed_dim=8, depths=(1, 1), num_heads=(1, 1), window_size=4, img_size=(32, 32),
    out_indices=(0, 1),
)  # fmt: skip
MAE = MAEConfig(dim=16, depth=2, num_heads=2)
PLAIN, UNIFORM = SimMIMConfig(mask_unit=8), SimMIMConfig(uniform=True, mask_unit=4, dim=16)


def build(family, config, head):
    torch.manual_seed(0)
    body = family(config)
    return Network(body, build_head(head, body))


@pytest.mark.parametrize("change", [{"dim": 32}, {"depth": 1}, {"depth": 3}])
@pytest.mark.parametrize("dialect", ["timm", "transformers", "muntin"])
def test_sizes_of_a_decoder_are_told_and_then_fit(dialect, change):
    state = to_dialect(build(ViT, VIT, MAE), dialect)
    with pytest.raises(WeightError, match=r"head\.dim=16 and head\.depth=2"):
        load_weights(build(ViT, VIT, replace(MAE, **change)), state)
    assert load_weights(build(ViT, VIT, MAE), state).reset == ()


@pytest.mark.parametrize("dialect", ["timm", "transformers"])
def test_another_pooling_is_told_and_then_fits(dialect):
    deeper = replace(HIERA, depths=(1, 1, 1), out_indices=(0, 1, 2))
    state = to_dialect(build(Hiera, deeper, MAE), dialect)
    with pytest.raises(WeightError, match=r"pooled_stages=1"):
        load_weights(build(Hiera, replace(deeper, pooled_stages=2), MAE), state)
    assert load_weights(build(Hiera, deeper, MAE), state).reset == ()


@pytest.mark.parametrize(
    ("family", "config", "dialect"),
    [
        (ViT, VIT, "timm"),
        (ViT, VIT, "transformers"),
        (Swin, SWIN, "microsoft"),
        (Swin, SWIN, "transformers"),
    ],
)
def test_a_mask_token_without_a_decoder_is_ignored(family, config, dialect):
    """As in files of DINOv2 and BEiT, and of encoders that were taken out of their networks."""
    source, model = (build(family, config, SimMIMConfig(mask_unit=8)) for _ in range(2))
    state = to_dialect(source, dialect)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("decoder.")}
    (token,) = (key for key in state if key.endswith("mask_token"))
    report = load_weights(model, state)
    own = {key for key in model.state_dict() if key.startswith("head.")}
    assert token in report.ignored
    assert {*report.reset} == own


@pytest.mark.parametrize("dialect", ["timm", "transformers", "muntin"])
def test_the_norm_of_an_encoder_becomes_that_of_a_classifier(dialect):
    source, body = build(Hiera, HIERA, MAE), Hiera(replace(HIERA, out_norm="last"))
    torch.nn.init.normal_(source.head.encoder_norm.weight)
    classifier = Network(body, LinearHead(body.embed_channels, 3))
    report = load_weights(classifier, to_dialect(source, dialect))
    assert (report.reset, report.dropped) == (("head.fc.weight", "head.fc.bias"), ())
    assert body.norm.weight.equal(source.head.encoder_norm.weight)
    assert [ours for _, ours in report.renamed if ".norm." in ours] == [
        "backbone.norm.weight", "backbone.norm.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "config", "theirs", "other"),
    [
        (ViT, VIT, MAE, SimMIMConfig(mask_unit=8)),
        (ViT, VIT, SimMIMConfig(mask_unit=8), MAE),
        (ViT, VIT, MAE, ViewsConfig()),
        (ViT, VIT, ViewsConfig(), MAE),
        (Swin, SWIN, PLAIN, UNIFORM),
        (Swin, SWIN, UNIFORM, PLAIN),
        (Swin, SWIN, UNIFORM, ViewsConfig()),
        (Hiera, HIERA, MAE, ViewsConfig()),
    ],
)
def test_another_way_to_learn_takes_the_backbone_only(family, config, theirs, other):
    source, model = build(family, config, theirs), build(family, config, other)
    heads = {key for key in source.state_dict() if key.startswith("head.")}
    own = {key for key in model.state_dict() if key.startswith("head.")}
    report = load_weights(model, source.state_dict())
    assert ({*report.ignored}, {*report.reset}, report.dropped) == (heads, own, ())
    for key, tensor in source.backbone.state_dict().items():
        assert model.backbone.state_dict()[key].equal(tensor)
    # The same for a classifier, and weights of a classifier here.
    classifier = Network(family(config), LinearHead(model.backbone.embed_channels, 3))
    report = load_weights(classifier, source.state_dict())
    assert ({*report.ignored}, {*report.reset}) == (heads, {"head.fc.weight", "head.fc.bias"})
    assert report.dropped == ()
    report = load_weights(model, classifier.state_dict())
    assert ({*report.reset}, report.dropped) == (own, ())


@pytest.mark.parametrize(
    ("family", "config", "head", "old", "new"),
    [
        (ViT, VIT, MAE, (4, 4), (6, 2)),
        (Hiera, HIERA, MAE, (8, 8), (12, 4)),
        (Swin, SWIN, UNIFORM, (8, 8), (12, 4)),
    ],
)
def test_places_of_a_decoder_are_resized(family, config, head, old, new):
    source = build(family, config, head)
    size = tuple(side * of // to for side, of, to in zip(config.img_size, new, old, strict=True))
    model = build(family, replace(config, img_size=size), head)
    report = load_weights(model, source.state_dict(), made_with={"img_size": config.img_size})
    assert "head.decoder.pos_embed" in report.resized
    wanted = resample_grid(
        source.head.decoder.pos_embed, old=old, new=new,
        num_prefix=source.head.decoder.num_prefix,
    )  # fmt: skip
    torch.testing.assert_close(model.head.decoder.pos_embed, wanted, check_dtype=False)
