# SPDX-License-Identifier: Apache-2.0
"""The Swin inside whole models of dense tasks that muntin does not have."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import transformers

import muntin
from muntin.models.swin import Swin
from tests.layout_table import record_layout
from tests.parity.peers import SWIN, batch_images, distance, perturb
from tests.weights.test_layouts import (
    BUILT,
    HALF_A_PATCH,
    ODD,
    SMALL,
    buffers,
    dense,
    normalised,
    openmmlab,
    openmmlab_maps,
    swin_peer,
    tensors,
    under,
    without,
)

pytestmark = pytest.mark.parity

FOUR = replace(
    SWIN, depths=(2, 2, 2, 1), num_heads=(1, 2, 4, 4), out_indices=(0, 1, 2, 3), out_norm="each"
)


def swin_config(*stages):
    return transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2, 2, 1],
        num_heads=[1, 2, 4, 4],
        window_size=4,
        out_features=[f"stage{stage}" for stage in stages],
    )


def mask2former():
    return transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=swin_config(1, 2, 3, 4),
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=3,
        )
    )


def grounding_dino():
    return transformers.GroundingDinoForObjectDetection(
        transformers.GroundingDinoConfig(
            backbone_config=swin_config(2, 3, 4),
            text_config=transformers.BertConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                vocab_size=50,
            ),
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=4,
        )
    )


MODELS = {
    "model.pixel_level_module.encoder.": (mask2former, (0, 1, 2, 3)),
    "model.backbone.conv_encoder.model.": (grounding_dino, (1, 2, 3)),
}


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "in a file"])
@pytest.mark.parametrize("prefix", MODELS)
def test_the_swin_of_a_model_of_transformers(prefix, stored, tmp_path):
    make, stages = MODELS[prefix]
    whole = perturb(make())
    if stored:
        whole.save_pretrained(tmp_path)
    body = Swin(replace(FOUR, out_indices=stages)).eval()
    report = muntin.load_weights(body, tmp_path if stored else whole.state_dict())
    assert (report.size_rule, report.reset) == ("openmmlab", ())
    for size in (BUILT, ODD, SMALL):
        images = batch_images(size)
        # Its Swin remembers the size of an image: a fresh one for each.
        peer = copy.deepcopy(whole.get_submodule(prefix.rstrip(".")))
        with torch.no_grad():
            expected = peer(images).feature_maps
            for ours, theirs in zip(body(images), expected, strict=True):
                record_layout(
                    container=f"a folder of {type(whole).__name__}",
                    prefix=prefix,
                    report=report,
                    model=body,
                    peer="transformers",
                    difference=distance(ours, theirs),
                )


def test_the_swin_of_mmdetections_dino():
    # Maps of all but the first stage, and parts that no other detector here has.
    weights = openmmlab(without(dense(swin_peer(SWIN)), r"^norm0\."), "V1")
    others = tensors(
        "neck.convs.0.conv.weight",
        "neck.extra_convs.0.gn.bias",
        "encoder.layers.0.self_attn.value_proj.weight",
        "decoder.layers.0.cross_attn.output_proj.bias",
        "decoder.norm.weight",
        "bbox_head.cls_branches.0.weight",
        "query_embedding.weight",
        "memory_trans_fc.weight",
        "memory_trans_norm.bias",
        "level_embed",
        "dn_query_generator.label_embedding.weight",
    )
    body = Swin(replace(SWIN, out_indices=(1, 2), out_norm="each")).eval()
    file = under("backbone.", weights | buffers(weights, 4)) | others
    report = muntin.load_weights(body, {"state_dict": file, "meta": {"epoch": 12}})
    assert (report.dialect, report.size_rule, report.reset) == ("openmmlab", "openmmlab", ())
    left = {name for names in (report.ignored, report.beside) for name in names}
    assert others.keys() <= left
    for size in (BUILT, ODD, SMALL, HALF_A_PATCH):
        with torch.no_grad():
            maps = openmmlab_maps(weights, batch_images(size))
            both = normalised(maps, weights | {f"norm0.{p}": torch.ones(16) for p in ("weight", "bias")})  # fmt: skip  # noqa: E501
            for ours, theirs in zip(body(batch_images(size)), both[1:], strict=True):
                record_layout(
                    container="a checkpoint of mmdetection's DINO",
                    prefix="backbone.",
                    report=report,
                    model=body,
                    peer="twin",
                    difference=distance(ours, theirs),
                )
