# SPDX-License-Identifier: Apache-2.0
"""Masked image modeling of backbones that need a token at every place, plain and uniform.

Source:
    Xie et al. 2022, "SimMIM: A Simple Framework for Masked Image Modeling" (arXiv 2111.09886),
    section 3: a mask token in hidden units, one linear layer to raw pixels, and their mean absolute
    error. Compared with transformers 5.23 in tests/parity/test_simmim_parity.py: reconstructions
    and losses within 1e-5.
    Li et al. 2022, "Uniform Masking" (arXiv 2205.10063), section 3: of every 2 x 2 units a random
    one is kept, so that what is kept forms an image of half the side, on which windows stay dense;
    a part of it is hidden by the mask token; a light decoder predicts normalised pixels as in MAE.
    Differs: the error is that of all units that were dropped or hidden.

Letters: B images, N patches of the whole grid, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.configs import Range, check_range
from muntin.errors import ConfigError
from muntin.features import Backbone, Features, TokenMask
from muntin.heads.network import PretrainingHead
from muntin.heads.pixel_decoder import (
    DecoderConfig,
    PatchPredictor,
    PixelDecoder,
    require_mask,
    require_whole_grid,
)
from muntin.ops.masks import Mask, spread_cells
from muntin.shapes import Bool, Float

_SHARE, _UNIFORM_SHARE = 0.6, 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class SimMIMConfig(DecoderConfig):
    """Config of masked image modeling; ratio and unit of the published models.

    Attributes:
        uniform: Whether one unit of every 2 x 2 is kept, and a decoder predicts the others. When it
            is changed, `mask_ratio` and `mask_unit` follow.
        mask_ratio: Share of the units that the mask token hides; of the kept ones if `uniform`.
        mask_unit: Side in pixels of what is hidden at once: a multiple of the model's patch; if
            `uniform`, the stride of its coarsest map divided by 1, 2, 4, ...
        dim: Width of the decoder, only if `uniform`.
    """

    kind: ClassVar[str] = "simmim"

    uniform: bool = False
    mask_ratio: float = _SHARE
    mask_unit: Annotated[int, Range(1, 1024)] = 32
    dim: int = 256
    depth: int = 2
    num_heads: int = 8

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        DecoderConfig.__post_init__(self)
        check_range("head.mask_ratio", self.mask_ratio, 0 if self.uniform else 0.01, 0.99)

    def follow(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Complete changed fields; see `muntin.configs.replace`."""
        uniform = values.get("uniform", self.uniform)
        if uniform is self.uniform or not isinstance(uniform, bool):
            return values
        unit = max(1, self.mask_unit // 2) if uniform else 2 * self.mask_unit
        return {"mask_ratio": _UNIFORM_SHARE if uniform else _SHARE, "mask_unit": unit, **values}


class SimMIMHead(PretrainingHead):
    """One linear layer from each cell of the coarsest map to its pixels."""

    reads = "maps"

    def __init__(self, backbone: Backbone, config: SimMIMConfig) -> None:
        super().__init__()
        body: Any = backbone.config
        self.config = config
        self.stride, self.token_px = backbone.spec.strides[-1], backbone.mask_px
        self.mask_token = _make_token(body.embed_dim)
        channels = backbone.spec.channels[-1]
        self.predict = nn.Conv2d(channels, self.stride**2 * body.in_chans, 1)

    def make_mask(self, mask: Mask) -> TokenMask:
        """The mask token stands for what is hidden."""
        return TokenMask(mask.keep, self.mask_token)

    def forward(self, features: Features) -> Float[Tensor, "B C H W"]:
        """Predict the pixels of whole images."""
        height, width = features.image_size
        # Maps round up where sides do not divide: what lies beyond the image is cut.
        pixels = F.pixel_shuffle(self.predict(features.maps[-1]), self.stride)
        return pixels[:, :, :height, :width]

    def losses(
        self, features: Features, images: Float[Tensor, "B C H W"]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Mean absolute error of each image over its hidden pixels, as "reconstruction"."""
        hidden = self._find_hidden(features)
        errors = (self.forward(features).float() - images).abs().mean(dim=1)  # B, H, W
        count = hidden.sum(dim=(1, 2)).clamp(min=1)
        return {"reconstruction": (errors * hidden).sum(dim=(1, 2)) / count}

    def reconstruct(
        self, features: Features, images: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"]]:
        """The images with their hidden pixels as predicted, and which pixels are hidden."""
        hidden = self._find_hidden(features)
        return torch.where(hidden[:, None], self.forward(features).float(), images), hidden

    def _find_hidden(self, features: Features) -> Bool[Tensor, "B H W"]:
        return ~spread_cells(require_mask(features).keep, self.token_px, features.image_size)


class UniformHead(PatchPredictor):
    """Decoder behind a backbone that computes one of every 2 x 2 units."""

    reads = "maps"

    def __init__(self, backbone: Backbone, config: SimMIMConfig) -> None:
        super().__init__()
        body: Any = backbone.config
        stride = backbone.spec.strides[-1]
        self.config, self.norm_pix = config, True
        self.patch, self.in_chans = config.mask_unit, body.in_chans
        self.tokens = self.patch // backbone.mask_px
        """Side of a unit in tokens of the first stage."""
        self.cells = stride // self.patch
        """Side of a cell of the coarsest map in units."""
        rows, columns = require_whole_grid(backbone, 2 * self.patch)
        self.fill_token = _make_token(body.embed_dim)
        self.decoder = PixelDecoder(
            backbone.spec.channels[-1] // self.cells**2,
            self.patch**2 * self.in_chans,
            config,
            norm_eps=body.norm_eps,
            grid=(2 * rows, 2 * columns),
        )

    def make_mask(self, mask: Mask) -> TokenMask:
        """The mask token stands for what is hidden of the units that are kept."""
        return TokenMask(mask.keep, self.fill_token, mask.quarter)

    def forward(self, features: Features) -> Float[Tensor, "B N P"]:
        """Predict the values of each unit."""
        quarter = require_mask(features).quarter
        if quarter is None:
            message = "uniform masking requires a mask with quarters, got none. Use make_mask."
            raise ConfigError(message)
        rows, columns = quarter.shape[1:]
        # A coarse cell holds what its units became, in its channels; odd sides were rounded up.
        units = F.pixel_shuffle(features.maps[-1], self.cells)[:, :, :rows, :columns]
        # Which of the kept units, counted row by row, lies at each place.
        numbers = torch.arange(rows * columns, device=quarter.device).view(rows, columns)
        places = torch.stack([torch.where(quarter == k, numbers, -1) for k in range(4)], dim=1)
        places = F.pixel_shuffle(places, 2).flatten(1)  # B, N
        grid = (2 * rows, 2 * columns)
        return self.decoder(units.flatten(2).transpose(1, 2), places, grid)

    def find_hidden(self, features: Features) -> Bool[Tensor, "B N"]:
        """Units that were dropped or hidden."""
        step = self.tokens
        keep = require_mask(features).keep.unflatten(
            1, (features.image_size[0] // self.patch * step, -1)
        )
        return ~keep[:, ::step, ::step].flatten(1)


def build_simmim_head(backbone: Backbone, config: SimMIMConfig) -> SimMIMHead | UniformHead:
    """Build the head; a backbone or a unit that does not suit is a `ConfigError`."""
    side, stride = backbone.mask_px, backbone.spec.strides[-1]
    body: Any = backbone.config
    problem = ""
    if not side:
        problem = f"a backbone that supports masks (ViT, Swin), got {type(backbone).__name__}"
    elif config.mask_unit % side:
        problem = f"head.mask_unit to be a multiple of {side} pixels, got {config.mask_unit}"
    elif max(body.img_size) <= config.mask_unit:
        problem = f"img_size to exceed head.mask_unit={config.mask_unit}, got {body.img_size}"
    elif config.uniform and not backbone.keeps_quarters:
        problem = f"a Swin or Swin V2 for head.uniform, got {type(backbone).__name__}"
    elif config.uniform and stride not in (config.mask_unit * 2**k for k in range(10)):
        problem = f"head.mask_unit to be {stride} / 1, 2, 4, ... pixels, got {config.mask_unit}"
    if problem:
        message = f"masked image modeling requires {problem}. Change the model or the head."
        raise ConfigError(message)
    return (UniformHead if config.uniform else SimMIMHead)(backbone, config)


def _make_token(width: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
