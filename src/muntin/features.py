# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What a backbone promises: the channels and strides of its maps, and two ways to read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from muntin.shapes import Float

__all__ = ["Backbone", "FeatureSpec", "count_stages", "find_output_problem", "name_blocks"]


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """The maps that a backbone gives, finest first.

    Attributes:
        channels: Channels of each map.
        strides: Step between neighbouring cells of each map, in pixels of the image.
        embed_parts: Equal parts of what `embed` gives that have a classifier each: 2 for class and
            distillation token of a DeiT.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    embed_parts: int = 1


@runtime_checkable
class Backbone(Protocol):
    """From images to features, at any height and width."""

    @property
    def spec(self) -> FeatureSpec:
        """Channels and strides of the maps, in the order in which `forward` gives them."""

    @property
    def embed_channels(self) -> int:
        """Channels of what `embed` gives."""

    def __call__(self, images: Float[Tensor, "B in_chans H W"]) -> list[Tensor]:
        """Give the maps, B, C, H/stride, W/stride each, finest first; as `forward` says."""

    def forward(self, images: Float[Tensor, "B in_chans H W"]) -> list[Tensor]:
        """Give the maps, B, C, H/stride, W/stride each, finest first."""

    def embed(self, images: Float[Tensor, "B in_chans H W"]) -> Float[Tensor, "B C"]:
        """Give one vector an image: what the family's paper classifies from."""

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """All blocks, in the order in which they are computed."""

    @property
    def stage_unit(self) -> Literal["stage", "block"]:
        """What `stage_of` counts: the stages of a hierarchy, or the blocks of a plain ViT."""

    def layer_of(self, name: str) -> int:
        """Number the layer of a parameter or module, by its name in the backbone.

        Returns:
            0 for what comes before the blocks (patches, positions, tokens), k for the k-th block
            and the downsampling after it, ``len(blocks) + 1`` for what follows the last block.
        """

    def stage_of(self, name: str) -> int:
        """The same by `stage_unit`; what `TrainConfig.freeze` counts."""

    def decays(self, name: str) -> bool:
        """Whether weight decay applies to this parameter, if it has two or more dimensions."""


def name_blocks(backbone: nn.Module) -> list[str]:
    """Names of the blocks in their backbone, in the order of `Backbone.blocks`."""
    names = {module: name for name, module in backbone.named_modules()}
    return [names[block] for block in cast("Backbone", backbone).blocks]


def count_stages(backbone: nn.Module) -> int:
    """How many stages, or blocks where `stage_unit` says so, a backbone has."""
    return max(map(cast("Backbone", backbone).stage_of, name_blocks(backbone)), default=0)


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
