# SPDX-License-Identifier: Apache-2.0
"""Necks: from backbone maps to a pyramid whose levels have the same channels.

Source:
    Lin et al. 2017, "Feature Pyramid Networks" (arXiv 1612.03144), compared live with torchvision
    in tests/heads/test_necks.py. Li et al. 2022 (arXiv 2203.16527), section 3: the simple pyramid.

Letters: B images, C channels, H and W sides of a map in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from muntin.configs import check_range
from muntin.features import FeatureSpec
from muntin.nn.conv_norm import ChannelNorm, ConvNorm, NormName, Upsample


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

    channels: int = 256
    finest: int = 4
    norm: NormName = "none"
    extra_levels: int = 1
    extra: Literal["pool", "conv"] = "pool"

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_range("neck.channels", self.channels, 1, 10**5)
        check_range("neck.extra_levels", self.extra_levels, 0, 4)


class _Extra(nn.Module):
    def __init__(self, config: NeckConfig) -> None:
        super().__init__()
        self.count = config.extra_levels
        count = config.extra_levels if config.extra == "conv" else 0
        self.convs = nn.ModuleList(
            nn.Conv2d(config.channels, config.channels, 3, stride=2, padding=1)
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
