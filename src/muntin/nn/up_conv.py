# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution over upsampled and concatenated maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float, Size

__all__ = ["MultiScaleConv"]


class MultiScaleConv(nn.Conv2d):
    """Upsample maps to the size of the first, concatenate, and convolve.

    A convolution is a sum over input channels, so each map has its own slice of the weight:
    maps are never concatenated.

    Args:
        widths: Channels of each map.
        out_channels: Output channels.
        kernel: Kernel size, odd.
        bias: Whether the convolution has a bias.
    """

    recomputable = ("forward",)

    def __init__(
        self, widths: Sequence[int], out_channels: int, kernel: int, *, bias: bool = True
    ) -> None:
        super().__init__(sum(widths), out_channels, kernel, padding=kernel // 2, bias=bias)
        self.widths = tuple(widths)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C_out H W"]:  # type: ignore[override]
        """Convolve maps of B, C, H, W each; the first has the size of the result."""
        size = (maps[0].shape[2], maps[0].shape[3])
        slices = self.weight.split(self.widths, dim=1)
        total: Tensor | None = None
        for part, weight in zip(maps, slices, strict=True):
            # conv(cat(maps)) = sum of conv(map, slice of the weight).
            value = F.conv2d(_enlarge(part, size), weight, padding=weight.shape[2] // 2)
            total = value if total is None else total.add_(value)
        assert total is not None, "there is at least one map"
        return total if self.bias is None else total + self.bias[:, None, None]


def _enlarge(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
