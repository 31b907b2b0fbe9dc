# SPDX-License-Identifier: Apache-2.0
"""The dense detector: scores and boxes from every cell, one cell an object, and masks.

One stage, plain convolutions and no suppression: quick on a CPU, and exact in other engines.

Source:
    Lyu et al. 2022, "RTMDet" (arXiv 2212.07784): convolutions shared by all levels, with norms of
    each level's own; soft labels and dynamic assignment (`heads/dense_assignment.py`); the quality
    focal loss (arXiv 2006.04388) and GIoU. Beside the classifier that several cells an object
    train, a twin learns to score one of them: the dual assignment of Wang et al. 2024, YOLOv10
    (arXiv 2405.14458), section 3.1, with one box branch for both. Masks: `heads/dense_masks.py`.
    Differs: depthwise separable convolutions, distances by softplus that may be negative by a
    stride, and boxes of which each counts as much as the others.

Letters: B images, N cells of all levels, K classes, C channels, m mask side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.configs import Range, check_ranges
from muntin.features import Backbone, Features
from muntin.heads.dense_assignment import (
    Cells,
    Objects,
    Pairs,
    assign_many,
    assign_one,
    find_pairs,
    focal_loss,
)
from muntin.heads.dense_masks import (
    Prototypes,
    choose_pairs,
    count_layers,
    draw_masks,
    mask_losses,
    mask_targets,
)
from muntin.heads.detector import (
    Candidates,
    Detector,
    Instances,
    SelectConfig,
    batch_share,
    find_candidate,
    flatten_cells,
    select_fixed,
    select_rows,
)
from muntin.heads.necks import NeckConfig, build_neck
from muntin.heads.network import HeadConfig
from muntin.heads.rcnn_stages import IGNORED, clip_boxes
from muntin.nn.conv_norm import NormName, build_norm
from muntin.ops.boxes import boxes_at, covered_fraction, grid_points, image_indices
from muntin.shapes import Float, Size
from muntin.targets import BoxTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseConfig(HeadConfig):
    """Config of a dense head.

    Attributes:
        neck: The pyramid; a `finest` of 4 finds smaller objects and costs more.
        num_convs: Separable convolutions before the predictions, in each of the two branches.
        norm: After each of them.
        prototypes: Maps that masks are made of; 0 = boxes only.
        mask_size: Cells along each side of a mask.
        select: Which boxes are returned. Without `suppression` the twin, which has learnt to choose
            one cell an object, scores beside the classifier, and a cell answers where none of its
            neighbours scores better; with it, the classifier scores alone.
    """

    kind: ClassVar[str] = "dense"

    neck: NeckConfig = field(
        default_factory=lambda: NeckConfig(finest=8, norm="batch", extra="conv", extra_levels=1)
    )
    num_convs: Annotated[int, Range(0, 16)] = 2
    norm: NormName = "batch"
    prototypes: Annotated[int, Range(0, 256)] = 0
    mask_size: Annotated[int, Range(4, 256)] = 28
    select: SelectConfig = field(default_factory=lambda: SelectConfig(suppression="none", iou=0.6))

    @property
    def finest(self) -> int:
        """Stride in pixels of the finest map that is read."""
        return min(4, self.neck.finest) if self.prototypes else self.neck.finest

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("head", self)


SMALL_DENSE = DenseConfig(
    neck=NeckConfig(channels=96, finest=8, norm="batch", extra="conv", extra_levels=1)
)
"""For a small machine: narrow."""

NUM_PROTOTYPES = 8
"""Prototypes of the heads with masks; CondInst has as many."""

BOX_WEIGHT = 2.0
"""Weight of the loss of boxes beside that of classes (RTMDet)."""


class SeparableConv(nn.Module):
    """Depthwise and pointwise convolution shared by all levels, norms of each level's own."""

    def __init__(self, channels: int, norm: NormName, levels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.point = nn.Conv2d(channels, channels, 1, bias=norm == "none")
        self.norms = nn.ModuleList(build_norm(norm, channels) for _ in range(levels))

    def forward(self, level: Float[Tensor, "B C H W"], at: int) -> Float[Tensor, "B C H W"]:
        """Convolve a map of level number `at`."""
        return F.relu(self.norms[at](self.point(self.depth(level))), inplace=True)


class Branch(nn.Module):
    """Separable convolutions, one after another."""

    def __init__(self, channels: int, norm: NormName, levels: int, count: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(SeparableConv(channels, norm, levels) for _ in range(count))

    def forward(self, level: Float[Tensor, "B C H W"], at: int) -> Float[Tensor, "B C H W"]:
        """Convolve a map of level number `at`."""
        for conv in self.convs:
            level = conv(level, at)
        return level


class Dense(Detector):
    """The dense detector on any backbone, of which only the spec is read."""

    def __init__(self, backbone: Backbone, num_classes: int, config: DenseConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        neck = build_neck(backbone.spec, config.neck)
        self.neck, self.strides = neck, neck.strides
        channels, levels = config.neck.channels, len(neck.strides)
        self.class_branch = Branch(channels, config.norm, levels, config.num_convs)
        self.box_branch = Branch(channels, config.norm, levels, config.num_convs)
        self.twin_branch = Branch(channels, config.norm, levels, config.num_convs)
        self.classes = nn.Conv2d(channels, num_classes, 1)
        self.twin = nn.Conv2d(channels, num_classes, 1)
        self.boxes = nn.Conv2d(channels, 4, 1)
        for conv in (self.classes, self.twin, self.boxes):
            nn.init.normal_(conv.weight, std=0.01)
        # One stride to each edge at first: a larger box of a small object hardly learns.
        nn.init.constant_(self.boxes.bias, 2.0)  # type: ignore[arg-type]
        for conv in (self.classes, self.twin):
            # Start with a score of 0.01, or background dominates the first losses
            # (Lin et al. 2017, arXiv 1708.02002, section 4.1).
            nn.init.constant_(conv.bias, -math.log(0.99 / 0.01))  # type: ignore[arg-type]
        self.prototypes = self.mask_layers = None
        if config.prototypes:
            self.prototypes = Prototypes(
                backbone.spec,
                channels,
                config.prototypes,
                strides=(int(self.strides[0]), config.finest),
                norm=config.norm,
            )
            self.mask_layers = nn.Conv2d(channels, count_layers(config.prototypes), 1)
            nn.init.normal_(self.mask_layers.weight, std=0.01)

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """The classifier of cells and its twin."""
        return {"classes": (1, 0), "twin": (1, 0)}

    def forward(self, features: Features) -> Candidates:
        """Compute boxes and scores of all cells; with masks, what they are made of."""
        levels = self.read_levels(features)
        logits, twins, boxes, layers = self._read(levels)
        scores = self._score(logits, twins)
        if self.select.suppression == "none":
            scores = keep_peaks(scores, [(part.shape[2], part.shape[3]) for part in levels])
        maps = [] if self.prototypes is None else [self.prototypes(features, levels[0]), layers]
        boxes = clip_boxes(boxes, features.sizes)[:, :, None]
        return Candidates(maps, boxes, scores, self.decode)

    def _score(self, logits: Tensor, twins: Tensor) -> Tensor:
        scores = logits.sigmoid()
        if self.select.suppression != "none":
            return scores
        # The classifier ranks best, the twin tells which of several cells answers.
        return (scores.square() * twins.sigmoid()).pow(1 / 3)

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Score the cell that the box came from, whether its neighbours score better or not."""
        raw = self(features)
        row = find_candidate(raw.boxes[0], raw.scores[0], box, class_id)

        def score(others: Features) -> Tensor:
            logits, twins, *_ = self._read(self.read_levels(others))
            return self._score(logits, twins)[:, row, class_id]

        return score

    def _read(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, those of the twin, boxes in pixels and mask layers (B, N, ...) of all cells."""
        parts = []
        for at, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            seen, placed = self.class_branch(level, at), self.box_branch(level, at)
            # Whose box lies around a cell tells which of several is its middle. Detached: what
            # tells one cell from its neighbours must not be learnt by what all of them share.
            twin = self.twin(self.twin_branch((seen + placed).detach(), at))
            size = (level.shape[2], level.shape[3])
            points = grid_points(size, stride, offset=0.5, device=level.device)
            # Less one stride: the edge of an object smaller than a cell may lie on the near side.
            boxes = boxes_at(points, (F.softplus(flatten_cells(self.boxes(placed))) - 1) * stride)
            layers = placed[:, :0] if self.mask_layers is None else self.mask_layers(placed)
            parts.append(
                (
                    flatten_cells(self.classes(seen)),
                    flatten_cells(twin),
                    boxes,
                    flatten_cells(layers),
                )
            )
        logits, twins, boxes, layers = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
        return logits, twins, boxes, layers

    def decode(self, raw: Candidates) -> list[Instances]:
        """Select the instances of each image, and draw their masks."""
        found = []
        for image, (boxes, scores) in enumerate(zip(raw.boxes, raw.scores, strict=True)):
            one, masks = select_rows(boxes, scores, self.select), None
            if raw.levels:
                maps = raw.levels[0][image : image + 1]
                masks = self._draw(
                    maps, raw.levels[1][image, one.rows], one.boxes, torch.zeros_like(one.rows)
                ).sigmoid()
            found.append(Instances(one.boxes, one.scores, one.class_ids, masks))
        return found

    def decode_fixed(self, raw: Candidates) -> tuple[Tensor, ...]:
        """Like `decode`, with a fixed number of instances per image, for exported graphs."""
        rows, boxes, scores, class_ids = select_fixed(raw.boxes, raw.scores, self.select)
        if not raw.levels:
            return boxes, scores, class_ids
        maps, layers = raw.levels
        layers = layers.gather(1, rows[..., None].expand(-1, -1, layers.shape[2]))
        # Not one image after another: an exported graph takes any number.
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None].expand_as(rows)
        masks = self._draw(
            maps, layers.flatten(0, 1), boxes.flatten(0, 1), images.flatten()
        ).sigmoid()
        return boxes, scores, class_ids, masks.view(*scores.shape, *masks.shape[1:])

    def _draw(
        self, maps: Tensor, layers: Tensor, boxes: Tensor, images: Tensor
    ) -> Float[Tensor, "Q m m"]:
        stride, side = self.config.finest, self.config.mask_size
        return draw_masks(maps, layers, boxes, images, stride=stride, side=side)

    def losses(
        self, features: Features, targets: list[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the losses of classes, their twin, boxes and, with masks, of masks, by image."""
        from torchvision.ops import generalized_box_iou_loss

        levels = self.read_levels(features)
        logits, twins, boxes, layers = self._read(levels)
        cells = Cells(tuple((lv.shape[2], lv.shape[3]) for lv in levels), self.strides)
        objects = join_objects(targets)
        counted = self._counted(cells, targets)
        flat = boxes.flatten(0, 1)
        pairs, twin_pairs = find_pairs(
            objects, cells, flat, logits.flatten(0, 1), twins.flatten(0, 1)
        )
        many, one = assign_many(pairs, len(objects.boxes)), assign_one(twin_pairs)
        count = len(targets)
        images = many.cells // cells.total
        aims = objects.boxes[many.objects]
        # Each object counts once, however many cells learn it: small ones have few.
        apart = generalized_box_iou_loss(flat[many.cells], aims) * shares_of_objects(many)
        boxed = objects.images[many.objects.unique()].bincount(minlength=count)
        apart = apart.new_zeros(count).index_add(0, images, apart) * batch_share(boxed)
        found = {
            "classes": self._class_loss(logits, many, objects, counted),
            "twin": self._class_loss(twins, one, objects, counted),
            "boxes": BOX_WEIGHT * apart,
        }
        if self.prototypes is not None:
            maps = self.prototypes(features, levels[0])
            learnt = choose_pairs(many, targets)
            rows = [learnt.select(learnt.cells // cells.total == n) for n in range(count)]
            # As in prediction, where the predicted box is; the true one while that is far off.
            near = [flat[row.cells].detach() for row in rows]
            places = [
                torch.where(row.overlaps[:, None] > 0.5, box, objects.boxes[row.objects])
                for row, box in zip(rows, near, strict=True)
            ]
            chosen = layers.flatten(0, 1)[torch.cat([row.cells for row in rows])]
            drawn = self._draw(maps, chosen, torch.cat(places), image_indices(places))
            losses = mask_losses(drawn, mask_targets(rows, targets, places, drawn.shape[1]))
            each = losses.new_zeros(count).index_add(0, image_indices(places), losses)
            found["masks"] = each * batch_share(image_indices(places).bincount(minlength=count))
        return found

    def _counted(self, cells: Cells, targets: list[BoxTargets]) -> Float[Tensor, "B N"]:
        """0 for cells inside crowds, which are neither object nor background."""
        device = targets[0].boxes.device
        levels = zip(cells.sizes, cells.strides, strict=True)
        points = torch.cat([grid_points(*level, offset=0.5, device=device) for level in levels])
        spots = torch.cat([points, points + 0.01], dim=1)  # a point is a tiny box
        covered = [covered_fraction(spots, target.ignored) < IGNORED for target in targets]
        return torch.stack(covered).to(points)

    def _class_loss(
        self, logits: Tensor, pairs: Pairs, objects: Objects, counted: Tensor
    ) -> Float[Tensor, " B"]:
        """Loss of scores: they are to be the overlap where an object is learnt, 0 elsewhere."""
        wanted = torch.zeros_like(logits).flatten(0, 1)
        wanted[pairs.cells, objects.class_ids[pairs.objects]] = pairs.overlaps
        losses = focal_loss(logits.flatten(0, 1), wanted).sum(dim=1)
        # An object in a crowd counts all the same.
        counted = counted.flatten().index_fill(0, pairs.cells, 1.0)
        count = len(logits)
        amounts = pairs.overlaps.new_zeros(count)
        amounts = amounts.index_add(0, objects.images[pairs.objects], pairs.overlaps)
        return batch_share(amounts) * (losses * counted).view(count, -1).sum(dim=1)


def keep_peaks(scores: Float[Tensor, "B N K"], sizes: list[Size]) -> Float[Tensor, "B N K"]:
    """Set scores to 0 where a neighbour, on the same level or the next ones, has a better one.

    Neighbours are the 3 x 3 cells around: the largest of them are max-pooled, so that engines
    need no other operator (the filter of Wang et al. 2021, DeFCN, arXiv 2012.03544, section 3.3,
    after training instead of within the network).
    """
    counts = [high * wide for high, wide in sizes]
    maps = [
        part.transpose(1, 2).unflatten(2, size)
        for part, size in zip(scores.split(counts, dim=1), sizes, strict=True)
    ]
    kept = []
    for at, level in enumerate(maps):
        best = F.max_pool2d(level, 3, stride=1, padding=1)
        if at:
            # A level has half the cells of the one before, rounded up; or as many, where a side
            # has one.
            finer = F.max_pool2d(maps[at - 1], 3, stride=2, padding=1)
            best = torch.maximum(best, F.interpolate(finer, size=sizes[at], mode="nearest"))
        if at + 1 < len(maps):
            coarser = F.max_pool2d(maps[at + 1], 3, stride=1, padding=1)
            best = torch.maximum(best, F.interpolate(coarser, size=sizes[at], mode="nearest"))
        kept.append(torch.where(level >= best, level, 0.0).flatten(2).transpose(1, 2))
    return torch.cat(kept, dim=1)


def join_objects(targets: list[BoxTargets]) -> Objects:
    """Put the objects of all images one after another."""
    boxes = [target.boxes for target in targets]
    return Objects(
        torch.cat(boxes), torch.cat([target.class_ids for target in targets]), image_indices(boxes)
    )


def shares_of_objects(pairs: Pairs) -> Float[Tensor, " P"]:
    """Overlap of each pair as part of the sum over those of its object."""
    least = pairs.overlaps.clamp(min=1e-6)
    sums = least.new_zeros(int(pairs.objects.max()) + 1 if len(least) else 0)
    return least / sums.index_add(0, pairs.objects, least)[pairs.objects]
