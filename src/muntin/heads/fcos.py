# SPDX-License-Identifier: Apache-2.0
"""FCOS: every pyramid cell predicts class scores and the distances to the edges of its box.

One stage and no anchors; before the dense detector, the default for boxes.

Source:
    Tian et al. 2019, "FCOS" (arXiv 1904.01355), with centre sampling, centredness beside the boxes
    and the GIoU loss of its later versions. Compared live with torchvision's FCOS in
    tests/heads/test_fcos_parity.py: boxes within 1e-3 pixels, and the same cells assigned.

Letters: B images, N cells of all levels, K classes, C channels.
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
from muntin.heads.detector import Detector, SelectConfig, batch_share, find_candidate, flatten_cells
from muntin.heads.necks import NeckConfig, build_neck
from muntin.heads.network import HeadConfig
from muntin.heads.rcnn_stages import IGNORED, clip_boxes
from muntin.nn.conv_norm import ConvNorm, NormName
from muntin.ops.boxes import boxes_at, covered_fraction, grid_points
from muntin.shapes import Float, Int, Size
from muntin.targets import BoxTargets


@dataclass(frozen=True, kw_only=True, slots=True)
class FCOSConfig(HeadConfig):
    """Config of an FCOS head.

    Attributes:
        neck: The pyramid.
        num_convs: Convolutions before the predictions, in each of the two branches.
        norm: After each of them.
        centre: Where in its cell a point lies: 0.5 = the middle; 0 = the corner (torchvision).
        radius: Cells around the middle of an object, in strides, that learn its box.
        reach: Longest edge distance that the finest level learns, in strides; each level takes
            over where the finer one ends.
        top: Candidates per level, best first.
        select: Which boxes are returned (score threshold, NMS, limit).
    """

    kind: ClassVar[str] = "fcos"

    neck: NeckConfig = field(
        default_factory=lambda: NeckConfig(finest=8, extra="conv", extra_levels=2)
    )
    num_convs: Annotated[int, Range(0, 16)] = 4
    norm: NormName = "group"
    centre: float = 0.5
    radius: Annotated[float, Range(0.1, 100)] = 1.5
    reach: Annotated[float, Range(1, 1000)] = 8.0
    top: Annotated[int, Range(1, 10**6)] = 1000
    select: SelectConfig = field(default_factory=lambda: SelectConfig(iou=0.6))

    @property
    def finest(self) -> int:
        """Stride in pixels of the finest map that is read."""
        return self.neck.finest

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        check_ranges("head", self)


SMALL_FCOS = FCOSConfig(
    neck=NeckConfig(channels=96, finest=8, norm="group", extra="conv", extra_levels=2),
    num_convs=2,
)
"""For a small machine: narrow, and two convolutions a branch."""


MIN_POSITIVES = 8
"""Lower bound of positive cells per image in the normaliser: about those of one small object.

Otherwise images without objects would weigh a hundred times as much as others.
"""


class FCOS(Detector):
    """A one-stage detector on any backbone, of which only the spec is read."""

    score_name = "log-odds"

    def __init__(self, backbone: Backbone, num_classes: int, config: FCOSConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        neck = build_neck(backbone.spec, config.neck)
        self.neck, self.strides = neck, neck.strides
        channels = config.neck.channels
        self.class_convs, self.box_convs = (
            nn.Sequential(
                *(
                    ConvNorm(channels, channels, 3, norm=config.norm, activation=True)
                    for _ in range(config.num_convs)
                )
            )
            for _ in range(2)
        )
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.centredness = nn.Conv2d(channels, 1, 3, padding=1)
        for conv in (self.classes, self.boxes, self.centredness):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        # Start with a foreground probability of 0.01, or background dominates the first losses
        # (Lin et al. 2017, arXiv 1708.02002, section 4.1).
        nn.init.constant_(self.classes.bias, -math.log(0.99 / 0.01))  # type: ignore[arg-type]
        # Distances start at one stride: ReLU would block the gradient of non-positive ones.
        nn.init.ones_(self.boxes.bias)  # type: ignore[arg-type]

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """The classifier of cells."""
        return {"classes": (1, 0)}

    def candidates(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q 1 4"], Float[Tensor, "B Q K"]]:
        """Give boxes and scores of the best cells of each level, equally many in each image."""
        boxes, scores, _ = self._best_cells(levels)
        return clip_boxes(boxes, sizes)[:, :, None], scores

    def _best_cells(self, levels: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Boxes (B, Q, 4) and scores (B, Q, K) of the best cells; their numbers in each level."""
        parts = [self._best_of_level(*pair) for pair in zip(levels, self.strides, strict=True)]
        boxes, scores, cells = zip(*parts, strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1), list(cells)

    def _best_of_level(self, level: Tensor, stride: float) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, q, 4), scores (B, q, K) and numbers (B, q) of the best cells of a level."""
        logits, distances, centredness = self._predict(level)
        # Centredness lowers the score of cells near box edges, whose boxes are inaccurate; the
        # square root (torchvision) keeps the product in the range of the class scores.
        scores = (logits.sigmoid() * centredness.sigmoid()).sqrt()  # B, n, K
        boxes = boxes_at(self._points(level, stride), distances * stride)
        best = scores.amax(dim=2)
        # As many for every image, so that the batch stays one tensor and can be exported.
        cells = best.topk(min(self.config.top, best.shape[1]), dim=1).indices
        places = cells[..., None]
        return (
            boxes.gather(1, places.expand(-1, -1, 4)),
            scores.gather(1, places.expand(-1, -1, scores.shape[2])),
            cells,
        )

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Score the cell that the box came from, by its logit.

        Rows are chosen by score, so another image has other cells in them.
        """
        levels = self.read_levels(features)
        boxes, scores, cells = self._best_cells(levels)
        boxes = clip_boxes(boxes, features.sizes)
        row = find_candidate(boxes[0][:, None], scores[0], box, class_id)
        at = 0
        while row >= cells[at].shape[1]:  # candidates follow one another level by level
            row, at = row - cells[at].shape[1], at + 1
        cell = int(cells[at][0, row])

        def score(others: Features) -> Tensor:
            level = self.read_levels(others)[at]
            return self.classes(self.class_convs(level))[:, class_id].flatten(1)[:, cell]

        return score

    def _predict(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, n, K), edge distances in strides (B, n, 4), centredness (B, n, 1)."""
        classes = self.classes(self.class_convs(level))
        maps = self.box_convs(level)
        distances, centredness = F.relu(self.boxes(maps)), self.centredness(maps)
        return flatten_cells(classes), flatten_cells(distances), flatten_cells(centredness)

    def _points(self, level: Tensor, stride: float) -> Float[Tensor, "n 2"]:
        cells: Size = (level.shape[2], level.shape[3])
        return grid_points(cells, stride, offset=self.config.centre, device=level.device)

    def losses(
        self, features: Features, targets: list[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the class, box and centredness losses of each image."""
        levels = self.read_levels(features)
        outputs = [self._predict(level) for level in levels]
        logits, distances, centredness = (torch.cat(p, 1) for p in zip(*outputs, strict=True))
        points = [self._points(*pair) for pair in zip(levels, self.strides, strict=True)]
        from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

        places = torch.cat(points)
        steps = _expand(self.strides, [len(part) for part in points], places)
        matched = [
            assign_cells(points, self.strides, target, self.config.radius, self.config.reach)
            for target in targets
        ]
        positives = torch.stack([(row >= 0).sum() for row in matched])
        share = batch_share(positives, MIN_POSITIVES)
        rows = []
        for image, (target, match) in enumerate(zip(targets, matched, strict=True)):
            at = torch.where(match >= 0)[0]
            wanted = torch.zeros_like(logits[image])
            wanted[at, target.class_ids[match[at]]] = 1.0
            classes = sigmoid_focal_loss(logits[image], wanted, reduction="none").sum(dim=1)
            aims = target.boxes[match[at]]
            # GIoU is taken on boxes in pixels: it is invariant to scale, unlike L1 on distances.
            predicted = boxes_at(places[at], distances[image, at] * steps[at, None])
            centred = _centredness(places[at], aims)
            rows.append(
                (
                    # Crowd cells (-2) are neither object nor background.
                    (classes * (match != -2)).sum(),
                    generalized_box_iou_loss(predicted, aims, reduction="sum"),
                    F.binary_cross_entropy_with_logits(
                        centredness[image, at, 0], centred, reduction="sum"
                    ),
                )
            )
        names = ("classes", "boxes", "centredness")
        columns = zip(*rows, strict=True)
        return {n: share * torch.stack(column) for n, column in zip(names, columns, strict=True)}


def _centredness(points: Float[Tensor, "P 2"], boxes: Float[Tensor, "P 4"]) -> Float[Tensor, " P"]:
    """1 in the middle of a box, falling to 0 at its edges (equation 3)."""
    left_top, right_bottom = points - boxes[:, :2], boxes[:, 2:] - points
    nearer, farther = torch.minimum(left_top, right_bottom), torch.maximum(left_top, right_bottom)
    return (nearer / farther.clamp(min=1e-6)).clamp(min=0).prod(dim=1).sqrt()


@torch.no_grad()
def assign_cells(
    points: list[Tensor],
    strides: tuple[float, ...],
    target: BoxTargets,
    radius: float,
    reach: float,
) -> Int[Tensor, " N"]:
    """Assign an object to each cell: number of the object; -1 = background; -2 = inside a crowd.

    A cell is assigned an object when its point lies inside the box and at most `radius` strides
    from its centre, and the farthest edge is within the range of its level: `reach` strides for the
    first, doubling from level to level. Of several objects, the smallest wins.
    """
    places = torch.cat(points)
    matched = torch.full((len(places),), -1, device=places.device)
    if len(target.ignored):
        # `covered_fraction` takes boxes, so a point becomes a tiny one.
        cell = torch.cat([places, places + 1e-3], dim=1)
        matched[covered_fraction(cell, target.ignored) >= IGNORED] = -2
    if not len(target.boxes):
        return matched
    counts = [len(part) for part in points]
    steps = _expand(strides, counts, places)
    last = len(strides) - 1
    # Level i takes boxes whose farthest edge is in (reach/2, reach) strides: strides double, so
    # the ranges of the levels join. The first and the last level are open-ended.
    low = _expand([0.0 if i == 0 else s * reach / 2 for i, s in enumerate(strides)], counts, places)
    high = _expand(
        [math.inf if i == last else s * reach for i, s in enumerate(strides)], counts, places
    )
    boxes = target.boxes
    # Centre sampling: cells near the edge of a box see mostly background.
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (places[:, None] - middles[None]).abs().amax(dim=2)  # N, M
    edges = torch.cat(
        [places[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - places[:, None]], dim=2
    )  # N, M, 4
    farthest = edges.amax(dim=2)
    near = (away < radius * steps[:, None]) & (edges.amin(dim=2) > 0)
    fits = near & (farthest > low[:, None]) & (farthest < high[:, None])
    # Where boxes overlap, the smallest wins: a larger one has other cells to learn from.
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    smallest, owner = torch.where(fits, areas[None], math.inf).min(dim=1)
    return torch.where(smallest.isfinite(), owner, matched)


def _expand(values: tuple[float, ...] | list[float], counts: list[int], like: Tensor) -> Tensor:
    """One value a level, repeated for each of its cells."""
    # On the CPU: on a GPU it would wait for the counts, to know how many cells there are.
    per_level = torch.tensor(values, dtype=like.dtype)
    return per_level.repeat_interleave(torch.tensor(counts)).to(like.device)
