# SPDX-License-Identifier: Apache-2.0
"""ViTDet: a plain Vision Transformer for detectors, with attention inside windows in most blocks.

A few blocks attend over the whole image, so that windows exchange what they know. Positions are
absolute ones of pre-training, resized, and in every attention a learned vector for each offset down
and each across. There is one map, and no class token.

Source:
    Li et al. 2022, "Exploring Plain Vision Transformer Backbones for Object Detection", arXiv
    2203.16527: section 3 (windows, global blocks); relative positions from Li et al. 2021, "MViTv2"
    (arXiv 2112.01526), section 4.1. Sizes of variants and what happens at odd sizes from
    facebookresearch/detectron2@02b5c4e, modeling/backbone/vit.py and projects/ViTDet. Compared
    with timm 1.0.31 (the same attention in SAM's tower) and with a twin in
    tests/parity/test_vit_det_parity.py: maps and input gradients within 1e-5.
    Differs: relative positions are terms of longer queries and keys, not a bias of every pair.

Letters: B images, H and W sides of the map in tokens, C channels, h heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Backbone, Features, FeatureSpec, TokenMask, reject_config
from muntin.models.vit import PatchEmbed
from muntin.models.vit_presets import ViTSize, vit_preset
from muntin.nn.layers import DropPath, Mlp, drop_path_schedule, init_linear_weights
from muntin.ops.dot_attention import attend
from muntin.ops.positions import (
    SIZE_RULES,
    SizeRuleName,
    expand_relative_position_bias,
    fit_patches,
    resample_grid,
    resample_line,
)
from muntin.ops.windows import cut_windows, join_windows, lay_out
from muntin.shapes import Float, Int, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTDetConfig:
    """Configuration of a ViTDet.

    Attributes:
        embed_dim: Channels of a token.
        depth: Blocks.
        num_heads: Attention heads.
        global_blocks: Blocks that attend over the whole map; the others over windows.
        window_size: Side of a window in tokens.
        patch_size: Side of a patch in pixels.
        img_size: (height, width) in pixels that the relative positions of global blocks are made
            for. Others are accepted.
        pretrain_img_size: (height, width) that the absolute positions are made for.
        in_chans: Channels of an image.
        mlp_ratio: Width of the MLP relative to the tokens.
        qkv_bias: Whether queries, keys and values have a bias.
        norm_eps: Added to the variance in layer norms.
        drop_path_rate: Stochastic depth at the last block; rises linearly from 0.
        out_indices: Blocks whose tokens `forward` returns as maps, without a norm; -1 is the last
            block.
        size_rule: Whether images that are no multiple of the patch are padded, cropped or refused.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...] = ()
    window_size: int = 14
    patch_size: int = 16
    img_size: Size = (1024, 1024)
    pretrain_img_size: Size = (224, 224)
    in_chans: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    drop_path_rate: float = 0.0
    out_indices: tuple[int, ...] = (-1,)
    size_rule: SizeRuleName = "muntin"

    def __post_init__(self) -> None:
        """Validate the fields."""
        problem = ""
        smallest = min(*self.img_size, *self.pretrain_img_size)
        if min(self.embed_dim, self.depth, self.num_heads, self.patch_size, self.in_chans) < 1:
            problem = "embed_dim, depth, num_heads, patch_size and in_chans must be at least 1"
        elif self.embed_dim % self.num_heads:
            problem = f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}"
        elif smallest < self.patch_size or self.window_size < 1:
            problem = f"an image must hold a patch of {self.patch_size} pixels, a window a token"
        elif any(not -self.depth <= index < self.depth for index in self.global_blocks):
            problem = f"global_blocks must be below depth={self.depth}, got {self.global_blocks}"
        reject_config(self, problem, self.depth)

    @property
    def blocks_out(self) -> tuple[int, ...]:
        """`out_indices` counted from the first block."""
        return tuple(index % self.depth for index in self.out_indices)

    @property
    def grid(self) -> Size:
        """Patches down and across that absolute positions are made for."""
        height, width = self.pretrain_img_size
        return height // self.patch_size, width // self.patch_size


def vit_det_preset(size: ViTSize, drop_path_rate: float) -> ViTDetConfig:
    """One published variant: the last block of each quarter is global."""
    plain = vit_preset(size, 16, 224)
    quarter = plain.depth // 4
    return ViTDetConfig(
        embed_dim=plain.embed_dim,
        depth=plain.depth,
        num_heads=plain.num_heads,
        global_blocks=tuple(quarter * k - 1 for k in (1, 2, 3, 4)),
        drop_path_rate=drop_path_rate,
    )


class OffsetAttention(nn.Module):
    """Multi-head self-attention over a map, with positions relative to the query."""

    def __init__(self, config: ViTDetConfig, grid: Size) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        # Zeros: training starts from what the pre-trained attention computes.
        width = dim // config.num_heads
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width))

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """Attend over all tokens of the map."""
        _, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.num_heads, -1)  # B, H, W, 3, h, d
        query, key, value = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)  # B, h, H, W, d
        q_down, q_across = self._score_offsets(query)
        # Score of a pair: q k / sqrt(d) + (q down)[row of k] + (q across)[column of k]. As one
        # product of longer vectors, it needs no bias of N x N in memory.
        rows = torch.eye(height, dtype=key.dtype, device=x.device).repeat_interleave(width, 0)
        columns = torch.eye(width, dtype=key.dtype, device=x.device).repeat(height, 1)
        places = torch.cat([rows, columns], dim=1)  # N, H + W
        extra = places.shape[1]
        query = torch.cat([query * query.shape[-1] ** -0.5, q_down, q_across], dim=-1).flatten(2, 3)
        key = key.flatten(2, 3)
        # Added, not expanded: graphs of the older ONNX exporter would fix the batch.
        key = torch.cat([key, 0 * key[..., :1] + places], dim=-1)
        value = F.pad(value.flatten(2, 3), (0, extra))
        out = attend(query, key, value, scale=1.0)[..., :-extra]
        return self.proj(out.transpose(1, 2).reshape(x.shape))

    def _score_offsets(
        self, query: Float[Tensor, "B h H W d"]
    ) -> tuple[Float[Tensor, "B h H W H"], Float[Tensor, "B h H W W"]]:
        """Products of every query with the vectors of all rows, and of all columns."""
        height, width = query.shape[2:4]
        down, across = (
            expand_relative_position_bias(
                resample_line(table, 2 * side - 1), table_window=(side, 1), window=(side, 1)
            ).to(query.dtype)
            for table, side in ((self.rel_pos_h, height), (self.rel_pos_w, width))
        )  # d, H, H and d, W, W
        q_across = (query.transpose(2, 3) @ across.transpose(0, 1)).transpose(2, 3)
        return query @ down.transpose(0, 1), q_across


class ViTDetBlock(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut; `window` 0 is the whole map."""

    def __init__(self, config: ViTDetConfig, window: int, drop_path: float) -> None:
        super().__init__()
        dim, (height, width) = config.embed_dim, config.img_size
        whole = height // config.patch_size, width // config.patch_size
        self.window = window
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = OffsetAttention(config, (window, window) if window else whole)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B H W C"]:
        """Apply attention and MLP."""
        x = self.drop_path.add(x, self._attend)
        return self.drop_path.add(x, lambda x: self.mlp(x, self.norm2))

    def _attend(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        if not self.window:
            return self.attn(x)
        side = (self.window, self.window)
        # Zeros fill up the last windows, and take part in them.
        layout = lay_out((x.shape[1], x.shape[2]), side, False, SIZE_RULES["openmmlab"])
        windows = cut_windows(x, layout)  # B, nW, N, C
        attended = self.attn(windows.reshape(-1, *side, x.shape[3]))
        return join_windows(attended.view_as(windows), layout)


class ViTDet(Backbone):
    """The whole backbone. Blocks beyond the last of `out_indices` are not built."""

    blocks: nn.ModuleList
    undecayed = ("rel_pos_h", "rel_pos_w", "pos_embed")

    def __init__(self, config: ViTDetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size, 0)
        positions = torch.empty(1, config.grid[0] * config.grid[1], dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        everywhere = {index % config.depth for index in config.global_blocks}
        self.blocks = nn.ModuleList(
            ViTDetBlock(config, 0 if index in everywhere else config.window_size, rate)
            for index, rate in enumerate(rates[: config.blocks_out[-1] + 1])
        )
        init_linear_weights(self)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps, all of one scale."""
        count = len(self.config.out_indices)
        return FeatureSpec(
            channels=(self.config.embed_dim,) * count, strides=(self.config.patch_size,) * count
        )

    def features(
        self,
        images: Float[Tensor, "B in_chans Hi Wi"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run all blocks; one map a block of `out_indices`, whose mean is the vector.

        Images may have any size. Windows need a token at every place, so there are no masks.
        """
        self._refuse_mask(mask)
        config, rule = self.config, SIZE_RULES[self.config.size_rule]
        images = fit_patches(images, config.patch_size, rule.patch_vit or rule.patch)
        x = self.patch_embed(images).permute(0, 2, 3, 1)  # B, H, W, C
        size = (x.shape[1], x.shape[2])
        positions = resample_grid(self.pos_embed, old=config.grid, new=size, how="bicubic")
        x = x + positions.view(1, *size, -1)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in config.blocks_out:
                maps.append(x.permute(0, 3, 1, 2))
        return Features(
            images,
            sizes=sizes,
            maps=lambda: maps,
            vector=lambda: maps[-1].mean(dim=(2, 3)),
            tokens=lambda: maps[-1].flatten(2).transpose(1, 2),
        )
