# SPDX-License-Identifier: Apache-2.0
"""Presets: published parameter counts, and timm's, without allocating anything."""

from __future__ import annotations

import pytest
import timm
import torch

from muntin.zoo import ALIASES, MODELS, build_backbone, count_parameters, find_model, model_config

# Torchvision documents these to the last parameter.
EXACT = {
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
}
# Millions, from the papers' repositories and timm's results tables, for 1000 classes.
PUBLISHED = {
    "swin_base_patch4_window12_384": 87.90,
    "swin_large_patch4_window7_224": 196.53,
    "swin_large_patch4_window12_384": 196.74,
    "swin_s3_tiny_224": 28.33,
    "swin_s3_small_224": 49.74,
    "swin_s3_base_224": 71.13,
    "vit_tiny_patch16_224": 5.72,
    "vit_tiny_patch16_384": 5.79,
    "vit_small_patch32_224": 22.88,
    "vit_small_patch32_384": 22.92,
    "vit_small_patch16_224": 22.05,
    "vit_small_patch16_384": 22.20,
    "vit_base_patch32_224": 88.22,
    "vit_base_patch32_384": 88.30,
    "vit_base_patch16_224": 86.57,
    "vit_base_patch16_384": 86.86,
    "vit_base_patch8_224": 86.58,
    "vit_large_patch32_384": 306.63,
    "vit_large_patch16_224": 304.33,
    "vit_large_patch16_384": 304.72,
    "vit_large_patch14_224": 304.20,
}
# Published without a head, as the backbone only.
PUBLISHED |= {
    "swinv2_tiny_window8_256": 28.35,
    "swinv2_small_window16_256": 49.73,
    "swinv2_base_window12to24_192to384": 87.92,
    "swinv2_large_window12to16_192to256": 196.74,
    "deit_tiny_distilled_patch16_224": 5.91,
    "hiera_tiny_224": 27.91,
    "hiera_small_224": 35.01,
    "hiera_base_224": 51.52,
    "hiera_base_plus_224": 69.90,
    "hiera_large_224": 213.74,
    "hiera_huge_224": 672.78,
}
# With one digit behind the point.
ROUNDED = {
    "deit3_medium_patch16_224": 38.8,
    "deit3_large_patch16_384": 304.8,
    "deit3_huge_patch14_224": 632.1,
    "t2t_vit_7": 4.3,
    "t2t_vit_10": 5.9,
    "t2t_vit_12": 6.9,
    "t2t_vit_14": 21.5,
    "t2t_vit_14_384": 21.7,
    "t2t_vit_19": 39.2,
    "t2t_vit_24": 64.1,
    "t2t_vit_t_14": 21.5,
    "t2t_vit_t_19": 39.2,
    "t2t_vit_t_24": 64.1,
}
TIMM = frozenset(timm.list_models())
HEADLESS = {"vit_small_patch8_224": 21.67, "vit_huge_patch14_224": 630.76}


def each_family(names):
    """Models by name: the first of each family in every run, the others where time does not count.

    Twins of one file differ in a number or two; each family has presets of several sizes.
    """
    firsts: dict[object, str] = {}
    for name in names:
        firsts.setdefault((type(find_model(name).config), name.split("_")[0]), name)
    usual = set(firsts.values())
    return [pytest.param(name, marks=[] if name in usual else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", EXACT)
def test_documented_parameter_counts(name):
    assert count_parameters(find_model(name).config, 1000) == EXACT[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    count = count_parameters(find_model(name).config, 1000)
    assert count / 1e6 == pytest.approx(PUBLISHED[name], abs=0.006)


@pytest.mark.parametrize("name", ROUNDED)
def test_published_parameter_counts_of_one_digit(name):
    count = count_parameters(find_model(name).config, 1000)
    assert count / 1e6 == pytest.approx(ROUNDED[name], abs=0.051)


@pytest.mark.parametrize("name", HEADLESS)
def test_published_parameter_counts_without_head(name):
    count = count_parameters(find_model(name).config, 0)
    assert count / 1e6 == pytest.approx(HEADLESS[name], abs=0.006)


@pytest.mark.parity
@pytest.mark.parametrize("name", each_family([name for name in MODELS if name in TIMM]))
def test_parameter_counts_equal_those_of_timm(name):
    with torch.device("meta"):
        peer = timm.create_model(name, num_classes=1000)
    assert count_parameters(find_model(name).config, 1000) == sum(
        parameter.numel() for parameter in peer.parameters()
    )


def test_every_published_name_is_one_that_timm_knows():
    ours_alone = {name for name in MODELS if name not in TIMM}
    # Not in timm: ours, and four publications that it leaves out.
    assert {name.split("_")[0] for name in ours_alone} == {
        "swin",
        "mae",
        "simmim",
        "t2t",
        "vitpose",
        "vitdet",
    }
    assert {name for name in ours_alone if name.startswith("swin_")} == {
        name for name in MODELS if "nano" in name
    }
    assert set(ALIASES.values()) <= set(MODELS)


@pytest.mark.parametrize("name", each_family(MODELS))
def test_every_preset_says_what_it_gives(name):
    config = model_config(name)
    with torch.device("meta"):
        body = build_backbone(config)
        maps = body(torch.empty(1, config.in_chans, *config.img_size))
    sides = [(config.img_size[0] // s, config.img_size[1] // s) for s in body.spec.strides]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (channels, *side) for channels, side in zip(body.spec.channels, sides, strict=True)
    ]
