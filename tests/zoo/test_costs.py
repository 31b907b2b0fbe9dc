# SPDX-License-Identifier: Apache-2.0
"""What models cost: the published figures, and how they grow with the image."""

from __future__ import annotations

import pytest
import torch

from muntin.zoo import MODELS, count_costs, create_backbone, create_model, find_model
from muntin.zoo.costs import count_facts, known_facts

# 10^9 multiply-accumulates: timm's benchmark table; T2T-ViT: its README.
PUBLISHED = {
    "swin_tiny_patch4_window7_224": 4.51,
    "swin_small_patch4_window7_224": 8.77,
    "swin_base_patch4_window12_384": 47.19,
    "swin_large_patch4_window12_384": 104.08,
    "swin_s3_tiny_224": 4.64,
    "swin_s3_base_224": 13.69,
    "swinv2_tiny_window8_256": 5.96,
    "swinv2_small_window16_256": 12.82,
    "swinv2_base_window12_192": 11.90,
    "swinv2_base_window12to24_192to384": 55.25,
    "swinv2_large_window12to16_192to256": 47.81,
    "vit_tiny_patch16_384": 4.70,
    "vit_small_patch32_224": 1.15,
    "vit_base_patch16_224": 17.58,
    "vit_base_patch8_224": 78.22,
    "vit_large_patch16_384": 191.21,
    "vit_huge_patch14_224": 167.40,
    "deit_tiny_distilled_patch16_224": 1.27,
    "deit_base_distilled_patch16_384": 55.65,
    "deit3_medium_patch16_224": 8.0,
    "hiera_tiny_224": 4.91,
    "hiera_base_plus_224": 12.67,
    "hiera_huge_224": 124.85,
    "t2t_vit_14": 4.8,
    "t2t_vit_19": 8.5,
    "t2t_vit_t_14": 6.1,
    "t2t_vit_t_24": 15.0,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_costs_are_met_within_a_hundredth(name):
    assert known_facts()[name]["macs"] / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


def test_facts_are_those_of_the_table():
    assert known_facts().keys() == MODELS.keys()


SAMPLE = ["swin_nano_patch2_window4_32", "swinv2_tiny_window8_256", "vit_tiny_patch16_224",
          "deit_tiny_distilled_patch16_224", "t2t_vit_7", "hiera_tiny_224"]  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_facts_are_what_is_counted(name):
    assert count_facts(name) == known_facts()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_all_facts_are_what_is_counted(name):
    assert count_facts(name) == known_facts()[name]


def test_global_attention_grows_with_the_square_of_the_area_and_window_attention_with_the_area():
    vit, swin = find_model("vit_tiny").config, find_model("swin_tiny").config
    small, large = ([count_costs(config, side) for config in (vit, swin)] for side in (224, 448))
    areas = [
        after.of("attention") / before.of("attention")
        for before, after in zip(small, large, strict=True)
    ]
    assert areas[0] == pytest.approx(16, rel=0.02)  # the class token is not four times as many
    assert areas[1] == pytest.approx(4, rel=1e-9)
    for part in ("projections", "mlp"):
        assert large[1].of(part) == 4 * small[1].of(part)


def test_parts_and_stages_make_the_whole():
    costs = count_costs(find_model("swinv2_tiny").config)
    assert sum(row.macs for row in costs.rows) == costs.macs
    assert {row.stage for row in costs.rows} == {-1, 0, 1, 2, 3}
    assert costs.of("position bias") > 0
    assert costs.of("other") == 0
    stages = {row.stage for row in count_costs(find_model("hiera_tiny").config).rows}
    assert stages == {-1, 0, 1, 2, 3}


def test_a_linear_layer_counts_its_matrix_once():
    model = create_model("vit_tiny", num_classes=10)
    assert count_costs(model).of("head") == 192 * 10
    # Patches: 196 tokens of 16 * 16 * 3 numbers each.
    assert count_costs(model).of("patches") == 196 * 768 * 192


def test_counting_leaves_the_model_alone_and_takes_backbones():
    body = create_backbone("swin_nano").train()
    before = {key: tensor.clone() for key, tensor in body.state_dict().items()}
    assert count_costs(body, (64, 96)).img_size == (64, 96)
    assert body.training
    assert all(torch.equal(before[key], tensor) for key, tensor in body.state_dict().items())
