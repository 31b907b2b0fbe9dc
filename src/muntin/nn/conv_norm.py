# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""A convolution with its norm, as necks and heads of dense tasks use it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float

__all__ = ["ChannelNorm", "ConvNorm", "NormName", "build_norm"]

NormName = Literal["none", "batch", "group", "layer"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map, one cell at a time."""

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapNorm(nn.BatchNorm2d):
    """Batch norm that goes by its running figures where a channel has one value only.

    Of one picture pooled to one cell there is nothing to take a spread from.
    """

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        if not self.training or maps.numel() > maps.shape[1]:
            return super().forward(maps)
        return F.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def build_norm(name: NormName, channels: int) -> nn.Module:
    """Make a norm for maps of so many channels; group norm has 32 groups, or fewer if need be.

    A group has at least two channels: of one alone, a map of one cell leaves nothing to compare.
    """
    if name == "batch":
        return MapNorm(channels)
    if name == "group":
        groups = next((n for n in (32, 16, 8, 4, 2) if channels % n == 0 and channels > n), 1)
        return nn.GroupNorm(groups, channels)
    return ChannelNorm(channels, eps=1e-6) if name == "layer" else nn.Identity()


class ConvNorm(nn.Module):
    """Convolution that keeps the sides, norm if there is one, ReLU if wanted.

    Args:
        in_channels: Channels that come.
        out_channels: Channels that go.
        kernel: Side of the kernel, odd.
        norm: After the convolution, which then has no bias.
        activation: Whether a ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        norm: NormName = "none",
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=kernel // 2, bias=norm == "none"
        )
        self.norm = build_norm(norm, out_channels)
        self.activation = nn.ReLU(inplace=True) if activation else nn.Identity()

    def forward(self, maps: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H W"]:
        """Apply all three."""
        return self.activation(self.norm(self.conv(maps)))
