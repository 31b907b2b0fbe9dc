# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of the tutorials: training images with their annotations, of generated data.

``python docs/pictures/make_tutorials.py [TASK]...`` in the root of the repository. A picture is the
``batch.png`` of a run, which a training draws before its first step; so one short epoch is enough.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import muntin
from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps

HERE = Path(__file__).resolve().parent
WIDTH = 900  # pixels; wide enough to read the names on a phone
_SCENES: dict[str, Any] = {"num_train": 12, "num_val": 2, "size": (128, 160), "max_objects": 4}
DATA: dict[str, Callable[[Path], object]] = {
    "classify": partial(write_classify, num_train_per_class=4, num_val_per_class=1, size=(64, 64)),
    "detect": partial(write_coco, **_SCENES),
    "instance": partial(write_coco, **_SCENES),
    "semantic": partial(write_maps, **_SCENES),
    "pose": partial(write_frames, num_train=12, num_val=2, size=(128, 128)),
}


def make(task: str) -> None:
    """Write ``tutorial_TASK.jpg``."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder, "data"), Path(folder, "run")
        DATA[task](data)
        size = (64, 64) if task == "classify" else (128, 160)
        options: dict[str, Any] = {"weights": "none", "img_size": size, "batch_size": 4}
        muntin.train(task, data, **options, epochs=1, precision="fp32", out=run)
        sheet = Image.open(run / "pictures" / "batch.png").convert("RGB")
    sheet.thumbnail((WIDTH, WIDTH))
    sheet.save(HERE / f"tutorial_{task}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or DATA:
        make(name)
