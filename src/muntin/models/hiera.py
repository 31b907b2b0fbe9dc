# SPDX-License-Identifier: Apache-2.0
"""Hiera: a hierarchical ViT without windows that shift, biases of position or convolutions.

Attention stays inside mask units at the two fine scales, where tokens are many, and is global at
the two coarse ones. Between stages the queries are pooled: four neighbours ask as one.

Source:
    Ryali et al. 2023, "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles",
    arXiv 2306.00989: section 3 (what is left of MViTv2, mask unit attention), table 2 (variants).
    Compared live with timm 1.0.31 and transformers 5.23 in tests/parity/test_hiera_parity.py:
    logits and input gradients within 1e-5.
    Differs: tokens stay a map and are never re-ordered; images of any size are accepted: they are
    padded to whole mask units, and position embeddings are resized on the fly.

Letters: B images, H and W sides of a map in tokens, C channels, h heads, N tokens of a window.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from muntin.features import Backbone, Features, FeatureSpec, TokenMask, follow_depths, reject_config
from muntin.nn.layers import Activation, DropPath, Mlp, drop_path_schedule, init_linear_weights
from muntin.ops.dot_attention import attend
from muntin.ops.masks import spread_cells
from muntin.ops.positions import SIZE_RULES, SizeRuleName, fit_patches, resample_grid
from muntin.ops.windows import WindowLayout, cut_heads, join_heads
from muntin.shapes import Bool, Float, Int, Size

_STRIDE = 4  # of the patches, which overlap: 7 pixels wide


@dataclass(frozen=True, kw_only=True, slots=True)
class HieraConfig:
    """Configuration of a Hiera; the other fields are those of `SwinConfig`.

    Attributes:
        num_heads: Attention heads of the first stage; each further stage has twice as many.
        mask_unit: Side of a mask unit in tokens of the first stage.
        global_from: First stage whose attention is global.
        pooled_stages: How many of the later stages have half the side of the one before: 3 in
            classifiers, 2 in the models that were pre-trained with masks.
        out_norm: "last" has the layer norm that the classifier reads, after pooling; "none" has no
            such norm.
        size_rule: How position embeddings are resized for other images; a key of
            `muntin.ops.positions.SIZE_RULES`.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: int
    mask_unit: int = 8
    global_from: int = 2
    pooled_stages: int = 3
    img_size: Size = (224, 224)
    in_chans: int = 3
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
    out_norm: Literal["none", "last"] = "last"
    size_rule: SizeRuleName = "muntin"

    def follow(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete changed fields; see `muntin.configs.replace`."""
        return follow_depths(self, values)

    def __post_init__(self) -> None:
        """Validate the fields."""
        stages = len(self.depths)
        problem = ""
        if not stages or min(*self.depths, self.embed_dim, self.num_heads, self.in_chans) < 1:
            problem = "depths, embed_dim, num_heads and in_chans must be at least 1"
        elif self.embed_dim % self.num_heads:
            problem = f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}"
        elif not 0 <= self.pooled_stages < stages:
            problem = f"pooled_stages must be 0 to {stages - 1}, got {self.pooled_stages}"
        elif self.mask_unit % 2**self.pooled_stages:
            problem = f"mask_unit={self.mask_unit} must be halved {self.pooled_stages} times"
        elif min(self.img_size) < 1:
            problem = "img_size must be at least 1"
        reject_config(self, problem, stages)
        object.__setattr__(self, "out_indices", tuple(i % stages for i in self.out_indices))

    def dim(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    def halvings(self, stage: int) -> int:
        """How often the side of the map has been halved since the first stage."""
        return min(stage, self.pooled_stages)

    @property
    def unit_px(self) -> int:
        """Side of a mask unit in pixels; images are padded to multiples of it."""
        return self.mask_unit * _STRIDE

    @property
    def grid(self) -> Size:
        """Tokens down and across at `img_size`, in whole mask units."""
        unit = self.unit_px
        return tuple(-(-side // unit) * self.mask_unit for side in self.img_size)  # type: ignore[return-value]


def _preset(embed_dim: int, depths: tuple[int, ...], num_heads: int = 1) -> HieraConfig:
    return HieraConfig(embed_dim=embed_dim, depths=depths, num_heads=num_heads)


# Paper, table 2.
HIERA_TINY = _preset(96, (1, 2, 7, 2))
HIERA_SMALL = _preset(96, (1, 2, 11, 2))
HIERA_BASE = _preset(96, (2, 3, 16, 3))
HIERA_BASE_PLUS = _preset(112, (2, 3, 16, 3), num_heads=2)
HIERA_LARGE = _preset(144, (2, 6, 36, 4), num_heads=2)
HIERA_HUGE = _preset(256, (2, 6, 36, 4), num_heads=4)


class PatchEmbed(nn.Module):
    """Project overlapping patches, each to one token."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 7, stride=_STRIDE, padding=3)

    def forward(self, images: Float[Tensor, "B in_chans Hi Wi"]) -> Float[Tensor, "B H W C"]:
        """Compute the map of patches, channels last."""
        return self.proj(images).permute(0, 2, 3, 1)  # B, H, W, C


class MaskUnitAttention(nn.Module):
    """Multi-head self-attention inside windows, or over all tokens; may pool its queries."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pools: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pools = pools
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Float[Tensor, "B H W C"], window: Size) -> Float[Tensor, "B Ho Wo Co"]:
        """Attend within each window."""
        size = (x.shape[1], x.shape[2])
        layout = _whole_windows(size, window)
        # 3, B, nW, h, N, d -> 3, B, nW*h, N, d: windows are batches of attention.
        q, k, v = cut_heads(self.qkv(x), layout, 3, self.num_heads).flatten(2, 3).unbind(0)
        if self.pools:
            q = q.reshape(*q.shape[:2], *window, q.shape[3])
            q = _pool(q, 2).flatten(2, 3)  # B, nW*h, N/4, d
            layout = _whole_windows((size[0] // 2, size[1] // 2), (window[0] // 2, window[1] // 2))
        out = attend(q, k, v)
        # Not unflatten: see `ops.window_attention`.
        out = out.reshape(1, x.shape[0], layout.num_windows, self.num_heads, *out.shape[2:])
        return self.proj(join_heads(out, layout))


def _whole_windows(size: Size, window: Size) -> WindowLayout:
    return WindowLayout(
        size=size, window=window, shift=(0, 0), pad=(0, 0), pad_first=True, built_window=window
    )


def _pool(x: Tensor, axis: int) -> Tensor:
    """The largest of each 2 x 2 neighbourhood, along `axis` and the next."""
    *lead, high, wide = x.shape[: axis + 2]
    x = x.reshape(*lead, high // 2, 2, wide // 2, 2, *x.shape[axis + 2 :])
    return x.amax(dim=(axis + 1, axis + 3))


class HieraBlock(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut; the first of a stage widens."""

    def __init__(self, config: HieraConfig, stage: int, index: int, drop_path: float) -> None:
        super().__init__()
        self.ends = stage if index == config.depths[stage] - 1 else -1
        widens = index == 0 and stage > 0
        dim, dim_out = config.dim(stage - 1 if widens else stage), config.dim(stage)
        self.pools = widens and stage <= config.pooled_stages
        # A block that pools reads the map, and the windows, of the stage before it.
        reads = stage - 1 if widens else stage
        self.is_global = reads >= config.global_from
        self.window = config.mask_unit // 2 ** config.halvings(reads)
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.proj = nn.Linear(dim, dim_out) if widens else None
        self.attn = MaskUnitAttention(dim, dim_out, config.num_heads * 2**stage, self.pools)
        self.norm2 = nn.LayerNorm(dim_out, eps=config.norm_eps)
        self.mlp = Mlp(
            dim_out, int(dim_out * config.mlp_ratio), config.drop_rate, config.activation
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B Ho Wo Co"]:
        """Refine the tokens; the first block of a stage makes them fewer and wider."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = self.proj(normed)
            x = _pool(x, 1) if self.pools else x
        size = (normed.shape[1], normed.shape[2])
        window = size if self.is_global else (self.window, self.window)
        x = x + self.drop_path(self.attn(normed, window))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Hiera(Backbone):
    """The whole backbone (figure 2). Stages beyond the last of `out_indices` are not built."""

    stage_unit: Literal["stage"] = "stage"
    blocks: nn.ModuleList
    drops_tokens = True
    undecayed = ("pos_embed",)

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.in_chans, config.embed_dim)
        positions = torch.empty(1, config.grid[0] * config.grid[1], config.embed_dim)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        rates = iter(drop_path_schedule(config.drop_path_rate, sum(config.depths)))
        self.blocks = nn.ModuleList(
            HieraBlock(config, stage, index, next(rates))
            for stage in range(config.out_indices[-1] + 1)
            for index in range(config.depths[stage])
        )
        last = config.dim(config.out_indices[-1])
        has_norm = config.out_norm == "last"
        self.norm = nn.LayerNorm(last, eps=config.norm_eps) if has_norm else nn.Identity()
        init_linear_weights(self)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps."""
        config = self.config
        return FeatureSpec(
            channels=tuple(config.dim(i) for i in config.out_indices),
            strides=tuple(_STRIDE * 2 ** config.halvings(i) for i in config.out_indices),
        )

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run all blocks; sides of the maps round up, and a mask may drop mask units or fill them.

        One map a stage of `out_indices`; the vector is the normalised mean of the last one. With
        units dropped, maps hold the others side by side in one row.
        """
        self._refuse_quarters(mask)
        maps = self._run(images, mask)
        if mask is not None and mask.fill is None:
            # One row of units: every part is there, in another order.
            last, units = maps[-1].permute(0, 2, 3, 1), mask.keep[0].sum()  # B, h, n*h, C
            tokens = last.unflatten(2, (int(units), -1)).transpose(1, 2).flatten(1, 3)
            return Features(
                images,
                sizes=sizes,
                mask=mask,
                maps=lambda: maps,
                vector=lambda: self.norm(tokens.mean(dim=1)),
                tokens=lambda: tokens,
            )
        return Features(
            images,
            sizes=sizes,
            mask=mask,
            maps=lambda: maps,
            vector=lambda: self.norm(maps[-1].mean(dim=(2, 3))),
            tokens=lambda: maps[-1].flatten(2).transpose(1, 2),
        )

    @property
    def mask_px(self) -> int:
        """Side of a mask unit."""
        return self.config.unit_px

    def mask_grid(self, image_size: Size) -> Size:
        """Mask units down and across in images of this size."""
        unit = self.config.unit_px
        return -(-image_size[0] // unit), -(-image_size[1] // unit)

    def _run(self, images: Tensor, mask: TokenMask | None) -> list[Tensor]:
        """The maps (B, C, H, W) without the padding, or of one row of the units that are kept."""
        config = self.config
        height, width = images.shape[-2:]
        images = fit_patches(images, config.unit_px, "pad")
        x = self.patch_embed(images if mask is None else self._hide(images, mask))  # B, H, W, C
        size = (x.shape[1], x.shape[2])
        how = SIZE_RULES[config.size_rule].positions
        positions = resample_grid(self.pos_embed, old=config.grid, new=size, how=how)
        if mask is not None and mask.fill is not None:
            x = torch.where(self._expand_mask(mask, size, 1)[..., None], x, mask.fill.to(x.dtype))
        x = x + positions.view(1, *size, -1)
        if mask is not None and mask.fill is None:
            x = self._drop_units(x, mask)
            height, width = x.shape[1] * _STRIDE, x.shape[2] * _STRIDE
        maps = []
        for block in self.blocks:
            x = block(x)
            if block.ends in config.out_indices:
                stride = _STRIDE * 2 ** config.halvings(int(block.ends))
                inside = x[:, : -(-height // stride), : -(-width // stride)]  # without the padding
                maps.append(inside.permute(0, 3, 1, 2))  # B, C, H, W
        return maps

    def _hide(self, images: Tensor, mask: TokenMask) -> Tensor:
        """Make pixels of units that are not kept 0: patches overlap, and would show them."""
        size = (images.shape[2], images.shape[3])
        mask.check(images.shape[0], self.mask_grid(size))
        return images.masked_fill(~self._expand_mask(mask, size, _STRIDE)[:, None], 0.0)

    def _expand_mask(self, mask: TokenMask, size: Size, scale: int) -> Bool[Tensor, "B H W"]:
        """Whether each token (scale 1) or pixel belongs to a unit that is kept."""
        return spread_cells(mask.keep, self.config.mask_unit * scale, size)

    def _drop_units(self, x: Float[Tensor, "B H W C"], mask: TokenMask) -> Tensor:
        """Lay the units that are kept side by side: B, unit, n*unit, C.

        Attention inside units, and pooling, do not see what lies beside a unit; global attention
        sees every token wherever it lies.
        """
        side = self.config.mask_unit
        units = x.unflatten(2, (-1, side)).unflatten(1, (-1, side)).transpose(2, 3)
        kept = mask.drop(units.flatten(3).flatten(1, 2))  # B, n, side*side*C
        return kept.unflatten(2, (side, side, -1)).transpose(1, 2).flatten(2, 3)

    def stage_of(self, name: str) -> int:
        """Number the stage of a parameter; see `muntin.features.Backbone`."""
        starts = itertools.accumulate(self.config.depths, initial=1)  # first block of each stage
        built = self.config.out_indices[-1] + 2  # and one more for what follows the last
        return bisect.bisect_right(list(starts)[:built], self.layer_of(name))
