# SPDX-License-Identifier: Apache-2.0
"""ViT for one image size, with everything precomputed that does not depend on the image.

Letters: B images, N tokens, C channels, h heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.inference.folding import fold_norm, make_linear, make_qkv
from muntin.models.vit import LayerScale, SelfAttention, ViT, ViTBlock
from muntin.nn.layers import BiasedLinear, without_key_bias
from muntin.ops.positions import SIZE_RULES, resample_grid
from muntin.shapes import Float, Size


def fold_vit(model: ViT, size: Size) -> ViT:
    """Fold a ViT in place, for images of one size in pixels."""
    config, grid = model.config, model.mask_grid(size)
    if config.absolute_pos_embed:
        positions = resample_grid(
            model.pos_embed,
            old=config.grid,
            new=grid,
            num_prefix=model.pos_embed.shape[1] - config.grid[0] * config.grid[1],
            how=SIZE_RULES[config.size_rule].positions,
        )
        model.pos_embed = nn.Parameter(positions, requires_grad=False)
        # The model resizes no more: this is the grid that its positions are of.
        side = config.patch_size
        model.config = replace(config, img_size=(grid[0] * side, grid[1] * side))
    model.pos_drop = nn.Identity()  # type: ignore[assignment]
    model.blocks = nn.ModuleList(_Block(block, grid) for block in model.blocks)  # type: ignore[arg-type]
    return model


class _Block(nn.Module):
    """One block; norms, the scale of the queries and the factors of branches are in its layers."""

    bias: Tensor | None

    def __init__(self, block: ViTBlock, grid: Size) -> None:
        super().__init__()
        attn: SelfAttention = block.attn
        dim = attn.proj.in_features
        self.heads = attn.num_heads
        given: Tensor | None = attn.qkv.bias
        if isinstance(attn.qkv, BiasedLinear):
            given = without_key_bias(attn.qv_bias)
        self.norm1, weight, bias = fold_norm(block.norm1, attn.qkv.weight, given)
        self.qkv = make_qkv(weight, bias, (dim // self.heads) ** -0.5)
        self.proj = _with_scale(attn.proj, block.ls1)
        self.norm2, weight, bias = fold_norm(block.norm2, block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.fc1 = make_linear(weight, bias)
        self.fc2 = _with_scale(block.mlp.fc2, block.ls2)
        added = (
            attn.relative_position_bias(grid)[None].detach().clone() if attn.has_positions else None
        )
        self.register_buffer("bias", added)

    def forward(self, x: Float[Tensor, "B N C"], grid: Size) -> Float[Tensor, "B N C"]:
        tokens, channels = x.shape[1:]
        normed = self.norm1(x)
        q, k, v = (
            linear(normed).view(-1, tokens, self.heads, channels // self.heads).transpose(1, 2)
            for linear in self.qkv
        )  # B, h, N, d each
        y = F.scaled_dot_product_attention(q, k, v, self.bias, scale=1.0)
        x = x + self.proj(y.transpose(1, 2).reshape(-1, tokens, channels))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def _with_scale(linear: nn.Linear, scale: nn.Module) -> nn.Linear:
    """Layer scale: g * (W x + b) = (g W) x + g b."""
    if not isinstance(scale, LayerScale):
        return make_linear(linear.weight, linear.bias)
    factor = scale.gamma.detach().double()
    bias = None if linear.bias is None else linear.bias.detach().double() * factor
    return make_linear(linear.weight.detach().double() * factor[:, None], bias)
