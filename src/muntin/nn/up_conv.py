# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Convolution over upsampled and concatenated maps that stores only the small maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.shapes import Float, Size

__all__ = ["MultiScaleConv"]


class MultiScaleConv(nn.Conv2d):
    """Upsample maps to the size of the first, concatenate, and convolve.

    A convolution is a sum over input channels, so each map has its own slice of the weight:
    maps are never concatenated, and upsampling is recomputed in the backward pass.

    Args:
        widths: Channels of each map.
        out_channels: Output channels.
        kernel: Kernel size, odd.
        bias: Whether the convolution has a bias.
    """

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
            # Exported graphs hold standard operators only.
            if torch.compiler.is_exporting():
                value = F.conv2d(_enlarge(part, size), weight, padding=weight.shape[2] // 2)
            else:
                # conv(cat(maps)) = sum of conv(map, slice of the weight).
                value = _UpsampleConv.apply(part, weight, size)
            total = value if total is None else total.add_(value)
        assert total is not None, "there is at least one map"
        return total if self.bias is None else total + self.bias[:, None, None]


def _enlarge(maps: Tensor, size: Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


class _UpsampleConv(torch.autograd.Function):
    """Stores the small map; autograd would store the upsampled one."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, size: Size) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(maps, weight)
        ctx.size = size
        return F.conv2d(_enlarge(maps, size), weight, padding=weight.shape[2] // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        maps, weight = ctx.saved_tensors
        # Under autocast, the forward convolution ran in the dtype of the gradient.
        large = _enlarge(maps, ctx.size).to(gradient.dtype)
        padding = [weight.shape[2] // 2] * 2
        for_large, for_weight, _ = torch.ops.aten.convolution_backward(
            gradient, large, weight.to(gradient.dtype), None, [1, 1], padding, [1, 1], False,
            [0, 0], 1, [True, True, False],
        )  # fmt: skip
        del large
        for_maps = for_large
        if maps.shape[2:] != ctx.size:
            for_maps = torch.ops.aten.upsample_bilinear2d_backward(
                for_large, list(ctx.size), list(maps.shape), False
            )
        return for_maps.to(maps.dtype), for_weight.to(weight.dtype), None
