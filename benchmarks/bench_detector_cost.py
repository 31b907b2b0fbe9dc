# SPDX-License-Identifier: Apache-2.0
"""Cost per image of Mask R-CNN on Swin-T, compared with torchvision's, with equal weights.

torchvision's Swin-T is combined with its own FPN and Mask R-CNN; muntin's network has
torchvision's conventions and loads its weights. Training steps and predictions take turns, and
both find the same boxes, which is checked.
"""

from __future__ import annotations

import statistics
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import record
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import muntin
from muntin.benching.result_rows import BenchmarkCase, summarize, time_interleaved
from muntin.targets import BoxTargets

NUM_CLASSES = 80
OBJECTS = 12


class Pyramid(nn.Module):
    """torchvision's Swin-T with a pyramid, named as its BackboneWithFPN names the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.features = torchvision.models.swin_t(weights=None).features
        self.out_channels = 256
        widths = [96, 192, 384, 768]
        self.fpn = FeaturePyramidNetwork(widths, 256, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Levels by name."""
        maps = OrderedDict()
        for index, layer in enumerate(self.body.features):
            images = layer(images)
            if index % 2:
                maps[str(index // 2)] = images.permute(0, 3, 1, 2).contiguous()
        levels: OrderedDict[str, Tensor] = self.fpn(maps)
        return levels


def main() -> None:
    """Measure and write the result."""
    options = record.options(__doc__, size="480x640", repeat=7)
    high, wide = (int(side) for side in options.size.split("x"))
    torch.manual_seed(0)
    theirs = MaskRCNN(
        Pyramid(),
        num_classes=NUM_CLASSES + 1,
        rpn_anchor_generator=AnchorGenerator(
            tuple((8 * stride,) for stride in (4, 8, 16, 32, 64)), ((0.5, 1.0, 2.0),) * 5
        ),
    )
    # Random weights give low scores; scaled up, they yield the maximum number of detections.
    with torch.no_grad():
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(40)
    ours = muntin.create_detector(
        "swin_tiny",
        head="mask_rcnn",
        num_classes=NUM_CLASSES,
        conventions="torchvision",
        out_norm="none",
        drop_path_rate=0.0,
    )
    muntin.load_weights(ours, theirs.state_dict())
    image = torch.randn(1, 3, high, wide)
    learn = partial(learn_theirs, theirs, image), partial(learn_ours, ours, image)
    predict = partial(predict_theirs, theirs, image), partial(predict_ours, ours, image)
    rows = {
        **race("training step", *learn, options.repeat),
        **race("prediction", *predict, options.repeat),
    }
    content = {
        "what": "Mask R-CNN on Swin-T with a pyramid, one image, same weights, taking turns",
        "size": options.size,
        "num_found": len(predict_ours(ours, image).boxes),
        "largest_box_difference": agreement(theirs, ours, image),
        "rows": rows,
    }
    record.save("detector_cost", content)


def race(
    what: str, theirs: Callable[[], object], ours: Callable[[], object], repeat: int
) -> dict[str, Any]:
    """Time both in turns, after a turn to warm up."""

    def call(work: Callable[[], object]) -> np.ndarray:
        work()
        return np.zeros(0, np.float32)

    cases = [
        BenchmarkCase(owner=name, run=partial(call, work))
        for name, work in (("torchvision", theirs), ("muntin", ours))
    ]
    timings = time_interleaved(cases, rounds=repeat)
    base = statistics.median(timings[0].seconds)
    return {
        f"{what}, {timing.case.owner}": {
            "seconds": summarize(timing.seconds),
            "ratio_to_torchvision": summarize([value / base for value in timing.seconds]),
        }
        for timing in timings
    }


def objects(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, class numbers and masks of some objects."""
    generator = torch.Generator().manual_seed(1)
    high, wide = image.shape[-2:]
    corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([wide, high]) * 0.6
    side = 24 + torch.rand(OBJECTS, 2, generator=generator) * 0.35 * min(high, wide)
    boxes = torch.cat([corner, corner + side], 1)
    masks = torch.zeros(OBJECTS, high, wide, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    return boxes, torch.arange(OBJECTS), masks


def learn_theirs(network: MaskRCNN, image: Tensor) -> None:
    """Forward and back through the parts, without torchvision's resizing."""
    network.train()
    boxes, class_ids, masks = objects(image)
    targets = [{"boxes": boxes, "labels": class_ids + 1, "masks": masks}]
    images = ImageList(image, [(image.shape[2], image.shape[3])])
    levels = network.backbone(image)
    proposals, first = network.rpn(images, levels, targets)
    _, second = network.roi_heads(levels, proposals, images.image_sizes, targets)
    sum({**first, **second}.values()).backward()
    network.zero_grad()


def learn_ours(network: nn.Module, image: Tensor) -> None:
    """The same."""
    network.train()
    boxes, class_ids, masks = objects(image)
    layers = masks.int() * torch.arange(1, OBJECTS + 1, dtype=torch.int32)[:, None, None]
    target = BoxTargets(
        boxes=boxes,
        class_ids=class_ids,
        ignored=torch.zeros(0, 4),
        layers=layers,
        layer_of=torch.arange(OBJECTS),
    )
    sizes = torch.tensor([image.shape[-2:]])
    ours: Any = network
    losses = ours.head.losses(ours.features(image, sizes), [target])
    sum(losses.values()).sum().backward()
    network.zero_grad()


@torch.inference_mode()
def predict_theirs(network: MaskRCNN, image: Tensor) -> dict[str, Tensor]:
    """Boxes and small masks, without resizing and pasting."""
    network.eval()
    images = ImageList(image, [(image.shape[2], image.shape[3])])
    levels = network.backbone(image)
    proposals, _ = network.rpn(images, levels)
    found, _ = network.roi_heads(levels, proposals, images.image_sizes)
    answer: dict[str, Tensor] = found[0]
    return answer


@torch.inference_mode()
def predict_ours(network: nn.Module, image: Tensor) -> Any:  # noqa: ANN401
    """The same."""
    return network.eval()(image)[0]


def agreement(theirs: MaskRCNN, ours: nn.Module, image: Tensor) -> float | None:
    """Largest difference of the boxes of both, in pixels; None where nothing is found."""
    first, second = predict_theirs(theirs, image), predict_ours(ours, image)
    if len(first["boxes"]) != len(second.boxes) or not len(first["boxes"]):
        return None
    return float((first["boxes"] - second.boxes).abs().max())


if __name__ == "__main__":
    main()
