# SPDX-License-Identifier: Apache-2.0
"""Necks: from backbone maps to a pyramid of equal channels, or to one map for segmentation.

Source:
    Lin et al. 2017, "Feature Pyramid Networks" (arXiv 1612.03144), compared live with torchvision
    in tests/heads/test_necks.py. Li et al. 2022 (arXiv 2203.16527), section 3: the simple pyramid.
    UPerNet: Xiao et al. 2018 (arXiv 1807.10221), as published for Swin; compared live with
    transformers in tests/heads/test_semantic.py. Light decoder: Xie et al. 2021, "SegFormer"
    (arXiv 2105.15203), section 3.2.

Letters: B images, C channels, H and W sides of a map in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.configs import Range, check_ranges
from muntin.features import FeatureSpec
from muntin.nn.conv_norm import (
    ChannelNorm,
    ConvNorm,
    NormName,
    StridedConv,
    Upsample,
    build_norm,
)
from muntin.shapes import Float, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class NeckConfig:
    """Config of a neck.

    Attributes:
        channels: Of every level.
        finest: Stride of the finest level in pixels; finer maps of the backbone are not read.
        norm: After each convolution.
        extra_levels: Coarser levels added to those of the backbone.
        extra: How they are made: "pool" takes every second cell of the coarsest level (R-CNN);
            "conv" convolves with stride 2 (RetinaNet, FCOS).
    """

    channels: Annotated[int, Range(1, 4096)] = 256
    finest: int = 4
    norm: NormName = "none"
    extra_levels: Annotated[int, Range(0, 4)] = 1
    extra: Literal["pool", "conv"] = "pool"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("neck", self)


class _Extra(nn.Module):
    def __init__(self, config: NeckConfig) -> None:
        super().__init__()
        self.count = config.extra_levels
        count = config.extra_levels if config.extra == "conv" else 0
        self.convs = nn.ModuleList(
            StridedConv(config.channels, config.channels, 3, stride=2, padding=1)
            for _ in range(count)
        )

    def forward(self, level: Tensor) -> list[Tensor]:
        levels = []
        for number in range(self.count):
            # ReLU between strided convolutions, not before the first (RetinaNet).
            if self.convs:
                level = self.convs[number](level if number == 0 else F.relu(level))
            else:
                level = level[:, :, ::2, ::2]
            levels.append(level)
        return levels


class _Pyramid(nn.Module):
    def _add_levels(
        self, widths: Sequence[int], strides: Sequence[float], config: NeckConfig
    ) -> None:
        channels, norm = config.channels, config.norm
        self.lateral = nn.ModuleList(ConvNorm(c, channels, 1, norm=norm) for c in widths)
        self.output = nn.ModuleList(ConvNorm(channels, channels, 3, norm=norm) for _ in widths)
        self.extra = _Extra(config)
        self.strides: tuple[float, ...] = (
            *map(float, strides),
            *(float(strides[-1] * 2 ** (i + 1)) for i in range(config.extra_levels)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # a=1: no ReLU follows, as in detectron2 and torchvision.
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class FeaturePyramid(_Pyramid):
    """Feature pyramid network: coarse maps are upsampled and added to finer ones."""

    def __init__(self, spec: FeatureSpec, config: NeckConfig) -> None:
        super().__init__()
        self.skipped = sum(stride < config.finest for stride in spec.strides[:-1])
        self._add_levels(spec.channels[self.skipped :], spec.strides[self.skipped :], config)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Give the levels, finest first, all of B, channels, H, W."""
        maps = maps[self.skipped :]
        sides = [lateral(level) for lateral, level in zip(self.lateral, maps, strict=True)]
        for index in range(len(sides) - 2, -1, -1):
            # To the exact size of the finer map: a factor of 2 would fail for odd sides.
            above = F.interpolate(sides[index + 1], size=sides[index].shape[-2:], mode="nearest")
            sides[index] = sides[index] + above
        levels = [output(side) for output, side in zip(self.output, sides, strict=True)]
        return levels + self.extra(levels[-1])


class _MaxPool(nn.Module):
    def forward(self, level: Tensor) -> Tensor:
        # Without ceil_mode a single row or column would pool to nothing.
        return F.max_pool2d(level, 2, stride=2, ceil_mode=1 in level.shape[2:])


class SimplePyramid(_Pyramid):
    """Levels of 4, 2, 1 and 1/2 times the resolution of a plain ViT's last map."""

    def __init__(self, spec: FeatureSpec, config: NeckConfig) -> None:
        super().__init__()
        dim, stride = spec.channels[-1], spec.strides[-1]
        twice = Upsample(dim, dim // 2)
        twice_more = Upsample(dim // 2, dim // 4)
        # Levels finer than the config asks for are not built: they take the most memory.
        first = sum(stride * scale < config.finest for scale in (0.25, 0.5, 1.0))
        scaling = [
            nn.Sequential(twice, ChannelNorm(dim // 2, eps=1e-6), nn.GELU(), twice_more),
            nn.Sequential(Upsample(dim, dim // 2)),
            nn.Identity(),
            _MaxPool(),
        ]
        self.scaling = nn.ModuleList(scaling[first:])
        strides = [stride * scale for scale in (0.25, 0.5, 1.0, 2.0)]
        self._add_levels((dim // 4, dim // 2, dim, dim)[first:], strides[first:], config)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Give the levels, finest first, all of B, channels, H, W."""
        levels = [
            output(lateral(scale(maps[-1])))
            for scale, lateral, output in zip(self.scaling, self.lateral, self.output, strict=True)
        ]
        return levels + self.extra(levels[-1])


def build_neck(spec: FeatureSpec, config: NeckConfig) -> FeaturePyramid | SimplePyramid:
    """Build the neck for a backbone: a simple pyramid if all maps have one stride."""
    plain = len(set(spec.strides)) == 1
    return SimplePyramid(spec, config) if plain else FeaturePyramid(spec, config)


def build_plain_neck(spec: FeatureSpec, channels: int, finest: int) -> SimplePyramid | None:
    """Build a pyramid for decoders, which read several scales, if all maps have one stride."""
    if len(set(spec.strides)) > 1:
        return None
    return SimplePyramid(spec, NeckConfig(channels=channels, finest=finest, extra_levels=0))


class UPerNet(nn.Module):
    """Pyramid pooling of the coarsest map, a top-down feature pyramid, and fusion of all levels.

    `widths` are the channels of the backbone's maps, finest first; `pool_sides` the cells along
    each side of the pooled maps.
    """

    def __init__(
        self, widths: Sequence[int], channels: int, pool_sides: Sequence[int], *, norm: NormName
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
