# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a backbone promises: channels and strides of its maps, and the features of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from muntin.errors import ConfigError, ShapeError
from muntin.shapes import Bool, Float, Int, Size

__all__ = [
    "Backbone",
    "FeatureSpec",
    "Features",
    "TokenMask",
    "count_stages",
    "find_output_problem",
    "name_blocks",
]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The maps that a backbone gives, finest first.

    Attributes:
        channels: Channels of each map.
        strides: Step between neighbouring cells of each map, in pixels of the image.
        embed_parts: Equal parts of the vector that have a classifier each: 2 for class and
            distillation token of a DeiT.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embed_parts: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class TokenMask:
    """Which parts of each image a backbone sees, as masked pre-training needs it.

    Attributes:
        keep: True for each part that is kept, row by row over the grid that `Backbone.mask_grid`
            gives: patches, or the mask units of a Hiera. Equally many are kept in every image.
        fill: Token that replaces the others; None leaves them out of the computation.

    Raises:
        ShapeError: Images keep different numbers of parts, or none.
    """

    keep: Bool[Tensor, "B N"]
    fill: Float[Tensor, " C"] | None = None

    def __post_init__(self) -> None:
        """Refuse what gives no batch."""
        counts = sorted(set(self.keep.sum(dim=1).tolist()))
        if len(counts) != 1 or not counts[0]:
            message = (
                f"keep must keep 1 part or more and equally many in every image, got {counts}. "
                f"Draw the same number for all images of a batch."
            )
            raise ShapeError(message)

    def check(self, batch: int, grid: Size) -> None:
        """Make sure that the mask is one for these images.

        Raises:
            ShapeError: It is one for other images.
        """
        wanted = (batch, grid[0] * grid[1])
        if tuple(self.keep.shape) != wanted:
            message = (
                f"keep must have a row for each of {batch} images and a flag for each of "
                f"{grid[0]} x {grid[1]} parts, so {wanted}, got {tuple(self.keep.shape)}. Ask "
                f"mask_grid of the backbone."
            )
            raise ShapeError(message)

    def put_fill(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Replace the tokens that are not kept, where there is a fill."""
        if self.fill is None:
            return tokens
        return torch.where(self.keep[:, :, None], tokens, self.fill.to(tokens.dtype))

    def drop(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B n C"]:
        """Give the tokens that are kept, in their order; all of them where there is a fill."""
        if self.fill is not None:
            return tokens
        return tokens[self.keep].view(tokens.shape[0], -1, tokens.shape[2])

    def refuse_maps(self) -> list[Tensor]:
        """Stand for the maps of a network that left tokens out.

        Raises:
            ConfigError: Always.
        """
        message = (
            "maps must be made from every patch, got a mask that leaves some out. Read tokens, or "
            "give the mask a fill."
        )
        raise ConfigError(message)


class Features:
    """What a backbone computed for one batch; each part is computed when first read, then kept.

    Args:
        images: The batch; only its shape and its device are read.
        maps: Computes the maps.
        vector: Computes the vector.
        tokens: Computes the tokens; None where the family has none.
        both: Computes maps and vector in one pass, in a family where the two ways take one each.
        sizes: (height, width) of the real image inside each padded one; all of it when None.
        mask: Patches that were kept; None for all of them.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        maps: Callable[[], list[Tensor]],
        vector: Callable[[], Tensor],
        tokens: Callable[[], Tensor] | None = None,
        both: Callable[[], tuple[list[Tensor], Tensor]] | None = None,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> None:
        self.image_size: Size = (images.shape[2], images.shape[3])
        """(height, width) of the images as the backbone got them."""
        self.mask = mask
        """Patches that the backbone was given; None for all of them."""
        self._count, self._device = images.shape[0], images.device
        self._make_maps, self._make_vector = maps, vector
        self._make_tokens, self._make_both = tokens, both
        self._maps: list[Tensor] | None = None
        self._vector: Tensor | None = None
        self._tokens: Tensor | None = None
        self._sizes = sizes

    @property
    def maps(self) -> list[Tensor]:
        """The maps, B, C, H/stride, W/stride each, finest first."""
        if self._maps is None:
            self._maps = self._make_maps()
        return self._maps

    @property
    def vector(self) -> Float[Tensor, "B C"]:
        """One vector an image: what the family's paper classifies from."""
        if self._vector is None:
            self._vector = self._make_vector()
        return self._vector

    @property
    def tokens(self) -> Float[Tensor, "B N C"]:
        """The tokens after the last block, prefix tokens first, then the patches row by row.

        Under a mask that leaves tokens out, those that are kept; of a Hiera unit by unit.

        Raises:
            ConfigError: The family has no sequence of tokens.
        """
        if self._make_tokens is None:
            message = (
                "tokens must come from a ViT, a DeiT, a T2T-ViT or a Hiera, got a backbone that "
                "gives maps and a vector only. Read those, or choose another model."
            )
            raise ConfigError(message)
        if self._tokens is None:
            self._tokens = self._make_tokens()
        return self._tokens

    @property
    def sizes(self) -> Int[Tensor, "B 2"]:
        """(height, width) of the real image inside each padded one."""
        if self._sizes is None:
            self._sizes = torch.tensor([self.image_size] * self._count, device=self._device)
        return self._sizes

    def compute_both(self) -> None:
        """Compute maps and vector, in one pass where reading them one by one would take two."""
        if self._make_both is not None and self._maps is None and self._vector is None:
            self._maps, self._vector = self._make_both()


class Backbone(nn.Module):
    """From images to features, at any height and width. A family writes `features`."""

    blocks: nn.ModuleList | Sequence[nn.Module]
    """All blocks, in the order in which they are computed."""

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps, in the order in which `forward` gives them."""
        raise NotImplementedError

    @property
    def embed_channels(self) -> int:
        """Channels of the vector."""
        raise NotImplementedError

    def features(
        self,
        images: Tensor,
        *,
        sizes: Int[Tensor, "B 2"] | None = None,
        mask: TokenMask | None = None,
    ) -> Features:
        """Run the backbone once.

        Args:
            images: Normalised, B, in_chans, H, W.
            sizes: (height, width) of the real image inside each padded one, for heads that ask.
            mask: Patches that are kept; all of them when left out.

        Raises:
            ShapeError: The size rule refuses this height and width, or the mask does not fit.
            ConfigError: The family cannot be masked.
        """
        raise NotImplementedError

    def forward(self, images: Tensor) -> list[Tensor]:
        """Give the maps, B, C, H/stride, W/stride each, finest first."""
        return self.features(images).maps

    def embed(self, images: Tensor) -> Float[Tensor, "B C"]:
        """Give one vector an image: what the family's paper classifies from."""
        return self.features(images).vector

    def mask_grid(self, image_size: Size) -> Size:
        """Give rows and columns of the parts that a `TokenMask` keeps or not.

        Args:
            image_size: (height, width) of the images in pixels.

        Raises:
            ConfigError: The family cannot be masked.
            ShapeError: The size rule refuses this height and width.
        """
        raise self._mask_error()

    def _refuse_mask(self, mask: TokenMask | None) -> None:
        """Raise an error where there is a mask: for families that always compute everything."""
        if mask is not None:
            raise self._mask_error()

    def _mask_error(self) -> ConfigError:
        return ConfigError(
            f"masks need a ViT, a DeiT, a Hiera, a Swin or a Swin V2, got a {type(self).__name__}, "
            f"which cannot leave patches out. Choose another model."
        )

    @property
    def stage_unit(self) -> Literal["stage", "block"]:
        """What `stage_of` counts: the stages of a hierarchy, or the blocks of a plain ViT."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """Number the layer of a parameter or module, by its name in the backbone.

        Returns:
            0 for what comes before the blocks (patches, positions, tokens), k for the k-th block
            and the downsampling after it, ``len(blocks) + 1`` for what follows the last block.
        """
        raise NotImplementedError

    def stage_of(self, name: str) -> int:
        """The same by `stage_unit`; what `TrainConfig.freeze` counts."""
        raise NotImplementedError

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to this parameter, if it has two or more dimensions."""
        raise NotImplementedError


def name_blocks(backbone: Backbone) -> list[str]:
    """Names of the blocks in their backbone, in the order of `Backbone.blocks`."""
    names = {module: name for name, module in backbone.named_modules()}
    return [names[block] for block in backbone.blocks]


def count_stages(backbone: Backbone) -> int:
    """How many stages, or blocks where `stage_unit` says so, a backbone has."""
    return max(map(backbone.stage_of, name_blocks(backbone)), default=0)


def find_output_problem(
    out_indices: tuple[int, ...], count: int, out_norm: str, drop_path_rate: float
) -> str:
    """Say what is wrong with the outputs that a backbone's config asks for.

    Args:
        out_indices: Stages or blocks; negative ones count from the end.
        count: How many there are.
        out_norm: The config's field of that name.
        drop_path_rate: The same.

    Returns:
        A clause for a message, or an empty string.
    """
    known = [index % count for index in out_indices if -count <= index < count]
    if not out_indices or len(known) < len(out_indices):
        return f"out_indices must be from 0 to {count - 1}, got {out_indices}"
    if known != sorted(set(known)):
        return f"out_indices must rise, got {out_indices}"
    if out_norm == "last" and known[-1] != count - 1:
        return f'out_norm="last" needs the last of {count} in out_indices, got {out_indices}'
    if not 0 <= drop_path_rate < 1:
        return f"drop_path_rate must be in [0, 1), got {drop_path_rate}"
    return ""
