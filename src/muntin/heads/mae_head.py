# SPDX-License-Identifier: Apache-2.0
"""Masked autoencoders of plain and of hierarchical backbones.

Source:
    He et al. 2021 (arXiv 2111.06377) for ViT and DeiT; Ryali et al. 2023, "Hiera" (arXiv
    2306.00989), section 3.2, for backbones whose mask units hold several tokens: maps of all
    scales are brought to the coarsest and added. Compared with transformers 5.23 in
    tests/parity/test_mae_parity.py: reconstructions and losses within 1e-5.
    Differs: positions of a plain encoder start as published, and are learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from muntin.configs import Range
from muntin.errors import ConfigError
from muntin.features import Backbone, Features
from muntin.heads.pixel_decoder import (
    DecoderConfig,
    PatchPredictor,
    PixelDecoder,
    number_kept,
    place_waves,
    require_mask,
    require_whole_grid,
)
from muntin.ops.masks import spread_cells
from muntin.shapes import Bool, Float, Int, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class MAEConfig(DecoderConfig):
    """Config of a masked autoencoder.

    Attributes:
        mask_ratio: Share of the patches, or mask units, that the backbone does not see.
        norm_pix: Whether the pixels of each patch are normalised before they are compared.
    """

    kind: ClassVar[str] = "mae"

    mask_ratio: Annotated[float, Range(0.01, 0.99)] = 0.75
    norm_pix: bool = True


class MAEHead(PatchPredictor):
    """Decoder behind a plain backbone: one token a patch."""

    reads = "tokens"

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__()
        body: Any = backbone.config
        self.config, self.norm_pix = config, config.norm_pix
        self.patch, self.in_chans = backbone.mask_px, body.in_chans
        self.decoder = PixelDecoder(
            backbone.spec.channels[-1],
            self.patch**2 * self.in_chans,
            config,
            norm_eps=body.norm_eps,
            grid=require_whole_grid(backbone, self.patch),
            num_prefix=getattr(backbone, "num_prefix", 0),
        )

    def forward(self, features: Features) -> Float[Tensor, "B N P"]:
        """Predict the values of each patch."""
        height, width = features.image_size
        grid = (height // self.patch, width // self.patch)
        return self.decoder(features.tokens, number_kept(self._find_seen(features, grid)), grid)

    def _find_seen(self, features: Features, grid: Size) -> Bool[Tensor, "B N"]:
        """Patches that have a token: all of them, unless a mask dropped some."""
        if features.mask is not None and features.mask.fill is None:
            return features.mask.keep
        tokens = features.tokens
        return tokens.new_ones(tokens.shape[0], grid[0] * grid[1], dtype=torch.bool)

    def find_hidden(self, features: Features) -> Bool[Tensor, "B N"]:
        """Patches that were not kept."""
        return ~require_mask(features).keep


class HieraMAEHead(PatchPredictor):
    """Decoder behind a hierarchical backbone that drops whole mask units.

    The maps of such a backbone hold the kept units side by side: units are as high as the map.
    """

    reads = "maps"
    channels_first = True

    def __init__(self, backbone: Backbone, config: MAEConfig) -> None:
        super().__init__()
        body: Any = backbone.config
        channels, strides = backbone.spec.channels, backbone.spec.strides
        self.config, self.norm_pix = config, config.norm_pix
        self.patch, self.in_chans = strides[-1], body.in_chans
        self.unit = backbone.mask_px // self.patch
        """Side of a mask unit in predicted patches."""
        # Scales behind the last pooling have the stride of the coarsest map: one of them suffices.
        self.fused = tuple(i for i, stride in enumerate(strides) if stride < self.patch)
        self.fusion = nn.ModuleList(
            nn.Conv2d(channels[i], channels[-1], step, stride=step)
            for i in self.fused
            for step in (self.patch // strides[i],)
        )
        self.encoder_norm = nn.LayerNorm(channels[-1], eps=body.norm_eps)
        rows, columns = require_whole_grid(backbone, backbone.mask_px)
        self.decoder = PixelDecoder(
            channels[-1],
            self.patch**2 * self.in_chans,
            config,
            norm_eps=body.norm_eps,
            grid=(rows * self.unit, columns * self.unit),
            learned=True,
        )

    def forward(self, features: Features) -> Float[Tensor, "B N P"]:
        """Predict the values of each patch, at the stride of the coarsest map."""
        maps = features.maps
        fused = maps[-1]
        # Units are whole multiples of the strides, so no kernel reaches from one into the next.
        for layer, index in zip(self.fusion, self.fused, strict=True):
            fused = fused + layer(maps[index])
        tokens = self.encoder_norm(fused.flatten(2).transpose(1, 2))
        height, width = features.image_size
        grid = (height // self.patch, width // self.patch)
        return self.decoder(tokens, self._place(features, grid), grid)

    def _place(self, features: Features, grid: Size) -> Int[Tensor, "B N"]:
        """Which token of the map lies at each place of the grid; -1 in units that were dropped."""
        mask, unit = features.mask, self.unit
        device = features.maps[-1].device
        if mask is None or mask.fill is not None:
            every = torch.arange(grid[0] * grid[1], device=device)
            return every.expand(features.maps[-1].shape[0], -1)
        units = spread_cells(number_kept(mask.keep), unit, grid)  # B, rows, columns
        # Unit k begins at column k * unit of the map, which is one unit high.
        row = torch.arange(grid[0], device=device)[:, None] % unit
        column = torch.arange(grid[1], device=device) % unit
        width = features.maps[-1].shape[3]
        return torch.where(units >= 0, row * width + units * unit + column, -1).flatten(1)

    def find_hidden(self, features: Features) -> Bool[Tensor, "B N"]:
        """Patches of units that were not kept."""
        height, width = features.image_size
        grid = (height // self.patch, width // self.patch)
        return ~spread_cells(require_mask(features).keep, self.unit, grid).flatten(1)


def build_mae_head(backbone: Backbone, config: MAEConfig) -> PatchPredictor:
    """Build the decoder that suits a backbone; one that cannot be masked is a `ConfigError`."""
    if not backbone.drops_tokens:
        message = (
            f"a masked autoencoder requires a backbone that computes some patches only (ViT, DeiT, "
            f"Hiera), got {type(backbone).__name__}. Choose another model, or head.kind."
        )
        raise ConfigError(message)
    plain = {*backbone.spec.strides} == {backbone.mask_px}
    if plain:
        start_positions(backbone)
    return (MAEHead if plain else HieraMAEHead)(backbone, config)


@torch.no_grad()
def start_positions(backbone: Backbone) -> None:
    """Let the learned positions of a backbone without weights start as the decoder's fixed ones.

    The published encoder keeps them fixed; here they are learned on, as in fine-tuning.
    """
    body: Any = backbone.config
    positions = getattr(backbone, "pos_embed", None)
    if positions is None or body.embed_dim % 4 or not hasattr(body, "positioned_tokens"):
        return
    # Of class and distillation token, those that the embedding holds stay 0.
    waves = place_waves(body.grid, body.embed_dim, body.positioned_tokens)
    positions.copy_(waves)
