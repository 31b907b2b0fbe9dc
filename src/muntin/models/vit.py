# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer and its kin (DeiT, DeiT III, MAE): patches as tokens, global attention.

The kin are the same function with a few fields changed: DeiT may have a second, distillation token
with a classifier of its own; DeiT III scales its branches and gives no position to the class token;
MAE classifies from the mean; SimMIM has a relative position bias instead of positions, and keys
without a bias, as BEiT.

Source:
    Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", arXiv 2010.11929: section 3.1 (model),
    table 1 (variants); Ti and S from Touvron et al. 2021 (arXiv 2012.12877) and Steiner et al.
    2022 (arXiv 2106.10270); distillation token from Touvron et al. 2021, section 3; layer scale
    from Touvron et al. 2022, "DeiT III" (arXiv 2204.07118), section 3; relative bias from Bao et
    al. 2022, "BEiT" (arXiv 2106.08254), as SimMIM (arXiv 2111.09886) has it. Compared live with
    timm 1.0.31, torchvision 0.29.2 and transformers 5.23 in tests/parity/test_vit_parity.py and
    test_deit_parity.py: logits and input gradients within 1e-5.
    ViTPose from Xu et al. 2022 (arXiv 2204.12484), compared with transformers in
    tests/heads/test_pose_parity.py.
    Differs: images of any size are accepted; position embeddings are resized for them on the
    fly and the model is left as it was.

Letters: B images, H and W sides of the grid in tokens, N tokens, C channels, h heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from muntin.features import Backbone, Features, FeatureSpec, TokenMask, reject_config
from muntin.nn.layers import (
    BiasedLinear,
    DropPath,
    Mlp,
    drop_path_schedule,
    init_linear_weights,
    without_key_bias,
)
from muntin.ops.dot_attention import attend
from muntin.ops.positions import (
    SIZE_RULES,
    SizeRuleName,
    expand_relative_position_bias,
    fit_patches,
    resample_grid,
    resample_offsets,
)
from muntin.shapes import Float, Int, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """Configuration of a Vision Transformer.

    Attributes:
        embed_dim: Channels of a token.
        depth: Blocks.
        num_heads: Attention heads.
        patch_size: Side of a patch in pixels.
        patch_padding: Pixels of zeros around the image before it is cut into patches.
        img_size: (height, width) in pixels that the position embedding is made for. Others are
            accepted.
        in_chans: Channels of an image.
        mlp_ratio: Width of the MLP relative to the tokens.
        qkv_bias: Whether queries, keys and values have a bias.
        key_bias: Whether the keys have one too.
        relative_pos_bias: Whether every block adds a learned bias for each offset of two patches,
            and for the class token.
        absolute_pos_embed: Whether learned positions are added.
        class_token: Whether a learned token joins the patches.
        distillation_token: Whether a second one does, for a classifier of its own.
        prefix_positions: Whether these tokens have positions of their own.
        shared_position: Whether the first position belongs to no token, but is added to all
            patches (ViTPose, whose positions were trained with a class token that it lacks).
        layer_scale: What the learned factors of the branches start with, one a channel; 0 = none.
        pool: What is classified: the class "token" or the "mean" of the patch tokens.
        pool_norm: Whether the layer norm comes "before" pooling (the paper) or "after" it (MAE
            fine-tuning, and timm when it pools by the mean).
        norm_eps: Added to the variance in layer norms.
        drop_rate: Dropout after the positions and inside attention output and MLP.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth at the last block; rises linearly from 0.
        out_indices: Blocks whose tokens `forward` returns as maps; -1 is the last block.
        out_norm: "last" has the layer norm that the classifier reads; "none" has no such norm
            and gives every map as the block leaves it.
        size_rule: What happens at sizes that the model was not made for: whether images that
            are no multiple of the patch are padded, cropped or refused, and how positions are
            resized.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    img_size: Size
    patch_padding: int = 0
    in_chans: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    key_bias: bool = True
    relative_pos_bias: bool = False
    absolute_pos_embed: bool = True
    class_token: bool = True
    distillation_token: bool = False
    prefix_positions: bool = True
    shared_position: bool = False
    layer_scale: float = 0.0
    pool: Literal["token", "mean"] = "token"
    pool_norm: Literal["before", "after"] = "before"
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    out_indices: tuple[int, ...] = (-1,)
    out_norm: Literal["none", "last"] = "last"
    size_rule: SizeRuleName = "muntin"

    def __post_init__(self) -> None:
        """Validate the fields."""
        problem = ""
        if min(self.embed_dim, self.depth, self.num_heads, self.patch_size, self.in_chans) < 1:
            problem = "embed_dim, depth, num_heads, patch_size and in_chans must be at least 1"
        elif self.embed_dim % self.num_heads:
            problem = f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}"
        elif min(self.img_size) < self.patch_size:
            problem = f"img_size={self.img_size} must hold a patch of {self.patch_size} pixels"
        elif self.pool == "token" and not self.class_token:
            problem = 'pool="token" needs class_token=True'
        elif self.distillation_token and not (self.class_token and self.pool == "token"):
            problem = 'distillation_token needs class_token=True and pool="token"'
        elif self.relative_pos_bias and self.prefix_tokens != 1:
            problem = "relative_pos_bias needs the class token and no distillation token"
        elif self.layer_scale < 0:
            problem = f"layer_scale must be 0 or more, got {self.layer_scale}"
        reject_config(self, problem or self._find_patch_problem(), self.depth)

    def _find_patch_problem(self) -> str:
        if self.shared_position and (self.class_token or not self.absolute_pos_embed):
            return "shared_position needs absolute_pos_embed=True and class_token=False"
        if not 0 <= 2 * self.patch_padding < self.patch_size:
            return f"patch_padding must be below half a patch, got {self.patch_padding}"
        return ""

    @property
    def blocks_out(self) -> tuple[int, ...]:
        """`out_indices` counted from the first block."""
        return tuple(index % self.depth for index in self.out_indices)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches."""
        return int(self.class_token) + int(self.distillation_token)

    @property
    def grid(self) -> Size:
        """Patches down and across at `img_size`."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


ViTSize = Literal["tiny", "small", "medium", "base", "large", "huge"]


def vit_preset(size: ViTSize, patch: int, side: int) -> ViTConfig:
    """One row of the papers' tables of variants, for a patch and an image side in pixels."""
    embed_dim, depth, num_heads = {
        "tiny": (192, 12, 3),
        "small": (384, 12, 6),
        "medium": (512, 12, 8),
        "base": (768, 12, 12),
        "large": (1024, 24, 16),
        "huge": (1280, 32, 16),
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


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens (appendix A)."""

    recomputable = ("project",)

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.num_heads = config.num_heads
        self.dropout = config.attn_drop_rate
        if config.qkv_bias and not config.key_bias:
            # BEiT: queries and values have a bias, keys have none.
            self.qkv: nn.Linear = BiasedLinear(dim, 3 * dim)
            self.qv_bias = nn.Parameter(torch.zeros(2 * dim))
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.grid = config.grid
        self.has_positions = config.relative_pos_bias
        if self.has_positions:
            offsets = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1)
            # Last three: the class token to a patch, a patch to it, and it to itself.
            table = torch.empty(offsets + 3, config.num_heads)
            self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def forward(
        self,
        x: Float[Tensor, "B N C"],
        grid: Size,
        norm: nn.Module | None = None,
        kept: Int[Tensor, "B N"] | None = None,
    ) -> Float[Tensor, "B N C"]:
        """Attend over all tokens, normed first; `kept` are the indices that a mask keeps."""
        batch, tokens, dim = x.shape
        qkv = self.project(x, norm)
        # B, N, 3C -> B, N, 3, h, d
        qkv = qkv.view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B, h, N, d each
        bias = self.relative_position_bias(grid).to(q.dtype) if self.has_positions else None
        if bias is not None and kept is not None:
            # Rows and columns of the tokens that a mask kept: one bias per image.
            bias = bias[:, kept[:, :, None], kept[:, None, :]].transpose(0, 1)  # B, h, N, N
        dropout = self.dropout if self.training else 0.0
        x = attend(q, k, v, bias, dropout=dropout)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))

    def project(self, x: Float[Tensor, "B N C"], norm: nn.Module | None) -> Float[Tensor, "B N C3"]:
        """Compute queries, keys and values."""
        x = x if norm is None else norm(x)
        if isinstance(self.qkv, BiasedLinear):
            qkv: Tensor = self.qkv(x, without_key_bias(self.qv_bias))
            return qkv
        return self.qkv(x)

    def relative_position_bias(self, grid: Size) -> Float[Tensor, "h N N"]:
        """The bias of every pair of tokens, the class token first."""
        table, (to_patch, to_token, itself) = (
            self.relative_position_bias_table[:-3],
            self.relative_position_bias_table[-3:],
        )
        table = resample_offsets(table, old=self.grid, new=grid)
        # N x N patches, then one row and one column for the class token.
        pairs = expand_relative_position_bias(table, table_window=grid, window=grid)  # h, N, N
        heads, count, _ = pairs.shape
        below = torch.cat([to_token.view(heads, 1, 1).expand(-1, count, -1), pairs], dim=2)
        first = torch.cat([itself[:, None], to_patch[:, None].expand(-1, count)], dim=1)
        return torch.cat([first[:, None], below], dim=1)


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch (DeiT III; Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Scale every channel."""
        return x * self.gamma


class ViTBlock(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut (figure 1)."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        dim, scale = config.embed_dim, config.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = SelfAttention(config)
        self.ls1 = LayerScale(dim, scale) if scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate)
        self.ls2 = LayerScale(dim, scale) if scale else nn.Identity()
        self.dropout = nn.Dropout(config.drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "B N C"], grid: Size, kept: Int[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "B N C"]:
        """Apply attention and MLP; `kept` are the indices of tokens that a mask keeps."""

        def attend(x: Tensor) -> Tensor:
            return self.ls1(self.dropout(self.attn(x, grid, norm=self.norm1, kept=kept)))

        # Equations 2 and 3: z = MSA(LN(z)) + z, then z = MLP(LN(z)) + z.
        x = self.drop_path.add(x, attend)
        return self.drop_path.add(x, lambda x: self.ls2(self.mlp(x, self.norm2)))


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to one token (equation 1)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, padding=padding)

    def forward(self, images: Float[Tensor, "B in_chans Hi Wi"]) -> Float[Tensor, "B C H W"]:
        """Compute the map of patches."""
        return self.proj(images)


class ViT(Backbone):
    """The whole backbone (figure 1). Blocks beyond the last of `out_indices` are not built."""

    blocks: nn.ModuleList
    undecayed = ("relative_position_bias_table", "pos_embed", "_token")

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.patch_embed = PatchEmbed(config.in_chans, dim, config.patch_size, config.patch_padding)
        self.num_prefix = config.prefix_tokens
        if config.class_token:
            self.cls_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, dim), std=1e-6))
        if config.distillation_token:
            self.dist_token = nn.Parameter(nn.init.normal_(torch.empty(1, 1, dim), std=1e-6))
        if config.absolute_pos_embed:
            # Which tokens before the patches have a position differs between families.
            prefix = self.num_prefix if config.prefix_positions else 0
            prefix += int(config.shared_position)
            positions = torch.empty(1, prefix + config.grid[0] * config.grid[1], dim)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        self.pos_drop = nn.Dropout(config.drop_rate)
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(
            ViTBlock(config, rate) for rate in rates[: config.blocks_out[-1] + 1]
        )
        has_norm = config.out_norm == "last"
        norm = nn.LayerNorm(dim, eps=config.norm_eps) if has_norm else nn.Identity()
        # fc_norm normalises the mean, norm all tokens; only one of them exists.
        after = config.pool_norm == "after"
        self.norm: nn.Module = nn.Identity() if after else norm
        self.fc_norm: nn.Module = norm if after else nn.Identity()
        init_linear_weights(self)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps; a plain ViT has one scale."""
        count = len(self.config.out_indices)
        return FeatureSpec(
            channels=(self.config.embed_dim,) * count,
            strides=(self.config.patch_size,) * count,
            embed_parts=1 + int(self.config.distillation_token),
        )

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run all blocks; images may have any size, and a mask may drop patches or fill them.

        The patch tokens of each block of `out_indices` are a map, all at the same stride. The
        vector is the class token, class and distillation token one after the other, or the mean of
        the patch tokens.
        """
        tokens, grid = self._run(images, mask)

        def to_maps() -> list[Tensor]:
            if mask is not None and mask.fill is None:
                return mask.refuse_maps()
            # B, C, H, W
            return [x[:, self.num_prefix :].transpose(1, 2).unflatten(2, grid) for x in tokens]

        return Features(
            images,
            sizes=sizes,
            mask=mask,
            maps=to_maps,
            vector=lambda: self._pool(tokens[-1]),
            tokens=lambda: tokens[-1],
        )

    def _pool(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B Co"]:
        if self.config.distillation_token:
            # DeiT: class and distillation token, B, 2C.
            return x[:, :2].flatten(1)
        pooled = x[:, 0] if self.config.pool == "token" else x[:, self.num_prefix :].mean(dim=1)
        return self.fc_norm(pooled)

    def mask_grid(self, image_size: Size) -> Size:
        """Patches down and across in images of this size."""
        config, rule = self.config, SIZE_RULES[self.config.size_rule]
        blank = torch.empty(1, 1, *image_size, device="meta")
        fitted = fit_patches(blank, config.patch_size, rule.patch_vit or rule.patch)
        high, wide = (
            (side + 2 * config.patch_padding) // config.patch_size for side in fitted.shape[2:]
        )
        return high, wide

    def _run(self, images: Tensor, mask: TokenMask | None) -> tuple[list[Tensor], Size]:
        """Tokens (B, N, C) after each wanted block, and the grid of the patches among them."""
        config = self.config
        rule = SIZE_RULES[config.size_rule]
        images = fit_patches(images, config.patch_size, rule.patch_vit or rule.patch)
        x = self.patch_embed(images)  # B, C, H, W
        size = (x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)  # B, N, C
        kept = None
        if mask is None:
            x = self.add_tokens(x, size)
        else:
            mask.check(x.shape[0], size)
            # Positions are added to all tokens first: each kept one must get its own.
            x = self.add_tokens(mask.put_fill(x), size)
            kept = self._find_kept(mask)
            x = torch.cat([x[:, : self.num_prefix], mask.drop(x[:, self.num_prefix :])], dim=1)
        x = self.pos_drop(x)
        tokens = []
        for index, block in enumerate(self.blocks):
            x = block(x, size) if kept is None else block(x, size, kept)
            if index in config.blocks_out:
                tokens.append(x)
        # Equation 4; earlier maps stay as their block leaves them.
        tokens[-1] = self.norm(tokens[-1])
        return tokens, size

    def _find_kept(self, mask: TokenMask) -> Int[Tensor, "B n"] | None:
        """Indices of the kept tokens, if a relative position bias needs them."""
        if mask.fill is not None or not self.config.relative_pos_bias:
            return None
        prefix = mask.keep.new_ones(mask.keep.shape[0], self.num_prefix)
        keep = torch.cat([prefix, mask.keep], dim=1)
        return keep.nonzero()[:, 1].view(keep.shape[0], -1)

    def add_tokens(self, x: Float[Tensor, "B n C"], grid: Size) -> Float[Tensor, "B N C"]:
        """Put the learned tokens before those of the patches, and add the positions."""
        if self.config.prefix_positions:
            return self._add_positions(self._add_prefix(x), grid, self.num_prefix)
        # DeiT III: positions first, so that the class token has none.
        return self._add_prefix(self._add_positions(x, grid, 0))

    def _add_prefix(self, x: Tensor) -> Tensor:
        names = ("cls_token", "dist_token")[: self.num_prefix]
        tokens = [getattr(self, name).expand(x.shape[0], -1, -1) for name in names]
        return torch.cat([*tokens, x], dim=1) if tokens else x

    def _add_positions(self, x: Tensor, size: Size, num_prefix: int) -> Tensor:
        config = self.config
        if not config.absolute_pos_embed:
            return x
        how = SIZE_RULES[config.size_rule].positions
        num_prefix += int(config.shared_position)
        positions = resample_grid(
            self.pos_embed, old=config.grid, new=size, num_prefix=num_prefix, how=how
        )
        if config.shared_position:
            return x + positions[:, 1:] + positions[:, :1]
        return x + positions
