# SPDX-License-Identifier: Apache-2.0
"""Can networks overfit a few photographs? If not, targets, losses, decoding or metrics are wrong.

``instance``: Mask R-CNN on a small Swin, from scratch, on the first 20 annotated images of
coco_mini's train part. ``pose``: the 16 persons with keypoints in its val part. Without
augmentation, scored on the same images.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import record

import muntin

COMMON = {
    "augment.scale": 0,
    "augment.flip": 0,
    "augment.jitter": 0,
    "train.ema_decay": 0.99,
    "train.weight_decay": 0.0,
    "machine.workers": 0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    # Many objects of photographs are small.
    "instance": {
        **COMMON,
        "augment.scale": "1,1",
        "head.anchor_scale": 4.0,
        "train.learning_rate": 1e-3,
    },
    "pose": {**COMMON, "augment.shift": 0, "augment.rotate": 0},
}
FIGURES = {
    "instance": ("box_ap", "box_ap50", "mask_ap", "mask_ap50", "num_images"),
    "pose": ("oks_ap", "oks_ap50", "oks_ap75", "pck", "mean_pixel_error"),
}
TOPICS = {"instance": "memorise", "pose": "pose_memorise"}
MINUTES = {"instance": 15.0, "pose": 5.0}


def main() -> None:
    """Train, score and write the results."""
    options = record.options(
        __doc__, tasks=tuple(SETTINGS), data=record.DATA, minutes=0.0, img_size=256, batch_size=2,
        head="mask_rcnn_small",
    )  # fmt: skip
    coco = Path(options.data) / "coco_mini"
    for task in options.tasks:
        settings, more = SETTINGS[task], {}
        with tempfile.TemporaryDirectory() as folder:
            data = coco / "annotations" / "person_keypoints_val2017.json"
            if task == "instance":
                data = take(coco, Path(folder) / "data", 20)
                sizes = {"img_size": options.img_size, "batch_size": options.batch_size}
                more = {"head": options.head, **sizes}
            begun = time.monotonic()
            run = muntin.train(
                task,
                data,
                val=data,
                out=Path(folder) / "run",
                weights="none",
                max_time_s=60 * (options.minutes or MINUTES[task]),
                settings=settings,
                **more,
            )
        content = {
            "what": f"overfitting photographs of coco_mini: {task}, scored on the training images",
            "settings": {**settings, **more},
            **({"head": options.head} if task == "instance" else {}),
            "epochs": run.epochs,
            "seconds": round(time.monotonic() - begun, 1),
            **{name: run.metrics[name] for name in FIGURES[task]},
        }
        record.save(TOPICS[task], content)


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
