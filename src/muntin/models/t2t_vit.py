# SPDX-License-Identifier: Apache-2.0
"""T2T-ViT: overlapping patches are re-joined in steps before a narrow ViT reads them.

The image is unfolded into overlapping pieces, a small attention layer mixes them, they are laid out
as a map again; this is done twice before the last projection gives the tokens.

Source:
    Yuan et al. 2021, "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
    arXiv 2101.11986: section 3.1 (tokens to token), 3.2 (backbone), table 1 (variants); the linear
    attention of the performer variants is that of Choromanski et al. 2021 (arXiv 2009.14794),
    section 2.4. No installable reference exists: compared with a slow implementation with loops in
    tests/models/test_t2t_vit.py, within 1e-5, and with the published parameter counts.
    Differs: images of any size are accepted; position embeddings are resized on the fly.

Letters: B images, H and W sides of a map in tokens, N tokens, C channels, F random features.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.errors import ShapeError
from muntin.features import Backbone, Features, FeatureSpec, TokenMask, reject_config
from muntin.models.vit import ViTBlock, ViTConfig
from muntin.nn.layers import Mlp, drop_path_schedule, init_linear_weights
from muntin.ops.dot_attention import attend
from muntin.ops.positions import Resampling, resample_grid
from muntin.shapes import Float, Int, Size

SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Kernel, stride and padding of the three unfoldings, section 3.1."""
_STRIDE = 16
_SMALLEST = 3  # pixels; a shorter side does not hold the first kernel
_EPSILON = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class T2TViTConfig:
    """Configuration of a T2T-ViT; the other fields are those of `ViTConfig`.

    Attributes:
        token_attention: Attention between the unfoldings: "performer" is linear in the number of
            tokens, "transformer" quadratic.
        token_dim: Channels between the unfoldings.
        resampling: How position embeddings are resized, in forward and by loading alike; of
            yitu-opensource/T2T-ViT (`resize_pos_embed`).
    """

    resampling: ClassVar[Resampling] = "bicubic"
    embed_dim: int
    depth: int
    num_heads: int
    token_attention: Literal["performer", "transformer"] = "performer"
    token_dim: int = 64
    img_size: Size = (224, 224)
    in_chans: int = 3
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    norm_eps: float = 1e-5
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    out_indices: tuple[int, ...] = (-1,)
    out_norm: Literal["none", "last"] = "last"

    def __post_init__(self) -> None:
        """Validate the fields."""
        problem = ""
        if min(self.embed_dim, self.depth, self.num_heads, self.token_dim, self.in_chans) < 1:
            problem = "embed_dim, depth, num_heads, token_dim and in_chans must be at least 1"
        elif self.embed_dim % self.num_heads:
            problem = f"num_heads={self.num_heads} must divide embed_dim={self.embed_dim}"
        elif self.token_attention == "performer" and self.token_dim < 2:
            problem = f"a performer needs token_dim=2 or more, got {self.token_dim}"
        elif min(self.img_size) < _SMALLEST:
            problem = f"img_size={self.img_size} must be at least {_SMALLEST} pixels"
        reject_config(self, problem, self.depth)

    @property
    def blocks_out(self) -> tuple[int, ...]:
        """`out_indices` counted from the first block."""
        return tuple(index % self.depth for index in self.out_indices)

    @property
    def backbone(self) -> ViTConfig:
        """The deep and narrow ViT that reads the tokens."""
        return ViTConfig(
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            patch_size=_STRIDE,
            img_size=(max(self.img_size[0], _STRIDE), max(self.img_size[1], _STRIDE)),
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
            norm_eps=self.norm_eps,
            drop_rate=self.drop_rate,
            attn_drop_rate=self.attn_drop_rate,
        )

    @property
    def grid(self) -> Size:
        """Tokens down and across at `img_size`."""
        size = self.img_size
        for split in SPLITS:
            size = unfolded_size(size, split)
        return size


def t2t_vit_preset(
    size: Literal[7, 10, 12, 14, 19, 24],
    token_attention: Literal["performer", "transformer"] = "performer",
    side: int = 224,
) -> T2TViTConfig:
    """One row of the paper's table of variants; `size` is the number of blocks."""
    embed_dim = {7: 256, 10: 256, 12: 256, 14: 384, 19: 448, 24: 512}[size]
    return T2TViTConfig(
        embed_dim=embed_dim,
        depth=size,
        num_heads=embed_dim // 64,
        token_attention=token_attention,
        img_size=(side, side),
        mlp_ratio=2.0 if embed_dim == 256 else 3.0,
    )


_Split = tuple[int, int, int]


def unfolded_size(size: Size, split: _Split) -> Size:
    """Pieces down and across that one of `SPLITS` cuts a map of this size into."""
    kernel, stride, padding = split
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in size)
    return height, width


def _unfold(x: Float[Tensor, "B C H W"], split: _Split) -> Float[Tensor, "B N C2"]:
    """Overlapping pieces as tokens; channel c * kernel**2 + row * kernel + column of a piece."""
    kernel, stride, padding = split
    return F.unfold(x, kernel, stride=stride, padding=padding).transpose(1, 2)


def _full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast: exponentials of sums overflow in half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class TokenPerformer(nn.Module):
    """Linear attention by positive random features, one head; values are the shortcut."""

    def __init__(self, dim: int, token_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.token_dim = token_dim
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.kqv = nn.Linear(dim, 3 * token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.norm2 = nn.LayerNorm(token_dim, eps=norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(token_dim, token_dim), nn.GELU(), nn.Linear(token_dim, token_dim)
        )
        features = token_dim // 2
        # Fixed, but part of the weights: another draw is another function.
        self.w = nn.Parameter(torch.empty(features, token_dim), requires_grad=False)
        nn.init.orthogonal_(self.w).mul_(math.sqrt(features))

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N token_dim"]:
        """Mix the tokens and make them narrow."""
        # The published layer orders keys before queries.
        k, q, v = self.kqv(self.norm1(x)).split(self.token_dim, dim=-1)
        with _full_precision(x.device):
            k, q = self.features(k.float()), self.features(q.float())  # B, N, F each
            # Linear attention: phi(q) (phi(k)^T v) / (phi(q) sum phi(k)), O(N) in the tokens.
            norm = q @ k.sum(dim=1)[..., None]  # B, N, 1
            mixed = q @ (k.transpose(1, 2) @ v.float()) / (norm + _EPSILON)  # B, N, token_dim
        x = v + self.proj(mixed.to(v.dtype))
        return x + self.mlp(self.norm2(x))

    def features(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N F"]:
        """exp(w x - |x|^2 / 2) / sqrt(F): their products estimate exp(q k)."""
        # Choromanski et al., lemma 1: positive features of the softmax kernel.
        length = x.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(x @ self.w.float().t() - length) / math.sqrt(self.w.shape[0])


class TokenAttention(nn.Module):
    """Self-attention with one head, from wide tokens to narrow ones; values are the shortcut."""

    def __init__(self, dim: int, token_dim: int) -> None:
        super().__init__()
        self.scale = dim**-0.5  # of what comes in, not of a head
        self.qkv = nn.Linear(dim, 3 * token_dim, bias=False)
        self.proj = nn.Linear(token_dim, token_dim)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N token_dim"]:
        """Attend over all tokens."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return v + self.proj(attend(q, k, v, scale=self.scale))


class TokenTransformer(nn.Module):
    """The layer of the "t" variants: attention, then an MLP around a shortcut."""

    def __init__(self, dim: int, token_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = TokenAttention(dim, token_dim)
        self.norm2 = nn.LayerNorm(token_dim, eps=norm_eps)
        self.mlp = Mlp(token_dim, token_dim)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N token_dim"]:
        """Mix the tokens and make them narrow."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Unfold, mix, lay out as a map, twice; unfold and project (section 3.1)."""

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__()
        layer = TokenPerformer if config.token_attention == "performer" else TokenTransformer
        narrow, eps = config.token_dim, config.norm_eps
        first, second, third = (kernel**2 for kernel, _, _ in SPLITS)
        self.attention1 = layer(config.in_chans * first, narrow, eps)
        self.attention2 = layer(narrow * second, narrow, eps)
        self.project = nn.Linear(narrow * third, config.embed_dim)

    def forward(self, images: Float[Tensor, "B in_chans Hi Wi"]) -> Float[Tensor, "B H W C"]:
        """Compute the map of tokens."""
        x = images
        for split, layer in zip(SPLITS, (self.attention1, self.attention2, None), strict=True):
            size = unfolded_size((x.shape[2], x.shape[3]), split)
            # Soft split: overlapping k x k pieces become tokens of C k^2 channels.
            x = _unfold(x, split)  # B, N, C
            if layer is not None:
                # Re-structurisation: B, N, C -> B, C, H, W (equation 1).
                x = layer(x).transpose(1, 2).reshape(x.shape[0], -1, *size)  # B, C, H, W
        return self.project(x).reshape(x.shape[0], *size, -1)


class T2TViT(Backbone):
    """The whole backbone (figure 4). Blocks beyond the last of `out_indices` are not built."""

    blocks: nn.ModuleList
    undecayed = ("pos_embed", "cls_token")

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.tokens_to_token = TokensToToken(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        positions = _sinusoids(1 + config.grid[0] * config.grid[1], dim)
        self.pos_embed = nn.Parameter(positions, requires_grad=False)
        self.pos_drop = nn.Dropout(config.drop_rate)
        rates = drop_path_schedule(config.drop_path_rate, config.depth)
        self.blocks = nn.ModuleList(
            ViTBlock(config.backbone, rate) for rate in rates[: config.blocks_out[-1] + 1]
        )
        has_norm = config.out_norm == "last"
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if has_norm else nn.Identity()
        init_linear_weights(self)

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps; there is one scale."""
        count = len(self.config.out_indices)
        return FeatureSpec(channels=(self.config.embed_dim,) * count, strides=(_STRIDE,) * count)

    def features(
        self,
        images: Float[Tensor, "B in_chans H W"],
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run all blocks; sides of the maps round as three unfoldings do, mostly up.

        The tokens of each block of `out_indices` are a map; the vector is the class token. Tokens
        overlap, so there are no masks.
        """
        self._refuse_mask(mask)
        tokens, size = self._run(images)
        return Features(
            images,
            sizes=sizes,
            maps=lambda: [x[:, 1:].transpose(1, 2).unflatten(2, size) for x in tokens],
            vector=lambda: tokens[-1][:, 0],
            tokens=lambda: tokens[-1],
        )

    def _run(self, images: Tensor) -> tuple[list[Tensor], Size]:
        """Tokens (B, N, C) after each wanted block, and the grid among them."""
        if min(images.shape[2:]) < _SMALLEST:
            message = (
                f"images must have sides of at least {_SMALLEST} pixels, got "
                f"{tuple(images.shape[2:])}. Pad them."
            )
            raise ShapeError(message)
        config = self.config
        x = self.tokens_to_token(images)
        size = (x.shape[1], x.shape[2])
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], dim=1)
        x = x + resample_grid(
            self.pos_embed, old=config.grid, new=size, num_prefix=1, how=config.resampling
        )
        x = self.pos_drop(x)
        tokens = []
        for index, block in enumerate(self.blocks):
            x = block(x, size)
            if index in config.blocks_out:
                tokens.append(x)
        tokens[-1] = self.norm(tokens[-1])
        return tokens, size


def _sinusoids(count: int, dim: int) -> Float[Tensor, "1 N C"]:
    """Fixed positions: sine and cosine in turns, of wavelengths up to 10,000 (section 3.2)."""
    place = torch.arange(count, dtype=torch.float64)[:, None]
    wave = torch.arange(dim, dtype=torch.float64) // 2 * 2 / dim
    angle = place / 10000**wave
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angle.sin(), angle.cos()).float()[None]
