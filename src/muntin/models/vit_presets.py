# SPDX-License-Identifier: Apache-2.0
"""Published variants of the Vision Transformer and its kin.

Source:
    Those of `muntin.models.vit`; DINOv2 from Oquab et al. 2023 (arXiv 2304.07193), table 16, and
    its registers from Darcet et al. 2023 (arXiv 2309.16588); BEiT from Bao et al. 2022 (arXiv
    2106.08254), as timm 1.0.31 has them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from muntin.models.vit import ViTConfig

ViTSize = Literal["tiny", "small", "medium", "base", "large", "huge", "giant"]


def vit_preset(size: ViTSize, patch: int, side: int) -> ViTConfig:
    """One row of the papers' tables of variants, for a patch and an image side in pixels."""
    embed_dim, depth, num_heads = {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "medium": (512, 12, 8),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
        "giant": (1536, 40, 24),
    }[size]
    return ViTConfig(
        embed_dim=embed_dim, depth=depth, num_heads=num_heads, patch_size=patch,
        img_size=(side, side),
    )  # fmt: skip


def vitpose_preset(size: ViTSize) -> ViTConfig:
    """One row of ViTPose: no class token, patches with a margin, 12 heads in its small one."""
    plain = vit_preset(size, 16, 224)
    return replace(
        plain,
        num_heads=12 if size == "small" else plain.num_heads,
        img_size=(256, 192),
        patch_padding=2,
        class_token=False,
        shared_position=True,
        pool="mean",
    )


def deit3_preset(size: ViTSize, patch: int, side: int) -> ViTConfig:
    """One row of DeiT III: branches are scaled, and the class token has no position."""
    return replace(vit_preset(size, patch, side), prefix_positions=False, layer_scale=1e-4)


def dinov2_preset(size: ViTSize, registers: int = 0) -> ViTConfig:
    """One row of DINOv2: branches are scaled, and the giant one's MLP is gated."""
    plain = replace(vit_preset(size, 14, 518), layer_scale=1e-5, registers=registers)
    if size == "giant":
        # Gated: two thirds of 4 C, and an input layer of twice that.
        plain = replace(plain, activation="swiglu", mlp_ratio=8 / 3)
    # With registers, timm adds the position of the class token to it once and for all.
    return replace(plain, prefix_positions=not registers)


def beit_preset(size: ViTSize, side: int, layer_scale: float) -> ViTConfig:
    """One row of BEiT: a bias for each offset of two patches instead of positions."""
    return replace(
        vit_preset(size, 16, side),
        absolute_pos_embed=False,
        relative_pos_bias=True,
        key_bias=False,
        layer_scale=layer_scale,
        pool="mean",
        pool_norm="after",
    )
