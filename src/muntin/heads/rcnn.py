# SPDX-License-Identifier: Apache-2.0
"""Two-stage detectors: Faster R-CNN, Mask R-CNN, Cascade R-CNN and Cascade Mask R-CNN.

The first stage proposes boxes; each further stage pools their features (RoIAlign), classifies and
refines them. A mask head predicts the mask of each object inside its box.

Source:
    Ren et al. 2015 (arXiv 1506.01497), He et al. 2017 (arXiv 1703.06870), Cai and Vasconcelos 2019
    (arXiv 1906.09756). Compared live with torchvision in tests/heads/test_rcnn_parity.py, boxes
    within 1e-3 pixels; cascades with a reference implementation in loops.

Letters: B images, Q regions, K classes, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.collectives import image_generators
from muntin.features import Backbone, Features
from muntin.heads.detector import Detector, Instances, find_candidate
from muntin.heads.necks import build_neck
from muntin.heads.rcnn_config import RCNNConfig
from muntin.heads.rcnn_stages import (
    BoxHead,
    MaskHead,
    ProposalHead,
    clip_boxes,
    match_objects,
    offset_loss,
    pool_regions,
    sample_balanced,
)
from muntin.ops.boxes import decode_offsets, encode_offsets, image_indices
from muntin.shapes import Float, Int
from muntin.targets import BoxTargets

MASK_CHUNK = 256
"""Masks predicted at a time: a tiled image may have a thousand objects in every tile."""


class RCNN(Detector):
    """A two-stage detector on any backbone, of which only the spec is read."""

    score_name = "log-odds"

    def __init__(
        self, backbone: Backbone, num_classes: int, config: RCNNConfig, *, masks: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        neck = build_neck(backbone.spec, config.neck)
        self.neck = neck
        self.rpn = ProposalHead(neck.strides, config)
        own = len(neck.strides) - config.neck.extra_levels
        self.roi_strides = neck.strides[:own]
        stages = len(config.stage_ious)
        self.box_heads = nn.ModuleList(BoxHead(num_classes, config) for _ in range(stages))
        count = 0 if not masks else stages if config.mask_heads == "each" else 1
        self.mask_heads = nn.ModuleList(MaskHead(num_classes, config) for _ in range(count))
        self.set_config(config)

    @property
    def strides(self) -> tuple[float, ...]:
        """Of the levels, in pixels."""
        return self.rpn.strides

    def set_config(self, config: RCNNConfig) -> None:
        """Replace the config by one of other conventions, which change no shape of a parameter."""
        self.config = self.rpn.config = config

    def class_layers(self) -> dict[str, tuple[int, int]]:
        """Classes (with background), and boxes and masks of each; a first background has both."""
        unused = int(self.config.background == "first")
        boxes = {} if self.config.class_agnostic else {"fc_reg": (4, 4 * unused)}
        return {"fc_cls": (1, 1), "logits": (1, unused), **boxes}

    def may_lack(self, name: str) -> bool:
        """Weights with masks fit a detector without."""
        return name.startswith("mask_heads.") and not self.mask_heads

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Add masks to a fixed number of boxes per image."""
        if not self.mask_heads:
            return boxes, scores, class_ids
        regions = self._pool(levels, boxes, 2 * self.config.roi_size)
        masks = self._masks(regions, class_ids.flatten())
        return boxes, scores, class_ids, masks.view(*scores.shape, *masks.shape[1:])

    def candidates(
        self, levels: list[Tensor], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q S 4"], Float[Tensor, "B Q K"]]:
        """Give boxes (of each class, or one for all) and scores, equally many in each image.

        Padding, where an image has fewer proposals than others, has score 0.
        """
        boxes, valid, *_ = self.rpn(levels, sizes)
        if not torch.compiler.is_exporting():
            max_valid = int(valid.sum(dim=1).max())  # drop padding that no image needs
            boxes, valid = boxes[:, :max_valid], valid[:, :max_valid]
        moved, stages = self._refine(levels, boxes, sizes)
        # Every stage was trained on better boxes than the one before, so their classifiers differ
        # and averaging them helps (Cascade R-CNN).
        averages_scores = self.config.stage_average == "scores"
        total = boxes.new_zeros(*boxes.shape[:2], self.num_classes + 1)
        for logits in stages:
            total = total + (logits.softmax(2) if averages_scores else logits)
        mean = total / len(stages)
        scores = (mean if averages_scores else mean.softmax(2))[..., :-1] * valid[..., None]
        return moved, scores

    def _refine(
        self, levels: list[Tensor], boxes: Float[Tensor, "B Q 4"], sizes: Int[Tensor, "B 2"]
    ) -> tuple[Float[Tensor, "B Q S 4"], list[Float[Tensor, "B Q K1"]]]:
        """Boxes of the last stage, and the class logits of every stage, background last."""
        batch, count = boxes.shape[:2]
        stages = []
        for number, head in enumerate(self.box_heads):
            logits, offsets = head(self._pool(levels, boxes, self.config.roi_size))
            # Offsets are relative to the boxes of this stage, with stds that shrink per stage.
            stds = self.config.stage_stds[number]
            moved = decode_offsets(offsets, boxes.reshape(-1, 4), stds)  # Q, S, 4
            stages.append(logits.view(batch, count, self.num_classes + 1))
            slots = offsets.shape[1]
            moved = clip_boxes(moved.reshape(batch, count * slots, 4), sizes)
            if number + 1 < len(self.box_heads):
                # The next stage refines the box of the likeliest foreground class.
                boxes = _of_class(moved.view(batch * count, slots, 4), logits[:, :-1].argmax(1))
                boxes = boxes.view(batch, count, 4)
        return moved.view(batch, count, slots, 4), stages

    def score_of(
        self, features: Features, box: Float[Tensor, "4"], class_id: int
    ) -> Callable[[Features], Float[Tensor, " B"]]:
        """Score the proposal that the box came from, by the log-odds of the class.

        The proposal stays fixed while the image changes: choosing proposals has no gradient.
        """
        levels, sizes = self.read_levels(features), features.sizes
        boxes, scores = self.candidates(levels, sizes)
        row = find_candidate(boxes[0], scores[0], box, class_id)
        region = self.rpn(levels, sizes)[0][:, row : row + 1]  # 1, 1, 4
        averages_scores = self.config.stage_average == "scores"

        def score(others: Features) -> Tensor:
            count = len(others.sizes)
            regions = region.expand(count, -1, -1)
            _, stages = self._refine(self.read_levels(others), regions, others.sizes)
            logits = torch.stack([one[:, 0] for one in stages])  # stages, B, K + 1
            logs = (logits if averages_scores else logits.mean(0, keepdim=True)).log_softmax(dim=2)
            rest = torch.cat([logs[..., :class_id], logs[..., class_id + 1 :]], dim=2)
            return logs[..., class_id].logsumexp(dim=0) - rest.logsumexp(dim=(0, 2))

        return score

    def _pool(self, levels: list[Tensor], boxes: Float[Tensor, "B Q 4"], side: int) -> Tensor:
        batch, count = boxes.shape[:2]
        images = torch.arange(batch, device=boxes.device)[:, None].expand(-1, count).flatten()
        return self._pool_rows(levels, boxes.reshape(-1, 4), images, side)

    def _pool_rows(self, levels: list[Tensor], boxes: Tensor, images: Tensor, side: int) -> Tensor:
        strides = self.roi_strides
        return pool_regions(
            levels[: len(strides)], strides, boxes, images, side=side, config=self.config
        )

    def with_masks(self, levels: list[Tensor], found: list[Instances]) -> list[Instances]:
        """Predict the mask of each object inside its box."""
        if not self.mask_heads:
            return found
        boxes = torch.cat([one.boxes for one in found])
        images = image_indices([one.boxes for one in found])
        class_ids = torch.cat([one.class_ids for one in found])
        drawn = [
            self._masks(self._pool_rows(levels, rows, numbers, 2 * self.config.roi_size), ids)
            for rows, numbers, ids in zip(
                boxes.split(MASK_CHUNK),
                images.split(MASK_CHUNK),
                class_ids.split(MASK_CHUNK),
                strict=True,
            )
        ]
        parts = torch.cat(drawn).split([len(one.boxes) for one in found])
        return [one._replace(masks=part) for one, part in zip(found, parts, strict=True)]

    def _masks(self, regions: Tensor, class_ids: Tensor) -> Float[Tensor, "Q m m"]:
        """Scores in [0, 1], the mean of all mask heads."""
        drawn = [head(regions, class_ids).sigmoid() for head in self.mask_heads]
        return torch.stack(drawn).mean(dim=0)

    def losses(
        self, features: Features, targets: list[BoxTargets]
    ) -> dict[str, Float[Tensor, " B"]]:
        """Compute the losses of each image: those of the RPN, and of all stages together."""
        levels, sizes = self.read_levels(features), features.sizes
        boxes, valid, anchors, scores, offsets = self.rpn(levels, sizes)
        losses = self.rpn.losses(anchors, scores, offsets, targets)
        proposals = [row[there] for row, there in zip(boxes, valid, strict=True)]
        for number in range(len(self.box_heads)):
            proposals = self._stage_losses(number, levels, proposals, sizes, targets, losses)
        return losses

    def _stage_losses(
        self,
        number: int,
        levels: list[Tensor],
        proposals: list[Tensor],
        sizes: Tensor,
        targets: list[BoxTargets],
        losses: dict[str, Tensor],
    ) -> list[Tensor]:
        """Add the losses of a stage to `losses`, and return its refined boxes for the next."""
        config, head = self.config, self.box_heads[number]
        generators = image_generators(len(targets), sizes.device)
        drawn = [
            self._sample_regions(number, *row)
            for row in zip(proposals, targets, generators, strict=True)
        ]
        boxes, matched = [row[0] for row in drawn], [row[1] for row in drawn]
        images = image_indices(boxes)
        logits, offsets = head(self._pool_rows(levels, torch.cat(boxes), images, config.roi_size))
        counts = [len(row) for row in boxes]
        outputs = zip(logits.split(counts), offsets.split(counts), strict=True)
        rows, classes, moved = [], [], []
        for (logit, offset), box, match, target in zip(
            outputs, boxes, matched, targets, strict=True
        ):
            wanted = _classes_of(match, target, self.num_classes)
            aims = target.boxes[match[match >= 0]]
            # Background regions have no true class; their next box is that of the best guess.
            chosen = torch.where(wanted == self.num_classes, logit[:, :-1].argmax(1), wanted)
            offset = _of_class(offset, chosen)
            share = config.stage_weights[number] / max(len(box), 1)
            rows.append(share * self._box_loss(number, offset[match >= 0], box[match >= 0], aims))
            classes.append(share * F.cross_entropy(logit, wanted, reduction="sum"))
            # Detached: the loss of a later stage must not train the boxes of this one.
            stds = config.stage_stds[number]
            moved.append(decode_offsets(offset.detach()[:, None], box, stds)[:, 0])
        _add(losses, "classes", classes)
        _add(losses, "boxes", [config.box_loss_weight * row for row in rows])
        # Keypoint heads read the regions of the last stage only, as do single mask heads.
        last = number + 1 == len(self.box_heads)
        if self.mask_heads and (last or len(self.mask_heads) > 1):
            masks = self._mask_losses(number, levels, boxes, matched, targets)
            _add(losses, "masks", [config.stage_weights[number] * row for row in masks])
        if last:
            for name, more in self.extra_losses(levels, boxes, matched, targets).items():
                _add(losses, name, more)
        clipped = [
            clip_boxes(row[None], size[None])[0] for row, size in zip(moved, sizes, strict=True)
        ]
        # Clipping may leave boxes without area, which have no RoI features.
        return [row[((row[:, 2:] - row[:, :2]) > 0).all(dim=1)] for row in clipped]

    def extra_losses(
        self,
        levels: list[Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        targets: list[BoxTargets],
    ) -> dict[str, list[Tensor]]:
        """Compute further losses of each image from the last stage's regions; for subclasses."""
        return {}

    @torch.no_grad()
    def _sample_regions(
        self, number: int, proposals: Tensor, target: BoxTargets, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Sample training regions of one image, and the object matched to each."""
        iou = self.config.stage_ious[number]
        # True boxes join the proposals, so that an untrained RPN leaves no stage without positives.
        boxes = torch.cat([proposals, target.boxes])
        matched = match_objects(boxes, target, iou, iou)
        positive, negative = sample_balanced(
            matched, self.config.roi_batch, self.config.roi_positive, generator
        )
        rows = torch.cat([positive, negative])
        return boxes[rows], matched[rows]

    def _box_loss(self, number: int, offsets: Tensor, boxes: Tensor, aims: Tensor) -> Tensor:
        """Box loss of the positive regions of one image, summed."""
        stds = self.config.stage_stds[number]
        if self.config.box_loss == "giou":
            from torchvision.ops import generalized_box_iou_loss

            predicted = decode_offsets(offsets[:, None], boxes, stds)[:, 0]
            return generalized_box_iou_loss(predicted, aims, reduction="sum")
        return offset_loss(offsets, encode_offsets(aims, boxes, stds), self.config.box_loss)

    def _mask_losses(
        self,
        number: int,
        levels: list[Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        targets: list[BoxTargets],
    ) -> list[Tensor]:
        """Mask loss of each image."""
        head = self.mask_heads[number if len(self.mask_heads) > 1 else 0]
        places, rows = [], []
        for box, match, target in zip(boxes, matched, targets, strict=True):
            # Objects without an annotated mask have no layer, and no mask loss.
            drawn = (
                (match >= 0) & (target.layer_of[match.clamp(min=0)] >= 0)
                if len(target.layer_of)
                else match >= 0
            )
            places.append(box[drawn])
            rows.append(match[drawn])
        class_ids = torch.cat([t.class_ids[row] for t, row in zip(targets, rows, strict=True)])
        regions = self._pool_rows(
            levels, torch.cat(places), image_indices(places), 2 * self.config.roi_size
        )
        logits = head(regions, class_ids).split([len(row) for row in rows])
        losses = []
        for logit, place, row, target in zip(logits, places, rows, targets, strict=True):
            if not len(row):
                # An empty sum keeps the mask head in the graph, which DDP requires of every step.
                losses.append(logit.sum())
                continue
            wanted = (target.masks_in(place, row, logit.shape[-1]) >= 0.5).to(logit)
            losses.append(F.binary_cross_entropy_with_logits(logit, wanted))
        return losses


def _of_class(values: Float[Tensor, "Q S 4"], class_ids: Int[Tensor, " Q"]) -> Tensor:
    """Select one class per row; the only one if the head is class-agnostic."""
    if values.shape[1] == 1:
        return values[:, 0]
    return values[torch.arange(values.shape[0], device=values.device), class_ids]


def _classes_of(matched: Tensor, target: BoxTargets, num_classes: int) -> Tensor:
    """Class number of each region; `num_classes` for background."""
    classes = torch.full_like(matched, num_classes)
    there = matched >= 0
    classes[there] = target.class_ids[matched[there]]
    return classes


def _add(losses: dict[str, Tensor], name: str, rows: list[Tensor]) -> None:
    stacked = torch.stack(rows)
    losses[name] = losses[name] + stacked if name in losses else stacked
