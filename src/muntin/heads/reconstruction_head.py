# SPDX-License-Identifier: Apache-2.0
"""Reconstruct the pixels of masked patches from the tokens of visible ones (MAE).

Source:
    He et al. 2021 (arXiv 2111.06377), section 3: a narrow transformer over all positions, mask
    tokens where patches were dropped, and the mean squared error of each dropped patch's normalised
    pixels.

Letters: B images, N patches of the whole grid, C channels, p side of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muntin.errors import ShapeError
from muntin.features import Features
from muntin.heads.network import Head
from muntin.shapes import Bool, Float, Size


class PixelDecoder(Head):
    """Predict every patch of the grid from the tokens of the visible ones.

    `dim`, the width of the decoder, is a multiple of 4 and of `num_heads`; `depth` counts its
    blocks.
    """

    reads = "tokens"

    def __init__(
        self,
        channels: int,
        patch_size: int,
        in_chans: int = 3,
        *,
        dim: int = 128,
        depth: int = 1,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.embed = nn.Linear(channels, dim)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.empty(dim), std=0.02))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, num_heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(depth)
        )  # fmt: skip
        self.norm = nn.LayerNorm(dim)
        self.predict = nn.Linear(dim, patch_size**2 * in_chans)

    def forward(self, features: Features) -> Float[Tensor, "B N P"]:
        """Predict the p*p*in_chans values of each patch, row by row over the grid."""
        height, width = features.image_size
        grid = (height // self.patch_size, width // self.patch_size)
        keep = _find_seen(features, grid)
        tokens = self.embed(features.tokens)
        num_prefix = tokens.shape[1] - int(keep[0].sum())
        batch, _, dim = tokens.shape
        x = self.mask_token.to(tokens).expand(batch, keep.shape[1], dim).clone()
        # Visible tokens are in grid order, so boolean indexing puts each at its position.
        x[keep] = tokens[:, num_prefix:].flatten(0, 1)
        x = x + sine_positions(grid, dim).to(x)
        for block in self.blocks:
            x = block(x)
        return self.predict(self.norm(x))

    def losses(
        self, features: Features, images: Float[Tensor, "B C H W"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the error of each image, normalised and not masked, over its dropped patches."""
        wanted = cut_patches(images, self.patch_size)  # B, N, p*p*C
        mean, variance = wanted.mean(dim=2, keepdim=True), wanted.var(dim=2, keepdim=True)
        wanted = (wanted - mean) / (variance + 1e-6).sqrt()  # section 3, "Reconstruction target"
        errors = (self.forward(features).float() - wanted).square().mean(dim=2)  # B, N
        mask = features.mask
        dropped = torch.zeros_like(errors, dtype=torch.bool) if mask is None else ~mask.keep
        count = dropped.sum(dim=1).clamp(min=1)
        return {"reconstruction": (errors * dropped).sum(dim=1) / count}


def _find_seen(features: Features, grid: Size) -> Bool[Tensor, "B N"]:
    """Patches that have a token: all of them, unless a mask without fill dropped some."""
    mask = features.mask
    if mask is not None and mask.fill is None:
        return mask.keep
    tokens = features.tokens
    return torch.ones(tokens.shape[0], grid[0] * grid[1], dtype=torch.bool, device=tokens.device)


def cut_patches(images: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B N P"]:
    """Cut images into patches, row by row, each flattened as (row, column, channel)."""
    batch, channels, height, width = images.shape
    if height % side or width % side:
        message = (
            f"images must have sides that are multiples of the patch size {side} to be "
            f"reconstructed, got {height}x{width}. Resize them."
        )
        raise ShapeError(message)
    x = images.unflatten(3, (width // side, side)).unflatten(2, (height // side, side))
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def sine_positions(grid: Size, dim: int) -> Float[Tensor, "N dim"]:
    """Sine and cosine of the row, then of the column, of each patch (appendix A.1)."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0]).float(), torch.arange(grid[1]).float(), indexing="ij"
    )
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]  # N, dim/4
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
