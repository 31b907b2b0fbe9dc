# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0

import pytest

from muntin.errors import ConfigError
from muntin.recipes import MachineConfig
from muntin.training.defaults import default_model, default_recipe, refuse_attention
from muntin.zoo import model_config


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), ("swin_nano_patch2_window4_32", 32)),
        ((28, 40), ("swin_nano_patch2_window4_32", 32)),
        ((8, 8), ("swin_nano_patch2_window4_32", 16)),
        ((64, 90), ("swin_nano_patch4_window4_64", 64)),
        ((480, 640), ("swin_nano_patch4_window4_64", 128)),
    ],
)
def test_fresh_model_by_the_shorter_side(size, expected):
    assert default_model(size, "none", "cpu") == expected


def test_large_images_take_published_weights_only_where_they_can_be_had():
    # The tests have no network and an empty cache: "auto" must not end in a large fresh model.
    assert default_model((480, 640), "auto", "cpu")[0] == "swin_nano_patch4_window4_64"
    assert default_model((480, 640), "weights.safetensors", "cpu")[0] == (
        "swin_tiny_patch4_window7_224"
    )


@pytest.mark.parametrize(
    ("count", "pretrained", "expected"),
    [(50, True, "finetune"), (50, False, "small-data"), (10**6, False, "imagenet")],
)
def test_recipe(count, pretrained, expected):
    assert default_recipe(count, pretrained=pretrained)[0] == expected


@pytest.mark.usefixtures("no_fused_kernels")
def test_kernels_that_cannot_run_are_refused_before_a_run_begins():
    fused = model_config("swin_nano", {"attention": "fused"})
    with pytest.raises(ConfigError, match=r"model\.attention=fused"):
        refuse_attention(fused, MachineConfig(device="cpu"))
    refuse_attention(model_config("swin_nano"), MachineConfig(device="cpu"))
