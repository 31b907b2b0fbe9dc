# SPDX-License-Identifier: Apache-2.0
"""The stages of an R-CNN: boxes that may hold something, then the class, box and mask of each.

Source:
    Ren et al. 2015, "Faster R-CNN" (arXiv 1506.01497), on the levels of a pyramid as in Lin et al.
    2017 (arXiv 1612.03144); Girshick 2015 (arXiv 1504.08083), He et al. 2017 (arXiv 1703.06870).
    Compared live with torchvision's region proposal network in tests/heads/test_rcnn_parity.py.

Letters: B images, Q regions of all images, K classes, C channels, H and W sides of a map in cells,
A anchors of a cell.
"""

from __future__ import annotations

import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.collectives import image_generators
from muntin.heads.rcnn_config import RCNNConfig
from muntin.nn.conv_norm import ConvNorm, Upsample, init_before_relu
from muntin.ops.boxes import (
    assign_levels,
    box_iou,
    covered_fraction,
    decode_offsets,
    encode_offsets,
    make_anchors,
    survives,
)
from muntin.ops.torchvision_operators import roi_align
from muntin.shapes import Bool, Float, Int, Size
from muntin.targets import BoxTargets

IGNORED = 0.5
"""Boxes of which at least this share lies inside a crowd region are ignored in training."""

_STDS = (1.0, 1.0, 1.0, 1.0)  # offsets of proposals are not scaled


class ProposalHead(nn.Module):
    """Region proposal network: score and refine anchors."""

    def __init__(self, strides: tuple[float, ...], config: RCNNConfig) -> None:
        super().__init__()
        self.strides = strides
        self.config = config
        channels, anchors = config.neck.channels, len(config.anchor_ratios)
        self.convs = nn.ModuleList(
            ConvNorm(channels, channels, 3, activation=True) for _ in range(config.rpn_convs)
        )
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.offsets = nn.Conv2d(channels, anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q 4"], Bool[Tensor, "B Q"], list[Tensor], Tensor, Tensor]:
        """Propose boxes for images of these sizes, (height, width) in pixels without padding.

        Gives the best boxes of each image, a fixed number, best first; which of them are not
        padding; the anchors of each level; and score (B, N) and offsets (B, N, 4) of all anchors.
        """
        anchors, scores, offsets = self._predict(levels)
        boxes, valid = self._choose(anchors, scores, offsets, sizes)
        return boxes, valid, anchors, torch.cat(scores, 1), torch.cat(offsets, 1)

    def _predict(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        anchors, scores, offsets = [], [], []
        finest = levels[0].shape[2] * self.strides[0], levels[0].shape[3] * self.strides[0]
        for level, stride in zip(levels, self.strides, strict=True):
            maps = level
            for conv in self.convs:
                maps = conv(maps)
            cells: Size = (level.shape[2], level.shape[3])
            # torchvision rounds anchor steps to whole pixels of the padded image.
            whole = finest[0] // cells[0], finest[1] // cells[1]
            anchors.append(
                make_anchors(
                    cells,
                    whole if self.config.rounded_anchors else stride,
                    stride * self.config.anchor_scale,
                    self.config.anchor_ratios,
                    rounded=self.config.rounded_anchors,
                    device=level.device,
                )
            )
            score = self.objectness(maps).permute(0, 2, 3, 1).flatten(1)  # B, H*W*A
            offset = self.offsets(maps).permute(0, 2, 3, 1)  # B, H, W, A*4
            scores.append(score.float())
            offsets.append(offset.reshape(level.shape[0], -1, 4).float())
        return anchors, scores, offsets

    @torch.no_grad()
    def _choose(
        self, anchors: list[Tensor], scores: list[Tensor], offsets: list[Tensor], sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Refine the best anchors of each level and keep the best boxes after NMS."""
        before = self.config.pre_nms[0 if self.training else 1]
        wanted = self.config.proposals[0 if self.training else 1]
        parts, values, numbers = [], [], []
        for number, (anchor, score, offset) in enumerate(
            zip(anchors, scores, offsets, strict=True)
        ):
            # Per level, or the finest one with its many anchors would leave no others.
            best, places = score.topk(min(before, score.shape[1]), dim=1)
            chosen = offset.gather(1, places[..., None].expand(-1, -1, 4))
            moved = decode_offsets(chosen.reshape(-1, 1, 4), anchor[places].reshape(-1, 4), _STDS)
            parts.append(moved.reshape(score.shape[0], -1, 4))
            values.append(best.sigmoid())
            numbers.append(torch.full_like(places, number))
        boxes = clip_boxes(torch.cat(parts, 1), sizes)  # B, N, 4
        value, level = torch.cat(values, 1), torch.cat(numbers, 1)
        count = boxes.shape[1]
        sides = boxes[..., 2:] - boxes[..., :2]
        whole = (sides >= 1e-3).all(dim=2)
        # Empty boxes rank last: filtering them would make shapes depend on the data.
        ranked = torch.where(whole, value, value - 2)
        # Boxes suppress each other only within a level.
        alive = survives(boxes, ranked, level, len(anchors), self.config.proposal_iou)
        ranked = torch.where(alive, ranked, -2.0)
        best, places = ranked.topk(min(wanted, count), dim=1)
        return boxes.gather(1, places[..., None].expand(-1, -1, 4)), best >= 0

    def losses(
        self,
        anchors: list[Tensor],
        scores: Float[Tensor, "B N"],
        offsets: Float[Tensor, "B N 4"],
        targets: list[BoxTargets],
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the objectness and box losses of each image."""
        places = torch.cat(anchors)
        objectness, boxes = [], []
        generators = image_generators(len(targets), scores.device)
        rows = zip(scores, offsets, targets, generators, strict=True)
        for score, offset, target, generator in rows:
            matched = match_objects(
                places, target, self.config.rpn_iou[0], self.config.rpn_iou[1], keep_best=True
            )
            positive, negative = sample_balanced(matched, self.config.rpn_batch, 0.5, generator)
            # Thousands of background anchors would dominate, so a balanced sample is compared.
            chosen = torch.cat([positive, negative])
            wanted = torch.zeros_like(score).index_fill(0, positive, 1.0)
            objectness.append(
                F.binary_cross_entropy_with_logits(score[chosen], wanted[chosen], reduction="sum")
                / max(len(chosen), 1)
            )
            aims = encode_offsets(target.boxes[matched[positive]], places[positive], _STDS)
            loss = offset_loss(offset[positive], aims, self.config.box_loss)
            # Divided by all samples, not by the positives, as published: it balances both losses.
            boxes.append(loss / max(len(chosen), 1))
        return {"objectness": torch.stack(objectness), "proposals": torch.stack(boxes)}


def offset_loss(predicted: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Sum of L1 or smooth L1 (beta 1/9) over box offsets."""
    if kind == "smooth_l1":
        return F.smooth_l1_loss(predicted, wanted, beta=1 / 9, reduction="sum")
    return F.l1_loss(predicted, wanted, reduction="sum")


@torch.no_grad()
def match_objects(
    boxes: Float[Tensor, "N 4"],
    target: BoxTargets,
    high: float,
    low: float,
    *,
    keep_best: bool = False,
) -> Int[Tensor, " N"]:
    """Match each box to an object: its number; -1 = background; -2 = in between, or inside a crowd.

    A box matches from an IoU of `high`, and is background below `low`; with `keep_best`, the best
    boxes of an object match it even below `high`.
    """
    matched = torch.full((len(boxes),), -1, device=boxes.device)
    if len(target.boxes):
        overlaps = box_iou(target.boxes, boxes)  # M, N
        iou, nearest = overlaps.max(dim=0)
        matched = torch.where(iou < low, -1, torch.where(iou < high, -2, nearest))
        if keep_best:
            is_best = (overlaps == overlaps.amax(dim=1, keepdim=True)).any(dim=0)
            matched = torch.where(is_best, nearest, matched)
    # Only background boxes: a box inside a crowd that matches a single object trains it.
    if len(target.ignored):
        crowd = covered_fraction(boxes, target.ignored) >= IGNORED
        matched = torch.where((matched == -1) & crowd, -2, matched)
    return matched


def sample_balanced(
    matched: Int[Tensor, " N"], count: int, share: float, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, " P"], Int[Tensor, " M"]]:
    """Sample `count` boxes: at most `share` of them positive, the rest background."""
    positive, negative = torch.where(matched >= 0)[0], torch.where(matched == -1)[0]
    num_positive = min(len(positive), int(count * share))
    shuffle = partial(torch.randperm, device=matched.device, generator=generator)
    positive = positive[shuffle(len(positive))[:num_positive]]
    others = shuffle(len(negative))[: count - num_positive]
    return positive.sort().values, negative[others].sort().values


def clip_boxes(boxes: Float[Tensor, "B N 4"], sizes: Int[Tensor, "B 2"]) -> Float[Tensor, "B N 4"]:
    """Clip boxes to their images, (height, width) each."""
    limits = sizes.flip(1).to(boxes).repeat(1, 2)[:, None]  # B, 1, 4: width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits)


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
            side,
            scale=1 / stride,
            sampling=config.sampling,
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
        init_before_relu(self.upsample)
        init_before_relu(self.logits)

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
