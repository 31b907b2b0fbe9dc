# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A ViT for images of one size on a GPU: attention is PyTorch's, everything else is fused.

Letters: B images, N tokens, C channels, h heads, d width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.inference.folded_vit import InferenceViT
from muntin.inference.fused_modules import (
    FusedLinear,
    FusedMlp,
    FusedPatches,
    FusionConfig,
    scale_outputs,
)
from muntin.models.vit import LayerScale, SelfAttention, ViT, ViTBlock
from muntin.nn.linear_layers import BiasedLinear, without_key_bias
from muntin.shapes import Float, Size

__all__ = ["FusedViT"]


class FusedViT(InferenceViT):
    """The same function as a backbone, for one size of images.

    Args:
        model: The backbone; it is left as it is.
        size: Height and width of the images in pixels.
        how: The types, and whether it reads pixels.
    """

    def __init__(self, model: ViT, size: Size, how: FusionConfig) -> None:
        super().__init__(model, size)
        self.dtype = how.dtype
        norm = getattr(model.patch_embed, "norm", None)
        self.patches = FusedPatches(model.patch_embed.proj, norm, size, self.grid, how)
        self.blocks = nn.ModuleList(_Block(block, self.grid, how) for block in model.blocks)  # type: ignore[arg-type]
        for name in ("prefix", "positions"):
            held: Tensor | None = getattr(self, name)
            self.register_buffer(name, None if held is None else held.detach().to(how.dtype))

    def cut(self, images: Tensor) -> Float[Tensor, "B N C"]:
        """Make tokens of the patches."""
        tokens: Tensor = self.patches(images)
        return tokens.flatten(1, 2)

    def give(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Leave the narrow type behind: what reads the tokens is in float32."""
        return x.float()


class _Block(nn.Module):
    """One block."""

    bias: Tensor | None

    def __init__(self, block: ViTBlock, grid: Size, how: FusionConfig) -> None:
        super().__init__()
        attn: SelfAttention = block.attn
        self.heads = attn.num_heads
        given: Tensor | None = attn.qkv.bias
        if isinstance(attn.qkv, BiasedLinear):
            given = without_key_bias(attn.qv_bias)
        self.qkv = FusedLinear(attn.qkv.weight, given, how, before=block.norm1)
        weight, bias = scale_outputs(attn.proj.weight, attn.proj.bias, _scale_of(block.ls1))
        self.proj = FusedLinear(weight, bias, how)
        self.mlp = FusedMlp(block.mlp, how, before=block.norm2, scale=_scale_of(block.ls2))
        added = (
            attn.relative_position_bias(grid)[None].detach().to(how.dtype)
            if attn.has_positions
            else None
        )
        self.register_buffer("bias", added)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        parts = self.qkv(x).unflatten(2, (3, self.heads, -1))  # B, N, 3, h, d
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # B, h, N, d each
        y = F.scaled_dot_product_attention(q, k, v, self.bias)
        return self.mlp(self.proj(y.transpose(1, 2).flatten(2), x))


def _scale_of(scale: nn.Module) -> Tensor | None:
    return scale.gamma if isinstance(scale, LayerScale) else None
