# SPDX-License-Identifier: Apache-2.0
"""A model is found by the name that another library gives it, or the message says what it is."""

from __future__ import annotations

import inspect

import pytest
import torch

from muntin.configs import with_texts
from muntin.errors import ConfigError
from muntin.zoo import MODELS, create_model, find_model, model_config
from muntin.zoo.model_building import canonical_name

NAMES = {
    # timm, with a tag
    "swin_tiny_patch4_window7_224.ms_in1k": "swin_tiny_patch4_window7_224",
    "timm/swinv2_base_window8_256.ms_in1k": "swinv2_base_window8_256",
    "hf-hub:timm/deit3_small_patch16_224.fb_in22k_ft_in1k": "deit3_small_patch16_224",
    "vit_base_patch16_224.mae": "mae_vit_base_patch16",
    "swin_s3_tiny_224.ms_in1k": "swin_s3_tiny_224",
    # torchvision
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_v2_b": "swinv2_base_window8_256",
    "vit_b_16": "vit_base_patch16_224",
    "vit_l_32": "vit_large_patch32_224",
    "vit_h_14": "vit_huge_patch14_224",
    # the hub
    "microsoft/swin-tiny-patch4-window7-224": "swin_tiny_patch4_window7_224",
    "microsoft/swin-base-patch4-window12-384-in22k": "swin_base_patch4_window12_384",
    "microsoft/swin-base-simmim-window6-192": "simmim_swin_base_window6_192",
    "microsoft/swinv2-base-patch4-window12to16-192to256-22kto1k-ft": (
        "swinv2_base_window12to16_192to256"
    ),
    "google/vit-base-patch16-224-in21k": "vit_base_patch16_224",
    "facebook/deit-base-distilled-patch16-384": "deit_base_distilled_patch16_384",
    "facebook/vit-mae-base": "mae_vit_base_patch16",
    "facebook/hiera-base-plus-224-hf": "hiera_base_plus_224",
    "facebook/dinov2-small": "vit_small_patch14_dinov2",
    "facebook/dinov2-with-registers-base": "vit_base_patch14_reg4_dinov2",
    "usyd-community/vitpose-base-simple": "vitpose_base",
    # OpenMMLab
    "swin-tiny_16xb64_in1k": "swin_tiny_patch4_window7_224",
    "swin-base_in21k-pre-3rdparty_in1k-384": "swin_base_patch4_window12_384",
    "swinv2-tiny-w8_16xb64_in1k-256px": "swinv2_tiny_window8_256",
    "vit-base-p32_in21k-pre-3rdparty_ft-64xb64_in1k-384": "vit_base_patch32_384",
    "deit-small-distilled_3rdparty_in1k": "deit_small_distilled_patch16_224",
    "deit-base_224px-pt-16xb32_in1k-384px": "deit_base_patch16_384",
    "deit3-base-p16_in21k-pre_3rdparty_in1k-384px": "deit3_base_patch16_384",
    "t2t-vit-t-14_8xb64_in1k": "t2t_vit_t_14",
    "mae_vit-base-p16_8xb512-amp-coslr-300e_in1k": "mae_vit_base_patch16",
    "simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px": "simmim_swin_base_window6_192",
    "td-hm_ViTPose-base_8xb64-210e_coco-256x192": "vitpose_base",
    # Facebook's functions
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitg14_reg": "vit_giant_patch14_reg4_dinov2",
    "dinov2_vitl14_lc": "vit_large_patch14_dinov2",
    # the projects' own files and functions
    "swin_base_patch4_window12_384_22kto1k": "swin_base_patch4_window12_384",
    "T2t_vit_14": "t2t_vit_14",
    "ViT-B_16": "vit_base_patch16_224",
    "ViT-L/32": "vit_large_patch32_224",
    "mae_pretrain_vit_base": "mae_vit_base_patch16",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_libraries(name):
    assert canonical_name(name) == NAMES[name]
    assert find_model(name).config == MODELS[NAMES[name]].config


def test_own_names_stay():
    assert [canonical_name(name) for name in MODELS] == list(MODELS)


def test_a_tag_names_the_weights():
    default, other = "swin_base_patch4_window7_224", "swin_base_patch4_window7_224.ms_in22k"
    assert canonical_name(f"timm/{other}") == canonical_name(other) == other
    entry = find_model(other)
    assert entry.config == MODELS[default].config
    assert (entry.weights, entry.accuracy) == (f"timm/{other}", 0)
    assert find_model(MODELS[default].weights) is MODELS[default]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("swin_tiney", "'swin_tiny'"),
        ("swin_tiny_patch4_window5_224", "'swin_tiny_patch4_window7_224'"),
        # One word more is another architecture.
        ("vit_base_patch16_clip_224.openai", "'timm:vit_base_patch16_clip_224'"),
        ("vit_base_r50_s16_224", "'timm:vit_base_r50_s16_224'"),
        ("swinv2_cr_tiny_224", "'timm:swinv2_cr_tiny_224'"),
        ("vitpose-plus-base", "'vitpose_base'"),
    ],
)
def test_unknown_names_and_what_is_near(name, text):
    with pytest.raises(ConfigError, match=f"{name}.*{text}"):
        find_model(name)


def test_a_side_may_be_a_pair_of_equal_numbers():
    assert model_config("swin_tiny", {"window_size": (7, 7)}).window_size == 7
    assert model_config("vit_base", {"patch_size": [16, 16]}).patch_size == 16
    two = {"depths": (1, 1), "num_heads": (1, 2), "window_size": (4, 8)}
    assert model_config("swin_tiny", two).windows == (4, 8)
    with pytest.raises(ConfigError, match=r"window_size.*\(7, 8\)"):
        model_config("swin_tiny", {"window_size": (7, 8)})
    with pytest.raises(ConfigError, match=r"patch_size.*\(16, 8\)"):
        model_config("vit_base", {"patch_size": (16, 8)})


@pytest.mark.parametrize(
    ("keyword", "here"),
    [
        ("pretrained", "weights"),
        ("features_only", "create_backbone"),
        ("global_pool", "pool='mean'"),
        ("num_labels", "num_classes"),
    ],
)
def test_keywords_of_other_libraries(keyword, here):
    with pytest.raises(ConfigError, match=f"'{keyword}'.*{here}"):
        create_model("vit_tiny", **{keyword: True})


def test_the_advice_for_keywords_works():
    small = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    assert create_model("vit_tiny", num_classes=3, pool="mean", **small)(
        torch.zeros(1, 3, 32, 32)
    ).shape == (1, 3)


@pytest.mark.parametrize("name", ["swin_tiny", "swinv2_tiny", "hiera_tiny"])
def test_what_has_a_number_for_each_stage_follows_depths(name):
    heads = "1" if name == "hiera_tiny" else "3,6"
    texts = [("depths", "2,2"), ("num_heads", heads)]
    texts += [("pooled_stages", "1")] if name == "hiera_tiny" else []
    config = with_texts(find_model(name).config, texts)
    assert (config.depths, config.out_indices) == ((2, 2), (0, 1))
    assert getattr(config, "pretrained_windows", (0, 0)) == (0, 0)
    kept = with_texts(config, [("out_indices", "1"), *texts])
    assert kept.out_indices == (1,)


def test_a_name_of_thousands_of_digits_is_an_unknown_name():
    with pytest.raises(ConfigError, match="Unknown model"):
        find_model("swin_" + "9" * 5000)


def test_arguments_of_other_types():
    # Past the checks of the tests.
    for name in (None, 3):
        with pytest.raises(ConfigError, match=f"got {name}"):
            inspect.unwrap(find_model)(name)
    with pytest.raises(ConfigError, match="'5'"):
        inspect.unwrap(create_model)("swin_nano", num_classes="5")
