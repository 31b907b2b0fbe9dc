# SPDX-License-Identifier: Apache-2.0
"""Masks of a dense detector: prototypes of the image, combined by two layers of each cell.

Source:
    Bolya et al. 2019, YOLACT (arXiv 1904.02689) for prototypes; Tian et al. 2020, CondInst (arXiv
    2003.05664) for layers that each cell predicts. Here they are applied inside the box only, to
    prototypes pooled by RoIAlign and to the place in the box.

Letters: B images, P prototypes, Q instances, L values of a cell's layers, m mask side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.features import Features, FeatureSpec
from muntin.heads.dense_assignment import Pairs, rank_within
from muntin.nn.conv_norm import ConvNorm, NormName
from muntin.ops.torchvision_operators import roi_align
from muntin.shapes import Float, Int
from muntin.targets import BoxTargets

HIDDEN = 8
"""Channels between the two layers of a cell (CondInst)."""

WIDTH = 32
"""Channels from which prototypes are computed."""

MAX_MASKS = 32
"""Masks that are learnt from an image on average: their grids take the most memory of the head."""


class Prototypes(nn.Module):
    """Maps that masks are made of: the finest level, with the detail of the finest features.

    `strides` are those of the finest level and of the prototypes.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        channels: int,
        count: int,
        *,
        strides: tuple[int, int],
        norm: NormName,
    ) -> None:
        super().__init__()
        self.factor = strides[0] / strides[1]
        self.entry = ConvNorm(channels, WIDTH, 1, norm=norm)
        self.lateral = None
        # A plain ViT has no finer features: its level is enlarged.
        if spec.strides[0] == strides[1] and self.factor > 1:
            self.lateral = ConvNorm(spec.channels[0], WIDTH, 1, norm=norm)
        self.conv = ConvNorm(WIDTH, WIDTH, 3, norm=norm, activation=True)
        self.output = nn.Conv2d(WIDTH, count, 1)

    def forward(self, features: Features, level: Float[Tensor, "B C H W"]) -> Tensor:
        """Give the prototypes, (B, P, h, w)."""
        maps = self.entry(level)
        if self.lateral is not None:
            fine = self.lateral(features.maps[0])
            maps = fine + F.interpolate(maps, size=fine.shape[2:], mode="nearest")
        elif self.factor > 1:
            maps = F.interpolate(maps, scale_factor=self.factor, mode="nearest")
        return self.output(self.conv(F.relu(maps)))


def count_layers(prototypes: int) -> int:
    """Count the values L of two layers from prototypes and the place, (x, y), to one map."""
    return (prototypes + 2) * HIDDEN + HIDDEN + HIDDEN + 1


def draw_masks(
    maps: Float[Tensor, "B P h w"],
    layers: Float[Tensor, "Q L"],
    boxes: Float[Tensor, "Q 4"],
    images: Int[Tensor, " Q"],
    *,
    stride: int,
    side: int,
) -> Float[Tensor, "Q side side"]:
    """Compute mask logits inside boxes, in pixels of `images`, from prototypes at `stride`.

    `layers` are those of the cells that the boxes came from.
    """
    rows = torch.cat([images[:, None].to(boxes), boxes], dim=1).to(maps.dtype)
    pooled = roi_align(maps, rows, side, scale=1 / stride, sampling=1, aligned=True)
    # The place in the box, from -1 to 1: most objects fill the middle of theirs.
    line = (torch.arange(side, device=maps.device) + 0.5) * (2 / side) - 1
    places = torch.stack([line.expand(side, side), line[:, None].expand(side, side)])
    places = places.expand(pooled.shape[0], -1, -1, -1).to(pooled)
    inputs = torch.cat([pooled, places], dim=1).flatten(2).float()  # Q, P + 2, side * side
    inner = inputs.shape[1] * HIDDEN
    first, bias, second, last = layers.float().split([inner, HIDDEN, HIDDEN, 1], dim=1)
    hidden = torch.bmm(first.unflatten(1, (HIDDEN, -1)), inputs) + bias[:, :, None]
    return (torch.bmm(second[:, None], F.relu(hidden)) + last[:, None]).view(-1, side, side)


def choose_pairs(pairs: Pairs, targets: Sequence[BoxTargets]) -> Pairs:
    """Choose the pairs whose masks are learnt: the cheapest ones of objects that have a mask."""
    drawn = torch.cat([target.layer_of for target in targets])[pairs.objects] >= 0
    pairs = pairs.select(drawn)
    # Every object's first cell before any other's second.
    order = rank_within(pairs.objects, pairs.costs).argsort(stable=True)
    return pairs.select(order[: MAX_MASKS * len(targets)])


def mask_targets(
    rows: Sequence[Pairs], targets: Sequence[BoxTargets], boxes: Sequence[Tensor], side: int
) -> Float[Tensor, "Q side side"]:
    """Sample the masks of the objects of each image inside boxes, one for each of its pairs."""
    parts, start = [], 0
    for pairs, target, places in zip(rows, targets, boxes, strict=True):
        # Objects are numbered through the batch.
        parts.append(target.masks_in(places, pairs.objects - start, side))
        start += len(target.boxes)
    return torch.cat(parts)


def mask_losses(
    logits: Float[Tensor, "Q m m"], wanted: Float[Tensor, "Q m m"]
) -> Float[Tensor, " Q"]:
    """Cross-entropy and Dice loss (arXiv 1606.04797) of each mask."""
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    scores = logits.sigmoid()
    both = 2 * (scores * wanted).sum(dim=(1, 2)) + 1
    # The 1 keeps masks of nothing from dividing by 0.
    dice = both / (scores.square().sum(dim=(1, 2)) + wanted.square().sum(dim=(1, 2)) + 1)
    return entropy.mean(dim=(1, 2)) + 1 - dice
