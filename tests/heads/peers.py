# SPDX-License-Identifier: Apache-2.0
"""torchvision's detectors with random weights that find many things, and targets for both."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from muntin.heads.rcnn_config import CONVENTIONS, RCNNConfig
from muntin.targets import BoxTargets

NUM_CLASSES = 4
CHANNELS = 64
DIM = 128
RATIOS = (0.5, 1.0, 2.0)

# Narrow, so that tests are quick.
NARROW: RCNNConfig = replace(
    CONVENTIONS["torchvision"]["rcnn"],
    neck=replace(CONVENTIONS["torchvision"]["rcnn"].neck, channels=CHANNELS),
    box_dim=DIM,
    mask_dim=CHANNELS,
)


WIDTH, DEPTHS, HEADS = 24, (2, 2, 2, 2), (1, 2, 4, 8)
"""Of a Swin: as Swin-T, but narrow and shallow."""


class SwinBody(nn.Module):
    """torchvision's Swin as a detector's backbone: maps of all stages, channels first."""

    def __init__(self, width=WIDTH, depths=DEPTHS, heads=HEADS, window=7) -> None:
        super().__init__()
        self.features = torchvision.models.SwinTransformer(
            [4, 4], width, list(depths), list(heads), [window, window]
        ).features

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict()
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index % 2:
                maps[str(index // 2)] = images.permute(0, 3, 1, 2).contiguous()
        return maps


class SwinPyramid(nn.Module):
    """The same with a pyramid, named as torchvision's BackboneWithFPN names its parts."""

    def __init__(self, channels: int = CHANNELS, width: int = WIDTH, **body) -> None:
        super().__init__()
        self.body = SwinBody(width, **body)
        self.out_channels = channels
        self.fpn = FeaturePyramidNetwork(
            [width * 2**stage for stage in range(4)], channels, extra_blocks=LastLevelMaxPool()
        )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(self.body(images))


def anchors() -> AnchorGenerator:
    return AnchorGenerator(tuple((8 * s,) for s in (4, 8, 16, 32, 64)), (RATIOS,) * 5)


def swin_detector(
    body: nn.Module | None = None,
    *,
    masks: bool,
    dim: int = DIM,
    num_classes: int = NUM_CLASSES,
    **options,
) -> nn.Module:
    """Faster or Mask R-CNN of torchvision's own parts on torchvision's own Swin-T."""
    detection = torchvision.models.detection
    body = body or SwinPyramid()
    channels = body.out_channels
    parts = {
        "rpn_anchor_generator": anchors(),
        "box_head": detection.faster_rcnn.TwoMLPHead(channels * 49, dim),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(dim, num_classes + 1),
    }
    kind = detection.FasterRCNN
    if masks:
        kind = detection.MaskRCNN
        parts["mask_head"] = detection.mask_rcnn.MaskRCNNHeads(channels, (channels,) * 4, 1)
        parts["mask_predictor"] = detection.mask_rcnn.MaskRCNNPredictor(
            channels, channels, num_classes + 1
        )
    return kind(body, num_classes=None, **parts, **options)


@torch.no_grad()
def spread(detector: nn.Module) -> nn.Module:
    """Give a detector random weights with which many boxes of many scores come out.

    Every layer is scaled by what it gives for a random image, so that no score comes so near to
    0 or 1 that others are equal to it.
    """
    hooks = []
    for name, module in detector.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.6, 1.6)
            module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.1)
        if name.startswith("backbone.body.") or not isinstance(
            module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        ):
            continue
        module.weight.normal_()
        if module.bias is not None:
            module.bias.normal_(std=0.1 * module.weight[0].numel() ** 0.5)
        hooks.append(module.register_forward_hook(_scale_once(0.4 if "bbox" in name else 1.0)))
    detector.eval()([torch.rand(3, 160, 224)])
    for hook in hooks:
        hook.remove()
    return detector


def _scale_once(wanted: float):
    seen: list[bool] = []

    def scale(module: nn.Module, _: object, output: Tensor) -> Tensor:
        if seen:
            return output
        seen.append(True)
        factor = wanted / output.std()
        for parameter in module.parameters():
            parameter.mul_(factor)
        return output * factor

    return scale


def feed(detector: nn.Module, images: list[Tensor]) -> SimpleNamespace:
    """What torchvision's own transform makes of images of several sizes."""
    batch: ImageList
    batch, _ = detector.transform(images)
    return SimpleNamespace(list=batch, tensors=batch.tensors, sizes=torch.tensor(batch.image_sizes))


def detect(detector: nn.Module, batch: SimpleNamespace) -> list[dict[str, Tensor]]:
    """What torchvision finds in a padded batch."""
    maps = detector.backbone(batch.tensors)
    proposals, _ = detector.rpn(batch.list, maps)
    found, _ = detector.roi_heads(maps, proposals, batch.list.image_sizes)
    return found


def same(found, theirs: list[dict[str, Tensor]]) -> dict[str, float]:
    """Largest differences between what we and they find; they must find equally many."""
    worst = {"boxes": 0.0, "scores": 0.0, "masks": 0.0}
    for ours, other in zip(found, theirs, strict=True):
        assert len(ours.boxes) == len(other["boxes"]) > 20
        # Scores that are almost equal may change places: everything is compared with its like.
        left = torch.cat([ours.boxes, 1000 * (ours.class_ids[:, None] + 1)], dim=1)
        right = torch.cat([other["boxes"], 1000 * other["labels"][:, None]], dim=1)
        apart = torch.cdist(left.double(), right.double(), p=torch.inf)
        rows = apart.argmin(dim=0)
        assert len(rows.unique()) == len(rows)
        pairs = {
            "boxes": (left[rows], right),
            "scores": (ours.scores[rows], other["scores"]),
        }
        if ours.masks is not None:
            pairs["masks"] = (ours.masks[rows], other["masks"][:, 0])
        for name, (mine, yours) in pairs.items():
            worst[name] = max(worst[name], float((mine - yours).abs().max()))
        worst["scores"] = max(worst["scores"], float((ours.scores - other["scores"]).abs().max()))
    return worst


def objects(sizes: Tensor, counts: tuple[int, ...], shape, *, masks: bool = True):
    """Random objects for images of these sizes: ours, and torchvision's.

    Every mask covers the whole image, so that all ways to draw it in a region agree.
    """
    ours, theirs = [], []
    for (height, width), count in zip(sizes.tolist(), counts, strict=True):
        corner = torch.rand(count, 2) * torch.tensor([width * 0.6, height * 0.6])
        sides = 16 + torch.rand(count, 2) * torch.tensor([width * 0.35, height * 0.35])
        boxes = torch.cat([corner, corner + sides], dim=1)
        classes = torch.randint(0, NUM_CLASSES, (count,))
        layers = torch.arange(1, count + 1)[:, None, None].expand(count, *shape).contiguous()
        ours.append(
            BoxTargets(
                boxes=boxes,
                class_ids=classes,
                ignored=torch.zeros(0, 4),
                layers=layers if masks else torch.zeros(0, *shape, dtype=torch.long),
                layer_of=torch.arange(count) if masks else torch.full((count,), -1),
            )
        )
        theirs.append(
            {
                "boxes": boxes,
                "labels": classes + 1,
                "masks": torch.ones(count, *shape, dtype=torch.uint8),
            }
        )
    return ours, theirs
