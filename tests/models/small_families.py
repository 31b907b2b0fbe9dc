# SPDX-License-Identifier: Apache-2.0
"""A tiny network of every family, all of whose parameters are drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import muntin

SWIN = {"embed_dim": 16, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
HIERA = {"embed_dim": 16, "depths": (1, 1, 1, 1), "mask_unit": 8}
POSE = {"class_token": False, "pool": "mean", "shared_position": True, "patch_padding": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny", {**SWIN, "absolute_pos_embed": True}),
    "swin_timm": ("swin_tiny", {**SWIN, "size_rule": "timm"}),
    "swin_v2": ("swinv2_tiny_window8_256", SWIN),
    "vit": ("vit_tiny_patch16_224", VIT),
    "beit": ("vit_tiny_patch16_224", {**VIT, "relative_pos_bias": True}),
    "vitpose": ("vit_tiny_patch16_224", {**VIT, **POSE}),
    "google": ("vit_tiny_patch16_224", {**VIT, "size_rule": "google"}),
    "deit": ("deit_tiny_distilled_patch16_224", VIT),
    "deit3": ("deit3_small_patch16_224", VIT),
    "t2t": ("t2t_vit_7", {"depth": 1}),
    "t2t_transformer": ("t2t_vit_7", {"depth": 1, "token_attention": "transformer"}),
    "vit_det": (
        "vitdet_base",
        {**VIT, "global_blocks": (1,), "window_size": 3, "pretrain_img_size": 64},
    ),
    "dino": ("vit_tiny_patch16_224", {**VIT, "size_rule": "dino"}),
    "hiera": ("hiera_tiny_224", HIERA),
}
SWINS = ("swin", "swin_timm", "swin_v2")


def build(name: str, **fields: Any) -> Any:
    """A classifier of three classes, for images of 64 x 64 pixels."""
    torch.manual_seed(0)
    preset, own = FAMILIES[name]
    fields = {**own, "img_size": 64, "drop_path_rate": 0.0, **fields}
    network = muntin.create_model(preset, num_classes=3, **fields)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


def draw(*size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images of a size."""
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(batch, 3, *size, generator=generator).to(dtype)


def compare(ours: Any, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    ours = torch.as_tensor(ours).detach()
    return float((ours - theirs.detach()).abs().max() / theirs.detach().abs().max())
