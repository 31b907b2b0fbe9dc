# SPDX-FileCopyrightText: 2026 The muntin authors
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

import argparse
import json
import math
import os
import random
import tempfile
import time
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
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("MUNTIN_DATA", str(record.ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", default=data, help="folder that holds bccd and nuclei")
    parser.add_argument("--sets", default="bccd,nuclei")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--out", default="", help="keep the run folders here")
    options = parser.parse_args()
    for name in options.sets.split(","):
        measure(name, Path(options.data) / name, options.minutes, options.out)


def measure(name: str, data: Path, minutes: float, out: str) -> None:
    """Train both contestants on one set."""
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as folder:
        run = Path(out or folder).resolve() / name
        ours = train_muntin(task, data, run, minutes)
        config = json.loads((run / "config.json").read_text())
    peer = train_peer(name, data, minutes, config)
    content = {
        **record.environment(("faster-coco-eval",)),
        "what": f"{name}: from scratch, {minutes:g} minutes of wall time, scored on its test part",
        "muntin_command": f"muntin train {task} {name} --weights none --max-time {minutes:g}m",
        "minutes": minutes,
        "muntin": ours,
        PEERS[name]: peer,
    }
    path = record.write(f"detection_{name}", f"cpu{os.cpu_count()}", content)
    print(json.dumps(content, indent=2))
    print(path)


def train_muntin(task: str, data: Path, run: Path, minutes: float) -> dict[str, Any]:
    """Train and score as a user does."""
    begun = time.monotonic()
    record.muntin(
        "train", task, data, "--weights", "none", "--max-time", f"{minutes:g}m", "--out", run
    )
    seconds = time.monotonic() - begun
    figures = json.loads(record.muntin("eval", run, data, "--json", keep=True))
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    config = json.loads((run / "config.json").read_text())
    return {
        "wall_seconds": round(seconds, 1),
        "test": chosen(figures),
        "epochs": len(journal),
        "images_per_s": [line["images_per_s"] for line in journal],
        "memory_mib": max(line["memory_mib"] for line in journal),
        "model": config["model_name"],
        "img_size": config["model"]["img_size"],
    }


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
    limit, steps, epochs = minutes * 60 - 5, 0, 0
    network.train()
    while time.monotonic() - begun < limit:
        order = random.sample(range(len(images)), len(images))
        for start in range(0, len(order), BATCH):
            done = (time.monotonic() - begun) / limit
            if done >= 1:
                break
            rate = min(1.0, (steps + 1) / 100) * (1 + math.cos(math.pi * done)) / 2
            optimizer.param_groups[0]["lr"] = 0.005 * rate
            batch = [flip(*images[i]) for i in order[start : start + BATCH]]
            losses = network([row[0] for row in batch], [row[1] for row in batch])
            optimizer.zero_grad()
            sum(losses.values()).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            steps += 1
        epochs += 1
    seconds = time.monotonic() - begun
    figures = score_rival(network, test, masks)
    return {
        "wall_seconds": round(seconds, 1),
        "test": chosen(figures),
        "epochs": epochs,
        "steps": steps,
        "images_per_s": round(steps * BATCH / seconds, 2),
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
