# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Can a pose estimator overfit 16 persons? If not, crops, encoding or metrics are wrong.

The persons with keypoints in coco_mini's val part, from scratch, without augmentation, scored on
themselves with COCO's tolerances.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import record

import muntin

SETTINGS = {
    "augment.scale": 0,
    "augment.shift": 0,
    "augment.rotate": 0,
    "augment.flip": 0,
    "augment.jitter": 0,
    "train.ema_decay": 0.99,
    "train.weight_decay": 0.0,
    "machine.workers": 0,
}


def main() -> None:
    """Train, score and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    data = os.environ.get("MUNTIN_DATA", str(record.ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", default=data, help="folder that holds coco_mini")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--out", default="", help="keep the run folder here")
    options = parser.parse_args()
    file = Path(options.data) / "coco_mini" / "annotations" / "person_keypoints_val2017.json"
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        run = muntin.train(
            "pose",
            file,
            val=file,
            out=options.out or Path(folder) / "run",
            weights="none",
            max_time_s=60 * options.minutes,
            settings=SETTINGS,
        )
        figures = {
            name: run.metrics[name]
            for name in ("oks_ap", "oks_ap50", "oks_ap75", "pck", "mean_pixel_error")
        }
    content = {
        **record.environment(),
        "what": "overfitting 16 persons of coco_mini, scored on the training images",
        "settings": SETTINGS,
        "epochs": run.epochs,
        "seconds": round(time.monotonic() - begun, 1),
        **figures,
    }
    print(json.dumps(content, indent=2))
    print(record.write("pose_memorise", f"cpu{os.cpu_count()}", content))


if __name__ == "__main__":
    main()
