# SPDX-License-Identifier: Apache-2.0
"""Swin Transformer (V1): attention inside shifted windows, four stages, one scale each.

Cost grows linearly with the area of the image, and the four stages are a feature pyramid.

Source:
    Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
    arXiv 2103.14030: section 3.1 (stages, patch merging), 3.2 (window attention, bias), 3.3
    (variants). Compared live with timm 1.0.31, torchvision 0.29.2 and transformers 5.23 in
    tests/parity/test_swin_parity.py: logits and input gradients within 1e-5, odd sizes included.
    Differs: sizes that do not divide evenly follow `SwinConfig.size_rule`, in a stateless
    forward; a relative-position table always belongs to the full window, and a smaller
    window reads its middle.

Letters: B images, H and W sides of a map in tokens, C channels, M window side, N = M*M, h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from muntin.errors import ConfigError
from muntin.features import Backbone, Features, FeatureSpec, TokenMask, follow_depths, reject_config
from muntin.nn.layers import Activation, DropPath, Mlp, drop_path_schedule, init_linear_weights
from muntin.ops.positions import (
    SIZE_RULES,
    SizeRule,
    SizeRuleName,
    expand_relative_position_bias,
    fit_patches,
    resample_grid,
)
from muntin.ops.window_attention import BackendName, window_attention
from muntin.ops.windows import WindowLayout, lay_out, merge_neighbours
from muntin.shapes import Float, Int, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinConfig:
    """Configuration of a Swin Transformer.

    Attributes:
        embed_dim: Channels of the first stage; each further stage has twice as many.
        depths: Blocks of each stage.
        num_heads: Attention heads of each stage.
        window_size: Side of a window in tokens, one for all stages or one a stage.
        img_size: (height, width) in pixels of the images it is meant for. Others are accepted.
            It sizes the absolute position embedding, and the size rule "timm" reads it.
        in_chans: Channels of an image.
        patch_size: Side of a patch in pixels.
        mlp_ratio: Width of the MLP relative to its block.
        qkv_bias: Whether queries, keys and values have a bias.
        absolute_pos_embed: Whether learned absolute positions are added after the patches.
        patch_norm: Whether patches are normalised after the projection.
        activation: Nonlinearity of the MLP; see `muntin.nn.layers.Activation`.
        norm_eps: Added to the variance in layer norms.
        outer_norm_eps: The same, in the norms of patches, of merging and of each map; 0 = norm_eps.
        drop_rate: Dropout after the patches and inside attention output and MLP.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth at the last block; rises linearly from 0.
        out_indices: Stages whose maps `forward` returns.
        out_norm: "last" normalises the map of the last stage with the layer norm that the
            classifier reads; "each" has a norm for every map, as detectors do; "none" has no norm
            and gives every map as the stage leaves it.
        size_rule: How sizes that do not divide evenly are handled; a key of
            `muntin.ops.positions.SIZE_RULES`.
        attention: Back end of the window attention.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int | tuple[int, ...]
    img_size: Size
    in_chans: int = 3
    patch_size: int = 4
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    absolute_pos_embed: bool = False
    patch_norm: bool = True
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    outer_norm_eps: float = 0.0
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    out_indices: tuple[int, ...] = (0, 1, 2, 3)
    out_norm: Literal["none", "last", "each"] = "last"
    size_rule: SizeRuleName = "muntin"
    attention: BackendName = "auto"

    def follow(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete changed fields; see `muntin.configs.replace`."""
        return follow_depths(self, values)

    def __post_init__(self) -> None:
        """Validate the fields."""
        stages = len(self.depths)
        problem = ""
        if not stages or len(self.num_heads) != stages or len(self.windows) != stages:
            problem = (
                f"depths, num_heads and window_size (if one a stage) must be equally long, got "
                f"{self.depths}, {self.num_heads} and {self.window_size}"
            )
        elif min(*self.depths, *self.num_heads, *self.windows, self.embed_dim) < 1:
            problem = "embed_dim, depths, num_heads and window_size must be at least 1"
        elif any(self.dim(i) % heads for i, heads in enumerate(self.num_heads)):
            problem = (
                f"num_heads={self.num_heads} must divide the widths of the stages, "
                f"{tuple(self.dim(i) for i in range(stages))}"
            )
        elif min(*self.img_size, self.patch_size, self.in_chans) < 1:
            problem = "img_size, patch_size and in_chans must be at least 1"
        reject_config(self, problem, stages)
        object.__setattr__(self, "out_indices", tuple(i % stages for i in self.out_indices))

    @property
    def windows(self) -> tuple[int, ...]:
        """Side of the window of each stage, in tokens."""
        if isinstance(self.window_size, int):
            return (self.window_size,) * len(self.depths)
        return self.window_size

    def dim(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    @property
    def grid(self) -> Size:
        """Patches down and across at `img_size`, rounded up."""
        return -(-self.img_size[0] // self.patch_size), -(-self.img_size[1] // self.patch_size)


def _preset(
    embed_dim: int,
    depth: int,
    num_heads: tuple[int, ...],
    window_size: int | tuple[int, ...] = 7,
    side: int = 224,
    drop_path_rate: float = 0.2,
) -> SwinConfig:
    return SwinConfig(
        embed_dim=embed_dim, depths=(2, 2, depth, 2), num_heads=num_heads, window_size=window_size,
        img_size=(side, side), drop_path_rate=drop_path_rate,
    )  # fmt: skip


# Paper, section 3.3; drop path of the published ImageNet-1k configs.
SWIN_TINY = _preset(96, 6, (3, 6, 12, 24), drop_path_rate=0.2)
SWIN_SMALL = _preset(96, 18, (3, 6, 12, 24), drop_path_rate=0.3)
SWIN_BASE = _preset(128, 18, (4, 8, 16, 32), drop_path_rate=0.5)
SWIN_BASE_384 = _preset(128, 18, (4, 8, 16, 32), window_size=12, side=384, drop_path_rate=0.5)
SWIN_LARGE = _preset(192, 18, (6, 12, 24, 48), drop_path_rate=0.2)
SWIN_LARGE_384 = _preset(192, 18, (6, 12, 24, 48), window_size=12, side=384, drop_path_rate=0.2)
# Chen et al. 2021 (arXiv 2111.14725), searched widths, depths and windows.
SWIN_S3_TINY = _preset(96, 6, (3, 6, 12, 24), window_size=(7, 7, 14, 7))
SWIN_S3_SMALL = _preset(96, 18, (3, 6, 12, 24), window_size=(14, 14, 14, 7), drop_path_rate=0.3)
SWIN_S3_BASE = _preset(96, 30, (3, 6, 12, 24), window_size=(7, 7, 14, 7), drop_path_rate=0.5)

# Ours, for small images and sets of few images; not published.
SWIN_NANO_32 = SwinConfig(embed_dim=48, depths=(2, 2, 2), num_heads=(3, 6, 12), window_size=4,
    img_size=(32, 32), patch_size=2, out_indices=(0, 1, 2), drop_path_rate=0.0)  # fmt: skip
SWIN_NANO_64 = replace(SWIN_NANO_32, img_size=(64, 64), patch_size=4)
SWIN_NANO_256 = replace(SWIN_NANO_64, img_size=(256, 256), window_size=8, absolute_pos_embed=True)


class PatchEmbed(nn.Module):
    """Cut the image into patches and project each to one token (section 3.1)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int, norm_eps: float | None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, images: Float[Tensor, "B in_chans Hi Wi"]) -> Float[Tensor, "B H W C"]:
        """Compute the map of patches, channels last."""
        return self.norm(self.proj(images).permute(0, 2, 3, 1))  # B, H, W, C


class WindowAttention(nn.Module):
    """Multi-head self-attention with a relative position bias inside windows (section 3.2)."""

    recomputable = ("project", "attend")

    def __init__(self, dim: int, num_heads: int, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.window = window
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(
        self,
        x: Float[Tensor, "B H W C"],
        layout: WindowLayout,
        dropout: float = 0.0,
        backend: BackendName = "auto",
        norm: nn.Module | None = None,
    ) -> Float[Tensor, "B H W C"]:
        """Attend within each window; `norm` is applied to the tokens first."""
        dropout = dropout if self.training else 0.0
        return self.proj(self.attend(self.project(x, norm), layout, dropout, backend))

    def project(
        self, x: Float[Tensor, "B H W C"], norm: nn.Module | None
    ) -> Float[Tensor, "B H W C3"]:
        """Compute queries, keys and values."""
        return self.qkv(x if norm is None else norm(x))

    def attend(
        self,
        qkv: Float[Tensor, "B H W C3"],
        layout: WindowLayout,
        dropout: float,
        backend: BackendName,
    ) -> Float[Tensor, "B H W C"]:
        """Attend within each window, before the output projection."""
        # B in equation 4: 2M - 1 by 2M - 1 offsets to N x N pairs.
        bias = expand_relative_position_bias(
            self.relative_position_bias_table,
            table_window=(self.window, self.window),
            window=layout.window,
        )
        return window_attention(
            qkv,
            bias,
            layout,
            scale=self.scale,
            # Padded tokens are zeros before the projection, so they equal its bias.
            fill=self.qkv.bias,
            dropout=dropout,
            backend=backend,
        )


class SwinBlock(nn.Module):
    """Window attention and MLP, each behind a norm and around a shortcut (figure 3b)."""

    def __init__(self, config: SwinConfig, stage: int, shifted: bool, drop_path: float) -> None:
        super().__init__()
        dim = config.dim(stage)
        self.shifted = shifted
        self.attn_drop_rate = config.attn_drop_rate
        self.backend: BackendName = config.attention
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attn = WindowAttention(
            dim, config.num_heads[stage], config.windows[stage], config.qkv_bias
        )
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), config.drop_rate, config.activation)
        self.dropout = nn.Dropout(config.drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Float[Tensor, "B H W C"], layout: WindowLayout
    ) -> Float[Tensor, "B H W C"]:
        """Apply attention and MLP."""

        def attend(x: Tensor) -> Tensor:
            attended = self.attn(x, layout, self.attn_drop_rate, self.backend, norm=self.norm1)
            return self.dropout(attended)

        # Equation 3: z^ = (S)W-MSA(LN(z)) + z, then z = MLP(LN(z^)) + z^.
        x = self.drop_path.add(x, attend)
        return self.drop_path.add(x, lambda x: self.mlp(x, self.norm2))


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbours to one token of twice the width (section 3.1)."""

    recomputable = ("forward",)

    def __init__(self, dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=norm_eps)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Float[Tensor, "B H W C"]) -> Float[Tensor, "B h w C2"]:
        """Halve height and width, rounding up."""
        return self.reduction(self.norm(merge_neighbours(x)))


class SwinStage(nn.Module):
    """Blocks at one scale, every second one shifted, and the downsampling after them."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(
        self, x: Float[Tensor, "B H W C"], window: int, rule: SizeRule, built_size: Size
    ) -> tuple[Float[Tensor, "B H W C"], Float[Tensor, "B h w C2"]]:
        """Compute the map of this stage and the downsampled input of the next."""
        size = (x.shape[1], x.shape[2])
        # W-MSA and SW-MSA: both layouts once per stage, not per block.
        plain, shifted = (
            lay_out(size, (window, window), shifts, rule, built_size=built_size)
            for shifts in (False, True)
        )
        for block in self.blocks:
            x = block(x, shifted if block.shifted else plain)
        return x, self.downsample(x)


class Swin(Backbone):
    """The whole backbone (figure 3a). Stages beyond the last of `out_indices` are not built."""

    stage_unit: Literal["stage"] = "stage"
    keeps_quarters = True
    undecayed = ("relative_position_bias_table", "absolute_pos_embed")
    block: Callable[..., nn.Module] = SwinBlock
    merging: Callable[..., nn.Module] = PatchMerging

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        outer_eps = config.outer_norm_eps or config.norm_eps
        self.patch_embed = PatchEmbed(
            config.in_chans,
            config.embed_dim,
            config.patch_size,
            outer_eps if config.patch_norm else None,
        )
        if config.absolute_pos_embed:
            positions = torch.empty(1, config.grid[0] * config.grid[1], config.embed_dim)
            self.absolute_pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        self.pos_drop = nn.Dropout(config.drop_rate)
        rates = drop_path_schedule(config.drop_path_rate, sum(config.depths))
        stages = range(config.out_indices[-1] + 1)
        self.layers = nn.ModuleList(self._build_stage(stage, rates) for stage in stages)
        normed = {"none": (), "last": stages[-1:], "each": config.out_indices}[config.out_norm]
        for stage in normed:
            name = "norm" if config.out_norm == "last" else f"norm{stage}"
            eps = config.norm_eps if name == "norm" else outer_eps
            self.add_module(name, nn.LayerNorm(config.dim(stage), eps=eps))
        init_linear_weights(self)

    def _build_stage(self, stage: int, rates: list[float]) -> SwinStage:
        config = self.config
        # Drop path rises over all blocks of the network, not within a stage.
        first = sum(config.depths[:stage])
        last = stage == config.out_indices[-1]
        return SwinStage(
            blocks=(
                # Every second block shifts (section 3.2).
                self.block(config, stage, shifted=index % 2 == 1, drop_path=rates[first + index])
                for index in range(config.depths[stage])
            ),
            downsample=(
                nn.Identity()
                if last
                else self.merging(config.dim(stage), config.outer_norm_eps or config.norm_eps)
            ),
        )

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps."""
        indices = self.config.out_indices
        return FeatureSpec(
            channels=tuple(self.config.dim(i) for i in indices),
            strides=tuple(self.config.patch_size * 2**i for i in indices),
        )

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run all stages; sides of the maps round up, or as the size rule says.

        One map a stage of `out_indices`; the vector is the mean of the last one. A mask needs a
        fill: windows need a token at every place. With quarters, maps have half the sides.
        """
        outputs = self._run(images, mask)
        *finer, coarsest = self.config.out_indices
        # Both parts read the last map; the norms of the others are for those who read maps.
        last = self._normalise(outputs[coarsest], coarsest).permute(0, 3, 1, 2)  # B, C, H, W
        return Features(
            images,
            sizes=sizes,
            mask=mask,
            maps=lambda: [
                *(self._normalise(outputs[i], i).permute(0, 3, 1, 2) for i in finer),
                last,
            ],
            vector=lambda: last.mean(dim=(2, 3)),
        )

    @property
    def mask_px(self) -> int:
        """Side of a patch."""
        return self.config.patch_size

    def mask_grid(self, image_size: Size) -> Size:
        """Patches down and across in images of this size."""
        config = self.config
        blank = torch.empty(1, 1, *image_size, device="meta")
        fitted = fit_patches(blank, config.patch_size, SIZE_RULES[config.size_rule].patch)
        return fitted.shape[2] // config.patch_size, fitted.shape[3] // config.patch_size

    def _put_fill(self, x: Float[Tensor, "B H W C"], mask: TokenMask) -> Float[Tensor, "B H W C"]:
        if mask.fill is None:
            message = (
                "a mask must have a fill for a Swin, whose windows need a token at every place, "
                "got none. Give it a mask token, or choose a ViT or a Hiera."
            )
            raise ConfigError(message)
        size = (x.shape[1], x.shape[2])
        mask.check(x.shape[0], size)
        return mask.put_fill(x.flatten(1, 2)).unflatten(1, size)

    def _run(self, images: Tensor, mask: TokenMask | None) -> dict[int, Tensor]:
        """The map (B, H, W, C) as each stage of `out_indices` leaves it."""
        config = self.config
        rule = SIZE_RULES[config.size_rule]
        # Section 3.1: patches of 4 x 4 pixels, projected to C channels.
        x = self.patch_embed(fit_patches(images, config.patch_size, rule.patch))  # B, H, W, C
        if mask is not None:
            x = self._put_fill(x, mask)
        if config.absolute_pos_embed:
            size = (x.shape[1], x.shape[2])
            positions = resample_grid(
                self.absolute_pos_embed, old=config.grid, new=size, how=rule.positions
            )
            x = x + positions.view(1, *size, -1)
        # What is left is a map of half the sides, on which windows stay dense.
        x = self.pos_drop(x if mask is None else mask.take_quarter(x))
        built_size = config.grid
        outputs = {}
        for index, stage in enumerate(self.layers):
            # `merged` has half the sides and twice the channels; unused after the last stage.
            x, merged = stage(x, config.windows[index], rule, built_size)
            if index in config.out_indices:
                outputs[index] = x
            x = merged
            # Ceil division, as merging pads odd sides.
            built_size = (-(-built_size[0] // 2), -(-built_size[1] // 2))
        return outputs

    def norm_of(self, stage: int) -> nn.Module | None:
        """Return the norm of the map of a stage, if it has one."""
        # Detectors normalise every map; classifiers only the last one, before pooling.
        if self.config.out_norm == "each":
            return self.get_submodule(f"norm{stage}")
        last = self.config.out_norm == "last" and stage == self.config.out_indices[-1]
        return self.get_submodule("norm") if last else None

    def _normalise(self, x: Tensor, stage: int) -> Tensor:
        norm = self.norm_of(stage)
        return x if norm is None else norm(x)

    @property
    def blocks(self) -> Sequence[nn.Module]:  # type: ignore[override]
        """The blocks of all stages, in the order in which they are computed."""
        return [block for stage in self.layers for block in cast("SwinStage", stage).blocks]

    def layer_of(self, name: str) -> int:
        """Number the layer of a parameter; see `muntin.features.Backbone`."""
        kind, *path = name.split(".")
        if kind != "layers":
            return len(self.blocks) + 1 if kind.startswith("norm") else 0
        stage = int(path[0])
        ended = sum(self.config.depths[:stage])
        if path[1:2] == ["blocks"]:
            return ended + int(path[2]) + 1
        return ended + self.config.depths[stage]  # merging belongs to the block before it

    def stage_of(self, name: str) -> int:
        """Number the stage of a parameter; see `muntin.features.Backbone`."""
        kind, *path = name.split(".")
        if kind == "layers":
            return int(path[0]) + 1
        return len(self.layers) + 1 if kind.startswith("norm") else 0
