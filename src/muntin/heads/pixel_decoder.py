# SPDX-License-Identifier: Apache-2.0
"""The decoder that masked autoencoders share, and their loss: pixels of what was not seen.

Source:
    He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), section
    3: a narrow transformer over all places, mask tokens where nothing was seen, and the mean
    squared error of the normalised pixels of each such patch. Compared with transformers 5.23 in
    tests/parity/test_mae_parity.py.

Letters: B images, N patches of the whole grid, n tokens that the backbone computed, C channels, p
side of a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from muntin.configs import Range, check_range, check_ranges
from muntin.errors import ConfigError, ShapeError
from muntin.features import Backbone, Features, TokenMask
from muntin.heads.network import HeadConfig, PretrainingHead
from muntin.nn.layers import Mlp
from muntin.ops.dot_attention import attend
from muntin.ops.masks import Mask, spread_cells
from muntin.ops.positions import resample_grid
from muntin.shapes import Bool, Float, Int, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig(HeadConfig):
    """Base class of configs of heads with a decoder; sizes of the published masked autoencoders.

    Attributes:
        dim: Width of the decoder.
        depth: Blocks of the decoder.
        num_heads: Attention heads of the decoder.
    """

    dim: Annotated[int, Range(4, 2**15)] = 512
    depth: Annotated[int, Range(1, 100)] = 8
    num_heads: int = 16

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("head", self)
        check_range("head.num_heads", self.num_heads, 1, self.dim)
        if self.dim % 4 or self.dim % self.num_heads:
            message = (
                f"head.dim must be a multiple of 4 and of head.num_heads={self.num_heads}, got "
                f"{self.dim}. Change both together."
            )
            raise ConfigError(message)


class DecoderBlock(nn.Module):
    """Attention over all tokens and MLP, each behind a norm and around a shortcut."""

    def __init__(self, dim: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        # Named as the parts of a ViT's block, so that the same rows of key maps serve both.
        self.attn = nn.ModuleDict({"qkv": nn.Linear(dim, 3 * dim), "proj": nn.Linear(dim, dim)})
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Apply attention and MLP."""
        qkv = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # B, h, N, d each
        x = x + self.attn["proj"](attend(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x, self.norm2)


class PixelDecoder(nn.Module):
    """Predict `num_values` numbers for every place of a grid from tokens of some places.

    `grid` is that of images of the usual size, (height, width); others are accepted. Tokens before
    those of places, `num_prefix`, take part, and nothing is predicted for them. Positions are
    learned if `learned`, else fixed.
    """

    pos_embed: Tensor

    def __init__(
        self,
        channels: int,
        num_values: int,
        config: DecoderConfig,
        *,
        norm_eps: float,
        grid: Size,
        num_prefix: int = 0,
        learned: bool = False,
    ) -> None:
        super().__init__()
        dim = config.dim
        self.grid, self.num_prefix = grid, num_prefix
        self.embed = nn.Linear(channels, dim)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(dim), std=0.02))
        # He et al. fix them, Ryali et al. learn them.
        if learned:
            positions = torch.empty(1, num_prefix + math.prod(grid), dim)
            self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        else:
            self.register_buffer("pos_embed", place_waves(grid, dim, num_prefix))
        self.blocks = nn.ModuleList(
            DecoderBlock(dim, config.num_heads, norm_eps) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.pred = nn.Linear(dim, num_values)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # as the published code
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens: Float[Tensor, "B n C"], places: Int[Tensor, "B N"], grid: Size
    ) -> Float[Tensor, "B N P"]:
        """Predict all places of the grid, row by row.

        `places` says which of the tokens, counted after the prefix, lies at each place; -1: none,
        and the mask token stands there.
        """
        x = self.embed(tokens)
        count = self.num_prefix
        # A gather, not an assignment by mask: shapes do not depend on values.
        wanted = places.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])
        seen = x[:, count:].gather(1, wanted)
        x = torch.cat(
            [x[:, :count], torch.where(places[..., None] >= 0, seen, self.mask_token.to(x.dtype))],
            dim=1,
        )
        x = x + resample_grid(
            self.pos_embed, old=self.grid, new=grid, num_prefix=count, how="bicubic"
        )
        for block in self.blocks:
            x = block(x)
        predicted: Tensor = self.pred(self.norm(x)[:, count:])
        return predicted


class PatchPredictor(PretrainingHead):
    """Base class of heads that predict the pixels of every patch, and learn from unseen ones.

    Attributes:
        patch: Side of a patch in pixels.
        in_chans: Channels of an image.
        norm_pix: Whether the pixels of each patch are normalised before they are compared.
        channels_first: Whether the values of a patch are ordered by channel, then place.
    """

    patch: int
    in_chans: int
    norm_pix: bool
    channels_first: ClassVar[bool] = False

    def forward(self, features: Features) -> Float[Tensor, "B N P"]:
        """Predict the p*p*in_chans values of each patch, row by row over the grid."""
        raise NotImplementedError

    def make_mask(self, mask: Mask) -> TokenMask:
        """The mask of a backbone that computes only what is seen."""
        return TokenMask(mask.keep)

    def find_hidden(self, features: Features) -> Bool[Tensor, "B N"]:
        """Which patches the backbone did not see, row by row over the grid."""
        raise NotImplementedError

    def losses(
        self, features: Features, images: Float[Tensor, "B C H W"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Mean squared error of each image over its hidden patches, as "reconstruction"."""
        wanted, _, _ = self._targets(images)
        errors = (self.forward(features).float() - wanted).square().mean(dim=2)  # B, N
        hidden = self.find_hidden(features)
        count = hidden.sum(dim=1).clamp(min=1)
        return {"reconstruction": (errors * hidden).sum(dim=1) / count}

    def reconstruct(
        self, features: Features, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
        """The images with their hidden patches as predicted, and which pixels are hidden.

        Pixels that are compared normalised get mean and deviation of the true patch.
        """
        _, mean, deviation = self._targets(images)
        predicted = self.forward(features).float() * deviation + mean
        size = (images.shape[2], images.shape[3])
        painted = join_patches(predicted, self.patch, size, channels_first=self.channels_first)
        hidden = spread_cells(self.find_hidden(features), self.patch, size)
        return torch.where(hidden[:, None], painted, images), hidden

    def _targets(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Wanted values (B, N, P), and mean and deviation (B, N, 1) of what they were made from."""
        patches = cut_patches(images, self.patch, channels_first=self.channels_first)
        mean = patches.mean(dim=2, keepdim=True)
        if not self.norm_pix:
            return patches, torch.zeros_like(mean), torch.ones_like(mean)
        # The unbiased variance, with this epsilon, as published.
        deviation = (patches.var(dim=2, keepdim=True) + 1e-6).sqrt()
        return (patches - mean) / deviation, mean, deviation


def cut_patches(
    images: Float[Tensor, "B C H W"], side: int, *, channels_first: bool = False
) -> Float[Tensor, "B N P"]:
    """Cut images into patches, row by row, each flattened as (row, column, channel).

    With `channels_first`, as (channel, row, column).
    """
    batch, channels, height, width = images.shape
    if height % side or width % side:
        message = (
            f"images must have sides that are multiples of the patch size {side} to be "
            f"reconstructed, got {height}x{width}. Resize them."
        )
        raise ShapeError(message)
    x = images.unflatten(3, (width // side, side)).unflatten(2, (height // side, side))
    # B, rows, columns, then C, p, p or p, p, C.
    order = (0, 2, 4, 1, 3, 5) if channels_first else (0, 2, 4, 3, 5, 1)
    return x.permute(order).reshape(batch, -1, side * side * channels)


def join_patches(
    patches: Float[Tensor, "B N P"], side: int, size: Size, *, channels_first: bool = False
) -> Float[Tensor, "B C H W"]:
    """Inverse of `cut_patches`; the size of the images is (height, width)."""
    shape = (-1, side, side) if channels_first else (side, side, -1)
    x = patches.unflatten(2, shape).unflatten(1, (size[0] // side, -1))
    order = (0, 3, 1, 4, 2, 5) if channels_first else (0, 5, 1, 3, 2, 4)
    return x.permute(order).reshape(len(x), -1, *size)


def place_waves(grid: Size, dim: int, num_prefix: int = 0) -> Float[Tensor, "1 N dim"]:
    """Sine and cosine of the column, then of the row, of each place; zeros for prefix tokens.

    Source:
        He et al. 2021, appendix A.1; columns come first in published weights.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, columns = torch.meshgrid(*(torch.arange(side).double() for side in grid), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (columns, rows)]  # N, dim/4
    waves = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return torch.cat([waves.new_zeros(num_prefix, dim), waves])[None].float()


def number_kept(keep: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Count what is kept in each row from 0; -1 elsewhere."""
    return torch.where(keep, keep.cumsum(dim=1) - 1, -1)


def require_whole_grid(backbone: Backbone, side: int) -> Size:
    """The grid of squares of `side` pixels in images of the model's size, which they must fill."""
    body: Any = backbone.config
    height, width = body.img_size
    if height % side or width % side or height * width < 2 * side**2:
        message = (
            f"img_size must be a multiple of {side} pixels, and hold at least 2 such squares, for "
            f"{type(backbone).__name__} to be pretrained by these masks, got {height}x{width}. "
            f"Choose another img_size."
        )
        raise ConfigError(message)
    return height // side, width // side


def require_mask(features: Features) -> TokenMask:
    """The mask that the features were computed with; without one there is nothing to predict."""
    if features.mask is None:
        message = "reconstruction requires features with a mask, got none. Pass a TokenMask."
        raise ConfigError(message)
    return features.mask
