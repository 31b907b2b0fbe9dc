# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A fused network gives what the trained one gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from muntin.data.transforms import Preprocessing, normalise
from muntin.errors import ConfigError, ShapeError
from muntin.heads.network import Network
from muntin.inference.fused_modules import Pixels
from muntin.inference.fused_network import FusedFromPixels, build_fused, is_fusible
from muntin.zoo import create_model, create_pose_estimator, create_segmenter

CASES: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    ("swin_nano", {}, (64, 64)),
    ("swin_nano", {"window_size": 3}, (50, 70)),
    ("swin_nano", {"window_size": 7, "size_rule": "timm"}, (96, 64)),
    ("swin_nano", {"size_rule": "torchvision"}, (61, 90)),
    ("swin_nano", {"size_rule": "openmmlab"}, (40, 40)),
    ("swin_nano", {"absolute_pos_embed": True, "qkv_bias": False}, (64, 96)),
    ("swin_nano", {"patch_norm": False}, (64, 64)),
    ("swinv2_tiny_window8_256", {"depths": (2, 2), "num_heads": (3, 6)}, (64, 64)),
    ("swinv2_tiny_window8_256", {"depths": (2, 2), "num_heads": (3, 6)}, (52, 76)),
    ("vit_tiny_patch16_224", {"depth": 2}, (70, 100)),
    ("deit_tiny_distilled_patch16_224", {"depth": 2}, (64, 96)),
    ("deit3_small_patch16_224", {"depth": 2}, (64, 96)),
    ("hiera_tiny_224", {}, (64, 64)),
]

REST = [*CASES[2:7], *CASES[8:]]

TINY: list[tuple[str, dict[str, Any], tuple[int, int]]] = [
    (
        "swin_nano",
        {
            "embed_dim": 16,
            "depths": (2, 1),
            "num_heads": (1, 2),
            "out_indices": (0, 1),
            "window_size": 3,
        },
        (26, 38),
    ),
    (
        "swinv2_tiny_window8_256",
        {
            "embed_dim": 16,
            "depths": (2, 1),
            "num_heads": (1, 2),
            "out_indices": (0, 1),
            "window_size": 4,
        },
        (30, 36),
    ),
    ("vit_tiny_patch16_224", {"depth": 1, "embed_dim": 32, "num_heads": 2}, (40, 32)),
]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

PIXELS = Pixels(mean=(0.485, 0.4, 0.3), std=(0.2, 0.25, 0.3))


def spread_out(model: nn.Module) -> None:
    """Norms, tables and scales as training leaves them: anything but ones and zeros."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.ndim < 2 else 0.03))


def make(name: str, changed: dict[str, Any]) -> Network:
    torch.manual_seed(0)
    model = create_model(name, num_classes=7, **changed).eval()
    spread_out(model)
    return model


@pytest.mark.parametrize(
    ("name", "changed", "size"),
    [*CASES[:2], *CASES[7:8], *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)],
)
@torch.no_grad()
def test_plain_layers(name, changed, size):
    model = make(name, changed)
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    fused = build_fused(model, size, dtype=torch.float32)
    for batch in (1, 3):
        images = torch.randn(batch, 3, *size)
        wanted = model.double()(images.double())
        model.float()
        worst = (model(images) - wanted).abs().max().item()
        scale = wanted.abs().max().item()
        assert (fused(images) - wanted).abs().max().item() <= 1e-5 * scale + 2 * worst
    for key, value in model.state_dict().items():
        assert torch.equal(value, kept[key]), f"{key} of the model has changed"


@pytest.mark.parametrize(("name", "changed", "size"), TINY)
@torch.no_grad()
def test_kernels(name, changed, size):
    pytest.importorskip("triton")
    model = make(name, changed)
    images = torch.randn(2, 3, *size)
    wanted = model.double()(images.double())
    model.float()
    if name.startswith("swin"):
        model = _with_kernels_for_attention(model, name, changed)
    fused = build_fused(model.to(DEVICE), size, dtype=torch.float32, backend="fused")
    said = fused(images.to(DEVICE)).cpu()
    assert (said - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def _with_kernels_for_attention(model: Network, name: str, changed: dict[str, Any]) -> Network:
    other = make(name, {**changed, "attention": "fused"})
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize(("name", "changed", "size"), TINY)
@torch.no_grad()
def test_half_precision(name, changed, size):
    """Errors of one image are luck, so many are seen."""
    pytest.importorskip("triton")
    model = make(name, changed)
    images = torch.randn(6, 3, *size)
    wanted = model.double()(images.double())
    plain = model.bfloat16()(images.bfloat16())
    model = make(name, changed)
    errors = [(plain - wanted).square().mean().sqrt()]
    for backend in ("plain", "fused"):
        fused = build_fused(model.to(DEVICE), size, backend=backend)
        said = fused(images.to(DEVICE)).cpu()
        assert said.dtype == torch.float32
        errors.append((said - wanted).square().mean().sqrt())
    assert max(errors[1:]) <= 1.5 * errors[0]


@pytest.mark.parametrize("size", [(64, 64), (54, 90)])
@torch.no_grad()
def test_maps_of_dense_heads(size):
    torch.manual_seed(1)
    segmenter = create_segmenter("swin_nano", head="light_small", num_classes=4).eval()
    estimator = create_pose_estimator("vit_tiny_patch16_224", head="vitpose", depth=2).eval()
    for network in (segmenter, estimator):
        spread_out(network)
        images = torch.randn(2, 3, *size)
        said = build_fused(network, size, dtype=torch.float32)(images)
        torch.testing.assert_close(said, network(images), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_patches_that_overlap_have_no_fused_form():
    model = make("vit_tiny_patch16_224", {"depth": 1, "patch_padding": 2})
    assert not is_fusible(model)
    images = torch.randn(1, 3, 64, 48)
    said = build_fused(model, (64, 48))(images)
    torch.testing.assert_close(said, model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (63, 58)])
@pytest.mark.parametrize(
    "name",
    ["swin_nano", "vit_tiny_patch16_224", pytest.param("hiera_tiny_224", marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_pixels(name, size, padded):
    model = make(name, {"depth": 2} if name.startswith("vit") else {})
    pre = Preprocessing(img_size=size, mean=PIXELS.mean, std=PIXELS.std)
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    wanted = model(normalise(pixels, pre))
    if padded:
        reader = FusedFromPixels(model, PIXELS, size, dtype=torch.float32, padded=True)
        x = normalise(pixels, pre)
        x[0, :, 40:] = 0
        x[1, :, :, 30:] = 0
        said, wanted = reader(pixels, torch.tensor([[40, size[1]], [size[0], 30]])), model(x)
    else:
        said = FusedFromPixels(model, PIXELS, size, dtype=torch.float32)(pixels)
    torch.testing.assert_close(said, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_pixels_in_kernels():
    pytest.importorskip("triton")
    name, changed, size = TINY[0]
    model = make(name, changed)
    pre = Preprocessing(img_size=size, mean=PIXELS.mean, std=PIXELS.std)
    pixels = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    wanted = model.double()(normalise(pixels, pre).double())
    model.float()
    for shown in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        fused = FusedFromPixels(model, PIXELS, size, dtype=torch.float32, backend="fused")
        said = fused.to(DEVICE)(shown.to(DEVICE)).cpu()
        assert (said - wanted).abs().max() <= 2e-5 * wanted.abs().max()


def test_another_size_is_refused():
    fused = build_fused(make("swin_nano", {}), (64, 64))
    with pytest.raises(ShapeError, match=r"64x64.*64x96"):
        fused(torch.randn(1, 3, 64, 96))


def test_forced_where_it_cannot_be():
    pytest.importorskip("triton")
    model = make("swin_nano", {"embed_dim": 24}).to(DEVICE)
    fused = build_fused(model, (64, 64), backend="fused")
    with pytest.raises(ConfigError, match=r"\b24\b.*\b16\b"):
        fused(torch.randn(1, 3, 64, 64, device=DEVICE))
