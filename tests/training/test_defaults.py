# SPDX-License-Identifier: Apache-2.0

import pytest

from muntin.errors import ConfigError
from muntin.train_config import MachineConfig
from muntin.training.defaults import default_model, default_recipe
from muntin.training.machine import check_attention
from muntin.zoo import model_config


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((32, 32), ("swin_nano_patch2_window4_32", (32, 32))),
        ((28, 40), ("swin_nano_patch2_window4_32", (32, 32))),
        ((8, 8), ("swin_nano_patch2_window4_32", (16, 16))),
        ((64, 90), ("swin_nano_patch4_window4_64", (64, 64))),
        ((480, 640), ("swin_nano_patch4_window4_64", (128, 128))),
    ],
)
def test_default_model_without_pretrained_weights(size, expected):
    assert default_model("classification", size, "none", "cpu") == expected


def test_auto_uses_pretrained_weights_only_if_available():
    # The tests have no network and an empty cache: "auto" must not end in a large fresh model.
    assert (
        default_model("classification", (480, 640), "auto", "cpu")[0]
        == "swin_nano_patch4_window4_64"
    )
    assert default_model("classification", (480, 640), "weights.safetensors", "cpu")[0] == (
        "swin_tiny_patch4_window7_224"
    )


@pytest.mark.parametrize("size", [(32, 32), (64, 90)])
def test_small_images_download_no_weights(size):
    asked = []
    arguments = ("classification", size, "auto", "cpu", asked.append)
    assert default_model(*arguments)[0].startswith("swin_nano")
    assert not asked
    default_model("classification", (480, 640), *arguments[2:])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("count", "pretrained", "expected"),
    [(50, True, "finetune"), (50, False, "small-data"), (10**6, False, "imagenet")],
)
def test_default_recipe(count, pretrained, expected):
    assert default_recipe(count, pretrained=pretrained)[0] == expected


@pytest.mark.usefixtures("no_fused_kernels")
def test_unavailable_fused_kernels_are_refused():
    fused = model_config("swin_nano", {"attention": "fused"})
    with pytest.raises(ConfigError, match=r"model\.attention=fused"):
        check_attention(fused, MachineConfig(device="cpu"))
    check_attention(model_config("swin_nano"), MachineConfig(device="cpu"))
