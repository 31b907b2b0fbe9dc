# SPDX-License-Identifier: Apache-2.0
"""Boxes and masks from scratch on few images in 25 minutes, compared with torchvision.

Blood cells (boxes, 205 images) and nuclei (masks, 160 images). Each contestant gets the same
images, the same wall time, reading and start-up included, the same cores, no trained weights,
and is scored by the same metric on the same test images. muntin is called as a user would:
``muntin train detect DATA --max-time 25m`` with nothing else named. torchvision's model is trained
with its reference recipe for detection (SGD with momentum, flips), the learning rate following
the clock as muntin's does, at the size that muntin shows images at.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import torchvision
from torch import nn

from muntin.data.archives import read_bytes
from muntin.data.decoding import decode
from muntin.data.detection import list_detect
from muntin.metrics.detection_metric import DetectionMetric
from muntin.results import Detections
from muntin.run_lengths import decode_mask, encode_mask, to_run_lengths
from muntin.samples import Entry, Listing, Objects

TASKS = {"bccd": "detect", "nuclei": "instance"}
PEERS = {"bccd": "fasterrcnn_mobilenet_v3_large_320_fpn", "nuclei": "maskrcnn_resnet50_fpn"}
BATCH = 4


def main() -> None:
    """Run the selected benchmarks and write the results."""
    options = record.options(__doc__, sets=tuple(TASKS), data=record.DATA, minutes=25.0, out="")
    for name in options.sets:
        measure(name, Path(options.data) / name, options.minutes, options.out)


def measure(name: str, data: Path, minutes: float, out: str) -> None:
    """Train both contestants on one set."""
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(out or folder).resolve() / name
        ours, config = record.train_and_score(task, data, data, run, minutes)
    peer = train_peer(name, data, minutes, config)
    for result in (ours, peer):
        result["test"] = chosen(result["test"])
    content = {
        "what": f"{name}: from scratch, {minutes:g} minutes of wall time, scored on its test part",
        "muntin_command": f"muntin train {task} {name} --weights none --max-time {minutes:g}m",
        "minutes": minutes,
        "muntin": ours,
        PEERS[name]: peer,
    }
    record.save(f"detection_{name}", content, ("faster-coco-eval",))


def train_peer(name: str, data: Path, minutes: float, config: dict[str, Any]) -> dict[str, Any]:
    """Train torchvision's model for the same time, and score it."""
    begun = time.monotonic()
    masks = TASKS[name] == "instance"
    sets = list_detect(data, masks=masks)
    train, test = sets.train, sets.test or sets.val
    assert train is not None
    assert test is not None
    torch.manual_seed(0)
    random.seed(0)
    height, width = config["model"]["img_size"]
    max_detections = config["head"]["select"]["max_detections"]
    network = getattr(torchvision.models.detection, PEERS[name])(
        weights=None,
        weights_backbone=None,
        num_classes=train.num_classes + 1,
        min_size=min(height, width),
        max_size=max(height, width),
        box_detections_per_img=max_detections,
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    images = [load(train, entry, masks) for entry in train.entries]
    network.train()

    def losses() -> Iterator[torch.Tensor]:
        while True:
            order = random.sample(range(len(images)), len(images))
            for start in range(0, len(order), BATCH):
                batch = [flip(*images[i]) for i in order[start : start + BATCH]]
                yield sum(network([row[0] for row in batch], [row[1] for row in batch]).values())

    result = record.train_peer(
        network, optimizer, losses(), limit=(begun, minutes), clip=10.0,
        rate=lambda done, steps: 0.005 * min(1.0, (steps + 1) / 100)
        * (1 + math.cos(math.pi * done)) / 2,
    )  # fmt: skip
    return {
        **result,
        "test": score_rival(network, test, masks),
        "epochs": math.ceil(result["steps"] / math.ceil(len(images) / BATCH)),
        "images_per_s": round(result["steps"] * BATCH / result["wall_seconds"], 2),
    }


def chosen(figures: dict[str, Any]) -> dict[str, Any]:
    """The reported metrics."""
    names = ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "max_detections", "num_images")
    per_class = ("box_ap50_per_class", "mask_ap50_per_class")
    return {name: figures[name] for name in (*names, *per_class) if name in figures}


Target = dict[str, torch.Tensor]


def load(listing: Listing, entry: Entry, masks: bool) -> tuple[torch.Tensor, Target]:
    """An image in [0, 1] and its objects, as torchvision takes them."""
    pixels = decode(read_bytes(listing.source, entry.path), where=entry.path)
    objects = entry.objects
    assert objects is not None
    keep = np.flatnonzero(~objects.crowd)
    target = {
        "boxes": torch.from_numpy(objects.boxes[keep]).float(),
        "labels": torch.from_numpy(objects.class_ids[keep]) + 1,
    }
    if masks:
        size = (pixels.shape[0], pixels.shape[1])
        drawn = [decode_mask(to_run_lengths(objects.masks[i] or [], size)) for i in keep]
        target["masks"] = torch.from_numpy(np.stack(drawn).astype(np.uint8))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), target


def flip(original: torch.Tensor, target: Target) -> tuple[torch.Tensor, Target]:
    """Mirror every second image, and make it float."""
    image = original.float() / 255
    if random.random() < 0.5:
        return image, target
    left, top, right, bottom = target["boxes"].unbind(1)
    width = original.shape[2]
    flipped = {**target, "boxes": torch.stack([width - right, top, width - left, bottom], 1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return image.flip(2), flipped


@torch.inference_mode()
def score_rival(network: nn.Module, test: Listing, masks: bool) -> dict[str, Any]:
    """Run the peer on the test images, and score it as muntin is scored."""
    network.eval()
    metric = DetectionMetric(test.class_names, masks=masks)
    for entry in test.entries:
        pixels = decode(read_bytes(test.source, entry.path), where=entry.path)
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        output = network([image])[0]
        ids = output["labels"].numpy() - 1
        drawn = None
        if masks:
            drawn = tuple(encode_mask(mask[0].numpy() >= 0.5) for mask in output["masks"])
        found = Detections(
            path=entry.path,
            size=(pixels.shape[0], pixels.shape[1]),
            boxes=output["boxes"].double().numpy(),
            class_ids=ids,
            scores=output["scores"].double().numpy(),
            class_names=tuple(test.class_names[i] for i in ids),
            masks=drawn,
        )
        truth: Objects | None = entry.objects
        assert truth is not None
        metric.update([found], [truth])
    return metric.compute()


if __name__ == "__main__":
    main()
