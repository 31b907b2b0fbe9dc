# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Can a detector overfit 20 photographs? If not, targets, losses or decoding are wrong.

Mask R-CNN on a small Swin, from scratch, on the first 20 annotated images of coco_mini's train
part, without augmentation, scored on the same images.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import record

import muntin

SETTINGS = {
    "augment.scale": "1,1",
    "augment.flip": 0,
    "augment.jitter": 0,
    # Many objects of photographs are small.
    "head.anchor_scale": 4.0,
    "train.learning_rate": 1e-3,
    "train.ema_decay": 0.99,
    "train.weight_decay": 0.0,
    "machine.workers": 0,
}
FIGURES = ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "num_images")


def main() -> None:
    """Train, score and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("MUNTIN_DATA", str(record.ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", default=data, help="folder that holds coco_mini")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--img-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--head", default="mask_rcnn_small")
    parser.add_argument("--out", default="", help="keep the run folder here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = take(Path(options.data) / "coco_mini", Path(folder) / "data", 20)
        begun = time.monotonic()
        run = muntin.train(
            "instance",
            images,
            val=images,
            out=options.out or Path(folder) / "run",
            head=options.head,
            weights="none",
            img_size=options.img_size,
            batch_size=options.batch_size,
            max_time_s=60 * options.minutes,
            settings=SETTINGS,
        )
        figures = {name: run.metrics[name] for name in FIGURES}
    content = {
        **record.environment(),
        "what": "overfitting 20 photographs of coco_mini, scored on the training images",
        "settings": {**SETTINGS, "img_size": options.img_size, "batch_size": options.batch_size},
        "head": options.head,
        "epochs": run.epochs,
        "seconds": round(time.monotonic() - begun, 1),
        **figures,
    }
    print(json.dumps(content, indent=2))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    device = "gpu" if "cores of" not in record.device_name() else f"cpu{cores}"
    print(record.write("memorise", device, content))


def take(source: Path, folder: Path, count: int) -> Path:
    """Copy the first annotated images of the training split."""
    name = "annotations/instances_train2017.json"
    values = json.loads((source / name).read_text(encoding="utf-8"))
    annotated = {one["image_id"] for one in values["annotations"]}
    values["images"] = [one for one in values["images"] if one["id"] in annotated][:count]
    wanted = {one["id"] for one in values["images"]}
    values["annotations"] = [one for one in values["annotations"] if one["image_id"] in wanted]
    for part in ("annotations", "train2017"):
        (folder / part).mkdir(parents=True)
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    for one in values["images"]:
        shutil.copy(source / "train2017" / one["file_name"], folder / "train2017")
    return folder


if __name__ == "__main__":
    main()
