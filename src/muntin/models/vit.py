# SPDX-License-Identifier: Apache-2.0
"""Vision Transformer and its kin (DeiT, MAE, DINOv2, BEiT): patches as tokens, global attention.

The kin are the same function with a few fields changed: DeiT may have a second, distillation token
with a classifier of its own; DeiT III scales its branches and gives no position to the class token;
MAE classifies from the mean; DINOv2 may have registers and a gated MLP; BEiT and SimMIM have a
relative position bias instead of positions, and keys without a bias.

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

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from muntin.features import Backbone, Features, FeatureSpec, TokenMask, reject_config
from muntin.nn.layers import (
    Activation,
    BiasedLinear,
    DropPath,
    LayerScale,
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
        registers: Learned tokens after these that belong to no place and have no positions.
        prefix_positions: Whether class and distillation token have positions of their own.
        shared_position: Whether the first position belongs to no token, but is added to all
            patches (ViTPose, whose positions were trained with a class token that it lacks).
        layer_scale: What the learned factors of the branches start with, one a channel; 0 = none.
        pool: What is classified: the class "token", the "mean" of the patch tokens, or both, one
            after the other ("token_and_mean").
        pool_norm: Whether the layer norm comes "before" pooling (the paper) or "after" it (MAE
            fine-tuning, and timm when it pools by the mean).
        activation: Nonlinearity of the MLP; see `muntin.nn.layers.Activation`.
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
    registers: int = 0
    prefix_positions: bool = True
    shared_position: bool = False
    layer_scale: float = 0.0
    pool: Literal["token", "mean", "token_and_mean"] = "token"
    pool_norm: Literal["before", "after"] = "before"
    activation: Activation = "gelu"
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
        elif self.pool != "mean" and not self.class_token:
            problem = f'pool="{self.pool}" needs class_token=True'
        elif self.distillation_token and not (self.class_token and self.pool == "token"):
            problem = 'distillation_token needs class_token=True and pool="token"'
        elif self.relative_pos_bias and (not self.class_token or self.prefix_tokens != 1):
            problem = "relative_pos_bias needs the class token and no other token beside patches"
        elif min(self.layer_scale, self.registers) < 0:
            problem = (
                f"layer_scale and registers must be 0 or more, got {self.layer_scale} and "
                f"{self.registers}"
            )
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
        return int(self.class_token) + int(self.distillation_token) + self.registers

    @property
    def positioned_tokens(self) -> int:
        """Positions in the embedding before those of the patches."""
        if self.shared_position:
            return 1
        return self.prefix_tokens - self.registers if self.prefix_positions else 0

    @property
    def grid(self) -> Size:
        """Patches down and across at `img_size`."""
        return self.img_size[0] // self.patch_size, self.img_size[1] // self.patch_size


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
        self.resampling = SIZE_RULES[config.size_rule].tables
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
        table = resample_offsets(table, old=self.grid, new=grid, how=self.resampling)
        # N x N patches, then one row and one column for the class token.
        pairs = expand_relative_position_bias(table, table_window=grid, window=grid)  # h, N, N
        heads, count, _ = pairs.shape
        below = torch.cat([to_token.view(heads, 1, 1).expand(-1, count, -1), pairs], dim=2)
        first = torch.cat([itself[:, None], to_patch[:, None].expand(-1, count)], dim=1)
        return torch.cat([first[:, None], below], dim=1)


class ViTBlock(nn.Module):
    """Attention and MLP, each behind a norm and around a shortcut (figure 1)."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        dim, scale = config.embed_dim, config.layer_scale
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = SelfAttention(config)
        self.ls1 = LayerScale(dim, scale) if scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate, config.activation)
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
    drops_tokens = True
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
        if config.registers:
            tokens = torch.empty(1, config.registers, dim)
            self.reg_token = nn.Parameter(nn.init.normal_(tokens, std=1e-6))
        if config.absolute_pos_embed:
            # Which tokens before the patches have a position differs between families.
            count = config.positioned_tokens + config.grid[0] * config.grid[1]
            positions = torch.empty(1, count, dim)
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

    @property
    def embed_channels(self) -> int:
        """Channels of the vector."""
        parts = 2 if self.config.pool == "token_and_mean" else self.spec.embed_parts
        return parts * self.config.embed_dim

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run all blocks; images may have any size, and a mask may drop patches or fill them.

        The patch tokens of each block of `out_indices` are a map, all at the same stride. The
        vector is the class token, class and distillation token one after the other, the mean of
        the patch tokens, or class token and mean.
        """
        self._refuse_quarters(mask)
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
        if self.config.pool == "token":
            return self.fc_norm(x[:, 0])
        mean = self.fc_norm(x[:, self.num_prefix :].mean(dim=1))
        return mean if self.config.pool == "mean" else torch.cat([self.fc_norm(x[:, 0]), mean], 1)

    @property
    def mask_px(self) -> int:
        """Side of a patch."""
        return self.config.patch_size

    def mask_grid(self, image_size: Size) -> Size:
        """Patches down and across in images of this size."""
        config, rule = self.config, SIZE_RULES[self.config.size_rule]
        blank = torch.empty(1, 1, *image_size, device="meta")
        how = rule.patch_vit or rule.patch
        fitted = fit_patches(blank, config.patch_size, how, config.patch_padding)
        high, wide = (
            (side + 2 * config.patch_padding) // config.patch_size for side in fitted.shape[2:]
        )
        return high, wide

    def _run(self, images: Tensor, mask: TokenMask | None) -> tuple[list[Tensor], Size]:
        """Tokens (B, N, C) after each wanted block, and the grid of the patches among them."""
        config = self.config
        rule = SIZE_RULES[config.size_rule]
        how = rule.patch_vit or rule.patch
        images = fit_patches(images, config.patch_size, how, config.patch_padding)
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
        config = self.config
        names = [name for name in ("cls_token", "dist_token") if hasattr(self, name)]
        # DeiT III: positions first, so that the class token has none.
        first = not config.prefix_positions
        x = self._add_positions(x, grid) if first else self._add_prefix(x, names)
        x = self._add_prefix(x, names) if first else self._add_positions(x, grid)
        if not config.registers:
            return x
        # Registers never have positions; they stand behind the class token.
        place = len(names)
        registers = self.reg_token.expand(x.shape[0], -1, -1)
        return torch.cat([x[:, :place], registers, x[:, place:]], dim=1)

    def _add_prefix(self, x: Tensor, names: list[str]) -> Tensor:
        tokens = [getattr(self, name).expand(x.shape[0], -1, -1) for name in names]
        return torch.cat([*tokens, x], dim=1) if tokens else x

    def _add_positions(self, x: Tensor, size: Size) -> Tensor:
        config = self.config
        if not config.absolute_pos_embed:
            return x
        positions = resample_grid(
            self.pos_embed,
            old=config.grid,
            new=size,
            num_prefix=config.positioned_tokens,
            how=SIZE_RULES[config.size_rule].positions,
        )
        if config.shared_position:
            return x + positions[:, 1:] + positions[:, :1]
        return x + positions
