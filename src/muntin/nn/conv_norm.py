# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution with norm and activation, for necks and heads of dense tasks."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float

__all__ = ["ChannelNorm", "ConvNorm", "NormName", "build_norm"]

NormName = Literal["none", "batch", "group", "layer"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map."""

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MapNorm(nn.BatchNorm2d):
    """Batch norm that uses running statistics if a channel has a single value.

    A single image pooled to one cell has no variance.
    """

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Normalise."""
        if not self.training or maps.numel() > maps.shape[1]:
            return super().forward(maps)
        return F.batch_norm(
            maps, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def build_norm(name: NormName, channels: int) -> nn.Module:
    """Build a norm for maps; group norm has 32 groups, or fewer if the channels require it.

    A group has at least two channels: a single one has no variance on a map of one cell.
    """
    if name == "batch":
        return MapNorm(channels)
    if name == "group":
        # Wu and He 2018 (arXiv 1803.08494): 32 groups.
        groups = next((n for n in (32, 16, 8, 4, 2) if channels % n == 0 and channels > n), 1)
        return nn.GroupNorm(groups, channels)
    return ChannelNorm(channels, eps=1e-6) if name == "layer" else nn.Identity()


class ConvNorm(nn.Module):
    """Convolution with "same" padding (kernel odd), optional norm, optional ReLU.

    With a norm the convolution has no bias.
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
        # A convolution alone saves its input only.
        self.recomputable = ("forward",) if activation and norm != "none" else ()

    def forward(self, maps: Float[Tensor, "B C_in H W"]) -> Float[Tensor, "B C_out H W"]:
        """Apply all three."""
        return self.activation(self.norm(self.conv(maps)))
