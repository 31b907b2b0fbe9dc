# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Keypoint R-CNN: a two-stage detector that also predicts the keypoints of each instance.

Source:
    He et al. 2017, "Mask R-CNN" (arXiv 1703.06870), section 5. Head, loss and reading of the
    heatmaps are torchvision's own; only the detector around them is muntin's.

Letters: B images, Q regions, P keypoints.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import keypointrcnn_inference, keypointrcnn_loss

from muntin.errors import ConfigError
from muntin.features import Backbone
from muntin.heads.instances import Instances
from muntin.heads.rcnn import RCNN, image_indices
from muntin.heads.rcnn_config import MASK_RCNN, SMALL_RCNN, RCNNConfig
from muntin.targets import BoxTargets

__all__ = ["KEYPOINT_DETECTORS", "KeypointRCNN"]


class KeypointRCNN(RCNN):
    """A two-stage detector of instances and their keypoints.

    Args:
        backbone: Gives the maps; only its spec is read.
        num_classes: Classes, without background.
        num_keypoints: Keypoints of each instance.
        config: Which detector; its mask options apply to the heatmaps.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, num_keypoints: int, config: RCNNConfig
    ) -> None:
        super().__init__(backbone, num_classes, config, masks=False)
        layers = (config.mask_dim,) * config.mask_convs
        self.keypoint_head = KeypointRCNNHeads(config.neck.channels, layers)
        self.keypoint_predictor = KeypointRCNNPredictor(config.mask_dim, num_keypoints)
        self.num_keypoints = num_keypoints

    def extra_losses(
        self,
        levels: list[Tensor],
        boxes: list[Tensor],
        matched: list[Tensor],
        targets: list[BoxTargets],
    ) -> dict[str, list[Tensor]]:
        """Compute the heatmap loss of each image."""
        places = [box[match >= 0] for box, match in zip(boxes, matched, strict=True)]
        rows = [match[match >= 0] for match in matched]
        logits = self._heatmaps(levels, places).split([len(part) for part in places])
        losses = []
        for logit, place, row, target in zip(logits, places, rows, targets, strict=True):
            points = target.points
            if not len(place) or points is None:
                # Keeps the heatmap head in the graph, which DDP requires of every step.
                losses.append(logit.sum() * 0)
                continue
            # torchvision measures from the edge of the first pixel, muntin from its centre.
            edges = points + points.new_tensor([0.5, 0.5, 0])
            losses.append(keypointrcnn_loss(logit, [place], [edges], [row]))
        return {"keypoints": losses}

    def with_masks(self, levels: list[Tensor], found: list[Instances]) -> list[Instances]:
        """Predict the keypoints inside each box."""
        boxes = [one.boxes for one in found]
        if not sum(map(len, boxes)):
            return [
                one._replace(points=one.boxes.new_zeros(0, self.num_keypoints, 3)) for one in found
            ]
        places, heights = keypointrcnn_inference(self._heatmaps(levels, boxes), boxes)
        results = []
        for one, place, height in zip(found, places, heights, strict=True):
            points = torch.cat([place[:, :, :2] - 0.5, height.sigmoid()[:, :, None]], dim=2)
            results.append(one._replace(points=points))
        return results

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Reject: heatmaps are resized to each box, which a graph of fixed shapes cannot do.

        Raises:
            ConfigError: Always.
        """
        message = (
            "an exported run needs a head with fixed shapes, got keypoint_rcnn, which resizes "
            "heatmaps to each box. Train with another --head."
        )
        raise ConfigError(message)

    def _heatmaps(self, levels: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Logits of every cell of each box, Q, P, m, m."""
        side = 2 * self.config.roi_size
        # Twice the cells of the box head: keypoints need a finer grid than classes.
        regions = self._pool_rows(levels, torch.cat(boxes), image_indices(boxes), side)
        logits: Tensor = self.keypoint_predictor(self.keypoint_head(regions))
        return logits.float()


KEYPOINT_DETECTORS: dict[str, RCNNConfig] = {
    "keypoint_rcnn": replace(MASK_RCNN, mask_convs=8, mask_dim=512),
    "keypoint_rcnn_small": replace(SMALL_RCNN, mask_convs=4, mask_dim=96),
}
"""Keypoint detectors."""
