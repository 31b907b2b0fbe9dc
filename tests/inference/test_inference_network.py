# SPDX-License-Identifier: Apache-2.0
"""A network that only infers gives what the trained one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from muntin.data.transforms import Preprocessing, normalise
from muntin.heads.network import Network
from muntin.inference.inference_network import FromPixels, build_inference
from muntin.zoo import create_model, create_pose_estimator, create_segmenter

CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("swin_nano", {}, (64, 64)),
    ("swin_nano", {"window_size": 3}, (50, 70)),  # padded windows, odd sides, unequal
    ("swin_nano", {"window_size": 7, "size_rule": "timm"}, (96, 64)),
    ("swin_nano", {"size_rule": "torchvision"}, (61, 90)),
    ("swin_nano", {"size_rule": "openmmlab"}, (40, 40)),  # windows larger than the last map
    ("swin_nano", {"size_rule": "mmpretrain"}, (40, 40)),
    ("swin_nano", {"size_rule": "transformers"}, (61, 90)),
    ("swin_nano", {"size_rule": "microsoft", "window_size": 7}, (96, 64)),
    ("swin_nano", {"absolute_pos_embed": True, "qkv_bias": False}, (64, 96)),
    ("swin_nano", {"activation": "quick_gelu"}, (64, 96)),
    ("swin_nano_patch4_256", {}, (96, 128)),
    ("swinv2_tiny_window8_256", {"depths": (2, 2), "num_heads": (3, 6)}, (64, 64)),
    ("swinv2_tiny_window8_256", {"depths": (2, 2), "num_heads": (3, 6)}, (52, 76)),
    ("vit_tiny_patch16_224", {"depth": 2}, (64, 64)),
    ("vit_tiny_patch16_224", {"depth": 2}, (70, 100)),
    ("vit_tiny_patch16_224", {"depth": 2, "activation": "gelu_tanh"}, (64, 64)),
    ("vit_small_patch14_reg4_dinov2", {"depth": 1, "embed_dim": 48}, (56, 98)),
    (
        "vit_small_patch14_reg4_dinov2",
        {
            "depth": 2,
            "embed_dim": 48,
            "activation": "swiglu",
            "prefix_positions": True,
            "img_size": (56, 70),
            "pool": "token_and_mean",
        },
        (98, 60),
    ),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, (64, 96)),
    ("deit3_small_patch16_224", {"depth": 2}, (64, 96)),
    ("hiera_tiny_224", {"depths": (1, 2, 1, 1)}, (64, 64)),
]


def _spread_out(model: nn.Module) -> None:
    """Norms, tables and scales as training leaves them: anything but ones and zeros."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.ndim < 2 else 0.03))


def _model(name: str, changed: dict[str, Any], classes: int = 7) -> Network:
    torch.manual_seed(0)
    model = create_model(name, num_classes=classes, **changed).eval()
    _spread_out(model)
    return model


@pytest.mark.parametrize(("name", "changed", "size"), CASES)
@torch.no_grad()
def test_outputs_are_equal(name: str, changed: dict[str, Any], size: tuple[int, int]) -> None:
    model = _model(name, changed)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    fast = build_inference(model, size)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        wanted = model.double()(images.double())
        model.float()
        worst = (model(images) - wanted).abs().max().item()
        scale = wanted.abs().max().item()
        assert (fast(images) - wanted).abs().max().item() <= 1e-5 * scale + 2 * worst
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept[key]), f"{key} of the model has changed"


@pytest.mark.parametrize("size", [(64, 64), (54, 90)])
@torch.no_grad()
def test_maps_of_dense_heads_are_equal(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    segmenter = create_segmenter("swin_nano", head="light_small", num_classes=4).eval()
    estimator = create_pose_estimator("vit_tiny_patch16_224", head="vitpose", depth=2).eval()
    for network in (segmenter, estimator):
        _spread_out(network)
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(
            build_inference(network, size)(images), network(images), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("size", [(64, 64), (63, 58)])
@pytest.mark.parametrize("name", ["swin_nano", "vit_tiny_patch16_224", "hiera_tiny_224"])
@torch.no_grad()
def test_pixels_are_read_without_a_step_of_their_own(name: str, size: tuple[int, int]) -> None:
    few = {"vit_tiny_patch16_224": {"depth": 2}, "hiera_tiny_224": {"depths": (1, 2, 1, 1)}}
    model = _model(name, few.get(name, {}))
    pre = Preprocessing(img_size=size, mean=(0.485, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    built = build_inference(model, size)
    fast = FromPixels(built, pre.mean, pre.std, size)
    assert torch.equal(built(pixels.float()), build_inference(model, size)(pixels.float()))
    torch.testing.assert_close(fast(pixels), model(normalise(pixels, pre)), rtol=1e-4, atol=1e-4)
