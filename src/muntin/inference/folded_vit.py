# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""ViT for one image size, with everything precomputed that does not depend on the image.

Letters: B images, N tokens, C channels, h heads, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Features, TokenMask
from muntin.inference.folding import fold_norm, make_linear, make_qkv, make_scaled
from muntin.inference.inference_backbone import InferenceBackbone
from muntin.models.vit import LayerScale, SelfAttention, ViT, ViTBlock
from muntin.nn.linear_layers import BiasedLinear, without_key_bias
from muntin.ops.size_rules import SIZE_RULES, fit_patches
from muntin.shapes import Float, Int, Size

__all__ = ["InferenceViT"]


class InferenceViT(InferenceBackbone):
    """The same function as a backbone, for one size of images.

    Args:
        model: The backbone; it is left as it is.
        size: Height and width of the images in pixels.
    """

    prefix: Tensor | None
    positions: Tensor | None
    blocks: nn.ModuleList

    def __init__(self, model: ViT, size: Size) -> None:
        super().__init__(model)
        config = model.config
        rule = SIZE_RULES[config.size_rule]
        self.config = config
        self.patch_rule = rule.patch_vit or rule.patch
        self.patch_embed = model.patch_embed
        self.num_prefix = model.num_prefix
        with torch.no_grad():
            example = fit_patches(
                torch.zeros(1, config.in_chans, *size), config.patch_size, self.patch_rule
            )
            maps = model.patch_embed(example)
            self.grid: Size = (maps.shape[2], maps.shape[3])
            bare = torch.zeros(1, self.grid[0] * self.grid[1], config.embed_dim)
            tokens = model.add_tokens(bare, self.grid)
        first, rest = tokens[:, : self.num_prefix].clone(), tokens[:, self.num_prefix :].clone()
        self.register_buffer("prefix", first if self.num_prefix else None)
        self.register_buffer("positions", rest if config.absolute_pos_embed else None)
        self.blocks = nn.ModuleList(_Block(block, self.grid) for block in model.blocks)  # type: ignore[arg-type]
        self.norm, self.fc_norm = model.norm, model.fc_norm

    def features(
        self,
        images: Tensor,
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Give maps, the vector or the tokens of normalised images."""
        self._refuse_mask(mask)
        found = self.run(images)
        return Features(
            images,
            sizes=sizes,
            maps=lambda: [
                x[:, self.num_prefix :].transpose(1, 2).unflatten(2, self.grid) for x in found
            ],
            vector=lambda: self.pool(found[-1]),
            tokens=lambda: found[-1],
        )

    def pool(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B Co"]:
        """Give one vector an image."""
        if self.config.distillation_token:
            return x[:, :2].flatten(1)
        of_token = self.config.pool == "token"
        pooled: Tensor = self.fc_norm(x[:, 0] if of_token else x[:, self.num_prefix :].mean(dim=1))
        return pooled

    def cut(self, images: Tensor) -> Float[Tensor, "B N C"]:
        """Make tokens of the patches."""
        images = fit_patches(images, self.config.patch_size, self.patch_rule)
        tokens: Tensor = self.patch_embed(images)
        return tokens.flatten(2).transpose(1, 2)

    def give(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Prepare tokens for who reads them."""
        return x

    def run(self, images: Tensor) -> list[Tensor]:
        """Give the tokens behind the blocks that are asked for."""
        x = self.cut(images)  # B, N, C
        if self.positions is not None:
            x = x + self.positions
        if self.prefix is not None:
            x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], dim=1)
        found = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.config.blocks_out:
                found.append(self.give(x))
        found[-1] = self.norm(found[-1])
        return found


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

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
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
    if not isinstance(scale, LayerScale):
        return make_linear(linear.weight, linear.bias)
    return make_scaled(linear, scale.gamma)
