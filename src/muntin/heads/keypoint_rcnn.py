# SPDX-License-Identifier: Apache-2.0
"""Keypoint R-CNN: a two-stage detector that also predicts the keypoints of each instance.

He et al. 2017, "Mask R-CNN" (arXiv 1703.06870), section 5. Compared live with torchvision in
tests/heads/test_keypoint_rcnn.py.

Letters: B images, Q regions, P keypoints, m side of a heatmap in cells.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muntin.errors import ConfigError
from muntin.features import Backbone
from muntin.heads.detector import Instances
from muntin.heads.rcnn import RCNN
from muntin.heads.rcnn_config import MASK_RCNN, SMALL_RCNN, RCNNConfig
from muntin.nn.conv_norm import init_before_relu
from muntin.ops.boxes import image_indices
from muntin.shapes import Float
from muntin.targets import BoxTargets


class KeypointRCNN(RCNN):
    """A two-stage detector of instances and their keypoints; mask options apply to heatmaps."""

    def __init__(
        self, backbone: Backbone, num_classes: int, num_keypoints: int, config: RCNNConfig
    ) -> None:
        super().__init__(backbone, num_classes, config, masks=False)
        widths = (config.neck.channels, *[config.mask_dim] * config.mask_convs)
        # Layers, names and order of random numbers are torchvision's.
        self.keypoint_head = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.keypoint_head.append(nn.Conv2d(before, after, 3, padding=1))
            self.keypoint_head.append(nn.ReLU(inplace=True))
        init_before_relu(self.keypoint_head)
        last = nn.ConvTranspose2d(config.mask_dim, num_keypoints, 4, stride=2, padding=1)
        self.keypoint_predictor = nn.ModuleDict({"kps_score_lowres": last})
        init_before_relu(self.keypoint_predictor)
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
            losses.append(_heatmap_loss(logit, place, edges[row]))
        return {"keypoints": losses}

    def with_masks(self, levels: list[Tensor], found: list[Instances]) -> list[Instances]:
        """Predict the keypoints inside each box."""
        boxes = [one.boxes for one in found]
        if not sum(map(len, boxes)):
            return [
                one._replace(points=one.boxes.new_zeros(0, self.num_keypoints, 3)) for one in found
            ]
        logits = self._heatmaps(levels, boxes).split([len(part) for part in boxes])
        return [
            one._replace(points=_find_peaks(logit, one.boxes))
            for one, logit in zip(found, logits, strict=True)
        ]

    def with_fixed_masks(
        self, levels: list[Tensor], boxes: Tensor, scores: Tensor, class_ids: Tensor
    ) -> tuple[Tensor, ...]:
        """Reject: heatmaps are resized to each box, which a graph of fixed shapes cannot do."""
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
        logits = self.keypoint_predictor["kps_score_lowres"](self.keypoint_head(regions))
        logits = F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=False)
        return logits.float()


def _heatmap_loss(
    logits: Float[Tensor, "Q P m m"], boxes: Float[Tensor, "Q 4"], points: Float[Tensor, "Q P 3"]
) -> Tensor:
    """Cross-entropy over the cells of a box, the mean of its known keypoints that lie inside."""
    side = logits.shape[-1]
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    cells = ((points[..., :2] - low) * (side / (high - low))).floor().long()
    # The far edge belongs to the last cell.
    cells = torch.where(points[..., :2] == high, side - 1, cells)
    inside = ((cells >= 0) & (cells < side)).all(dim=2) & (points[..., 2] > 0)
    if not inside.any():
        return logits.sum() * 0
    wanted = cells[..., 1] * side + cells[..., 0]
    return F.cross_entropy(logits.flatten(2)[inside], wanted[inside])


def _find_peaks(
    logits: Float[Tensor, "Q P m m"], boxes: Float[Tensor, "Q 4"]
) -> Float[Tensor, "Q P 3"]:
    """Place (x, y) and score of the highest pixel of each heatmap, resized to its box."""
    found = [logits.new_zeros(0, logits.shape[1], 3)]
    for maps, box in zip(logits, boxes, strict=True):
        sides = (box[2:] - box[:2]).clamp(min=1)
        wide, high = (int(side) for side in sides.ceil())
        resized = F.interpolate(maps[:, None], size=(high, wide), mode="bicubic").flatten(1)
        best = resized.argmax(dim=1, keepdim=True)  # P, 1
        pixels = torch.cat([best % wide, best // wide], dim=1).float() + 0.5
        # torchvision measures from the edge of the first pixel, muntin from its centre.
        points = pixels * (sides / sides.ceil()) + box[:2] - 0.5
        found.append(torch.cat([points, resized.gather(1, best).sigmoid()], dim=1)[None])
    return torch.cat(found)


KEYPOINT_DETECTORS: dict[str, RCNNConfig] = {
    "keypoint_rcnn": replace(MASK_RCNN, mask_convs=8, mask_dim=512),
    "keypoint_rcnn_small": replace(SMALL_RCNN, mask_convs=4, mask_dim=96),
}
"""Keypoint detectors."""
