# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of the tutorials: ground truth and predictions of short demos.

``python docs/pictures/make_tutorials.py [TASK]...`` in the root of the repository; about two minutes
a task on two cores. What the demos generate is easy; the pictures show what a reader looks at.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

import muntin

HERE = Path(__file__).resolve().parent
TASKS = ("classify", "detect", "instance", "semantic", "pose")
SECONDS = 90
WIDTH = 1000  # pixels; wide enough to read the names on a phone


def make(task: str) -> Path:
    """Run a demo, and keep its sheet of predictions as a small file."""
    with tempfile.TemporaryDirectory() as folder:
        run = muntin.demo(task, out=folder, max_time_s=SECONDS)
        sheet = Image.open(Path(run.path) / "pictures" / "predictions.png").convert("RGB")
    # Four of the pairs tell enough; classes are small and stay together.
    height = sheet.height if task == "classify" else sheet.height // 2
    sheet = sheet.crop((0, 0, sheet.width, height))
    sheet.thumbnail((WIDTH, WIDTH))
    path = HERE / f"tutorial_{task}.jpg"
    sheet.save(path, quality=80, optimize=True)
    return path


if __name__ == "__main__":
    for chosen in sys.argv[1:] or TASKS:
        print(make(chosen))
