# SPDX-License-Identifier: Apache-2.0
"""Names to models: known ones, mistyped ones, wrong fields."""

from __future__ import annotations

import pytest
import torch

from muntin.errors import ConfigError, ShapeError, WeightError
from muntin.zoo import (
    ALIASES,
    MODELS,
    config_from_dict,
    config_to_dict,
    create_backbone,
    create_model,
    describe_models,
    find_model,
    list_models,
    model_config,
)

SMALL = {"embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2), "out_indices": (0, 1)}


def test_names():
    names = list_models()
    assert names == sorted([*MODELS, *ALIASES])
    assert all(find_model(alias) is MODELS[name] for alias, name in ALIASES.items())
    assert list_models("nothing*") == []


@pytest.mark.parametrize("name", MODELS)
def test_configs_round_trip(name):
    config = MODELS[name].config
    assert config_from_dict(config_to_dict(config)) == config


def test_create_model():
    model = create_model("swin_nano", num_classes=5, in_chans=1, img_size=16, **SMALL)
    assert model(torch.zeros(2, 1, 20, 33)).shape == (2, 5)
    assert create_model("swin_nano", num_classes=0, **SMALL)(torch.zeros(1, 3, 16, 16)).shape == (
        1,
        32,
    )


def test_create_backbone():
    body = create_backbone("swin_nano", **{**SMALL, "out_indices": (1,)})
    (features,) = body(torch.zeros(1, 3, 32, 48))
    assert features.shape == (1, body.spec.channels[0], 32 // body.spec.strides[0], 48 // 8)


def test_errors():
    with pytest.raises(ConfigError, match=r"'swin_tiney'.*'swin_tiny'"):
        create_model("swin_tiney")
    with pytest.raises(ConfigError, match=r"'windw_size'.*'window_size'"):
        create_model("swin_tiny", windw_size=3)
    with pytest.raises(ConfigError, match=r"'num_clases'.*'num_classes'"):
        create_model("swin_tiny", num_clases=3)
    with pytest.raises(ConfigError, match=r"num_classes.*-1.*'swin_nano'"):
        create_model("swin_nano", num_classes=-1)
    with pytest.raises(ConfigError, match=r"the file 'swim'.*'swin'"):
        config_from_dict({"family": "swim"}, where="the file")
    with pytest.raises(WeightError, match=r"nowhere\.safetensors"):
        create_model("swin_nano", weights="nowhere.safetensors", **SMALL)
    with pytest.raises(ConfigError, match=r"'swim_\*'"):
        describe_models("swim_*")


def test_fields_are_checked():
    assert model_config("swin_tiny", {"img_size": 256}).img_size == (256, 256)
    with pytest.raises(ConfigError, match=r"embed_dim.*swin_tiny.*'wide'"):
        model_config("swin_tiny", {"embed_dim": "wide"})


def test_descriptions():
    (row,) = describe_models("swin_tiny")
    assert row["name"] == "swin_tiny_patch4_window7_224"
    assert row["params"] == 28_288_354
    assert row["img_size"] == [224, 224]
    assert (row["accuracy"], row["license"]) == (81.2, "MIT")
    assert describe_models("swin_nano_patch2*")[0]["accuracy"] is None


def test_only_windows_have_a_choice_of_attention():
    assert create_model("swin_nano", attention="sdpa").backbone.config.attention == "sdpa"
    with pytest.raises(ConfigError, match=r"attention.*'vit_tiny'"):
        create_model("vit_tiny", attention="fused")


FAMILIES = {
    "swin_nano": SMALL,
    "swinv2_tiny": {**SMALL, "window_size": 4, "img_size": 32},
    "vit_tiny": {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "vit_small_patch14_reg4_dinov2": {
        "img_size": 28, "embed_dim": 24, "depth": 1, "num_heads": 2
    },
    "t2t_vit_7": {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 1},
    "hiera_tiny": {"img_size": 64, "embed_dim": 8, "depths": (1, 1), "pooled_stages": 1},
    "timm:resnet18": {},
}  # fmt: skip
INPUTS = {
    "empty": (torch.zeros(0, 3, 64, 64), r"\(0, 3, 64, 64\).*empty"),
    "no pixels": (torch.zeros(1, 3, 0, 64), r"\(1, 3, 0, 64\).*empty"),
    "four channels": (torch.zeros(1, 4, 64, 64), r"\(1, 4, 64, 64\).*in_chans"),
    "channels last": (torch.zeros(1, 64, 64, 3), r"\(1, 64, 64, 3\)"),
    "one image": (torch.zeros(3, 64, 64), r"\(3, 64, 64\)"),
    "bytes": (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "uint8.*255"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_wrong_input_is_a_shape_error(name):
    fields = dict(FAMILIES[name])
    if "depths" in fields:
        fields["out_indices"] = (0, 1)
    model = create_model(name, num_classes=2, **fields).eval()
    for images, text in INPUTS.values():
        for call in (model, model.features, model.backbone, model.backbone.embed):
            with pytest.raises(ShapeError, match=text):
                call(images)
    # The advice.
    assert model(INPUTS["bytes"][0].float() / 255).shape == (1, 2)
