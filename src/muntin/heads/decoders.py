# SPDX-License-Identifier: Apache-2.0
"""Segmentation decoders: from backbone maps to one feature map at the finest resolution.

Source:
    UPerNet: Xiao et al. 2018 (arXiv 1807.10221), as published for Swin; compared live with
    transformers in tests/heads/test_semantic.py. Light decoder: Xie et al. 2021, "SegFormer"
    (arXiv 2105.15203), section 3.2.

Letters: B images, C channels, H and W sides of a map in cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.nn.conv_norm import ConvNorm, NormName, build_norm
from muntin.shapes import Float, Size


class UPerNet(nn.Module):
    """Pyramid pooling of the coarsest map, a top-down feature pyramid, and fusion of all levels.

    `widths` are the channels of the backbone's maps, finest first; `pool_sides` the cells along
    each side of the pooled maps.
    """

    def __init__(
        self,
        widths: Sequence[int],
        channels: int,
        pool_sides: Sequence[int],
        *,
        norm: NormName,
    ) -> None:
        super().__init__()
        self.pool_sides = tuple(pool_sides)
        self.pooled = nn.ModuleList(_conv(widths[-1], channels, 1, norm) for _ in pool_sides)
        top = (widths[-1], *(channels for _ in pool_sides))
        self.top = _Join(top, channels, norm)
        self.lateral = nn.ModuleList(_conv(width, channels, 1, norm) for width in widths[:-1])
        self.output = nn.ModuleList(_conv(channels, channels, 3, norm) for _ in widths[:-1])
        self.join = _Join((channels,) * len(widths), channels, norm)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C H W"]:
        """Give features at the resolution of the finest map."""
        last = maps[-1]
        # Pooled maps differ in size, so each image needs interpolation; 1x1 gives global context.
        pooled = [
            conv(F.adaptive_avg_pool2d(last, side))
            for conv, side in zip(self.pooled, self.pool_sides, strict=True)
        ]
        sides = [lateral(part) for lateral, part in zip(self.lateral, maps, strict=False)]
        sides.append(self.top([last, *pooled]))
        # From the coarsest level down: each level adds the sum of all coarser ones.
        for index in range(len(sides) - 2, -1, -1):
            sides[index] = sides[index] + _resize(sides[index + 1], sides[index].shape[2:])
        levels = [output(side) for output, side in zip(self.output, sides, strict=False)]
        return self.join([*levels, sides[-1]])


class LightDecoder(nn.Module):
    """Project all maps, finest first, to the same channels, add them top-down, and smooth once."""

    def __init__(self, widths: Sequence[int], channels: int, *, norm: NormName) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, channels, 1, bias=False) for w in widths)
        self.norm = build_norm(norm, channels)
        self.output = _conv(channels, channels, 3, norm)

    def forward(self, maps: Sequence[Tensor]) -> Float[Tensor, "B C H W"]:
        """Give features at the resolution of the finest map."""
        total = self.lateral[-1](maps[-1])
        # Summed step by step, so that only one map is upsampled to the full size.
        for lateral, part in zip(self.lateral[-2::-1], maps[-2::-1], strict=True):
            total = lateral(part) + _resize(total, part.shape[2:])
        return self.output(F.relu(self.norm(total)))


class _Join(nn.Module):
    """Convolve the concatenation of maps, resized to the first, without storing it."""

    recomputable = ("forward",)

    def __init__(self, widths: Sequence[int], channels: int, norm: NormName) -> None:
        super().__init__()
        self.widths = list(widths)
        self.conv = nn.Conv2d(sum(widths), channels, 3, padding=1, bias=norm == "none")
        self.norm = build_norm(norm, channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        total: Tensor | None = None
        # conv(cat(maps)) = sum of conv(map, slice of the weight).
        for part, weight in zip(maps, self.conv.weight.split(self.widths, dim=1), strict=True):
            value = F.conv2d(_resize(part, maps[0].shape[2:]), weight, padding=1)
            total = value if total is None else total.add_(value)
        assert total is not None, "there is at least one map"
        if self.conv.bias is not None:
            total = total + self.conv.bias[:, None, None]
        return F.relu(self.norm(total), inplace=True)


def _conv(before: int, after: int, kernel: int, norm: NormName) -> ConvNorm:
    return ConvNorm(before, after, kernel, norm=norm, activation=True)


def _resize(maps: Tensor, size: Size | torch.Size) -> Tensor:
    if maps.shape[2:] == size:
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
