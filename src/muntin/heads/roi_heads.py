# SPDX-License-Identifier: Apache-2.0
"""RoI heads: pool the features of a region, classify it, refine its box and predict its mask.

Source: Girshick 2015 (arXiv 1504.08083), He et al. 2017 (arXiv 1703.06870), Lin et al. 2017 (arXiv
1612.03144).

Letters: Q regions of all images, K classes, C channels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from muntin.heads.rcnn_config import RCNNConfig
from muntin.nn.conv_norm import ConvNorm, Upsample
from muntin.ops.boxes import assign_levels
from muntin.shapes import Float, Int


def pool_regions(
    levels: list[Tensor],
    strides: tuple[float, ...],
    boxes: Float[Tensor, "Q 4"],
    images: Int[Tensor, " Q"],
    *,
    side: int,
    config: RCNNConfig,
) -> Float[Tensor, "Q C side side"]:
    """Pool regions (RoIAlign) from the level that matches their size, to `side` cells a side.

    Boxes are in pixels of the padded images; levels are those of the pyramid without added ones.
    """
    rows = torch.cat([images[:, None].to(boxes), boxes], dim=1)  # Q, 5
    # Large boxes are pooled from coarse levels, so that cells cover a similar part of them.
    at = assign_levels(boxes, strides)
    regions = levels[0].new_zeros(boxes.shape[0], levels[0].shape[1], side, side)
    for number, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        here = torch.where(at == number)[0]
        part = roi_align(
            level,
            rows[here].to(level.dtype),
            (side, side),
            spatial_scale=1 / stride,
            sampling_ratio=config.sampling,
            aligned=config.aligned,
        )
        # Written into one tensor in the order of the boxes, whatever their level.
        regions[here] = part.to(regions.dtype)
    return regions


class BoxHead(nn.Module):
    """Class and box of regions."""

    def __init__(self, num_classes: int, config: RCNNConfig) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.class_agnostic = config.class_agnostic
        self.first = config.background == "first"
        channels = config.neck.channels
        self.convs = nn.ModuleList(
            ConvNorm(channels, channels, 3, norm=config.box_norm, activation=True)
            for _ in range(config.box_convs)
        )
        widths = [channels * config.roi_size**2, *[config.box_dim] * config.box_linears]
        self.linears = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )
        slots = 1 if config.class_agnostic else num_classes + self.first
        self.fc_cls = nn.Linear(config.box_dim, num_classes + 1)
        self.fc_reg = nn.Linear(config.box_dim, 4 * slots)
        for linear, std in ((self.fc_cls, 0.01), (self.fc_reg, 0.001)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(
        self, regions: Float[Tensor, "Q C side side"]
    ) -> tuple[Float[Tensor, "Q K_and_1"], Float[Tensor, "Q S 4"]]:
        """Give logits and box offsets; background is last, and has no box."""
        for conv in self.convs:
            regions = conv(regions)
        values = regions.flatten(1)
        for linear in self.linears:
            values = F.relu(linear(values))
        logits, offsets = self.fc_cls(values).float(), self.fc_reg(values).float()
        offsets = offsets.unflatten(1, (-1, 4))
        if self.first:
            # Weights of torchvision have background first; everything else expects it last.
            logits = logits.roll(-1, dims=1)
            offsets = offsets if self.class_agnostic else offsets[:, 1:]
        return logits, offsets


class MaskHead(nn.Module):
    """Mask of each class in regions."""

    def __init__(self, num_classes: int, config: RCNNConfig) -> None:
        super().__init__()
        self.first = config.background == "first"
        widths = [config.neck.channels, *[config.mask_dim] * config.mask_convs]
        self.convs = nn.ModuleList(
            ConvNorm(before, after, 3, norm=config.mask_norm, activation=True)
            for before, after in itertools.pairwise(widths)
        )
        self.upsample = Upsample(widths[-1], config.mask_dim)
        self.logits = nn.Conv2d(config.mask_dim, num_classes + self.first, 1)
        for conv in (self.upsample, self.logits):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(
        self, regions: Float[Tensor, "Q C side side"], class_ids: Int[Tensor, " Q"]
    ) -> Float[Tensor, "Q m m"]:
        """Give the logits of the mask of each region's class, on twice as many cells."""
        for conv in self.convs:
            regions = conv(regions)
        logits = self.logits(F.relu(self.upsample(regions))).float()  # Q, K, m, m
        # Classes do not compete for pixels: each has its own mask (Mask R-CNN, section 3).
        rows = torch.arange(logits.shape[0], device=logits.device)
        return logits[rows, class_ids + self.first]
