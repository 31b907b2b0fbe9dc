# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of the tutorials: ground truth and predictions of the demos.

``python docs/pictures/make_tutorials.py RUNS [SECONDS]`` in the root of the repository. RUNS is a
folder for the demos, as for ``make_tasks.py``; those that are not in it are run first, each for
minutes, or for SECONDS of training. What they generate is easy: the pictures show what to look at.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import muntin

HERE = Path(__file__).resolve().parent
TASKS = ("classify", "detect", "instance", "semantic", "pose")
WIDTH = 1000  # pixels; wide enough to read the names on a phone
ROWS = 0.53  # of a sheet of pairs: its title and two of its four rows


def main() -> None:
    """Write ``tutorial_TASK.jpg`` for each task, from the sheet that a demo draws."""
    for task in TASKS:
        folder = Path(sys.argv[1]) / f"demo-{task}"
        if not (folder / "run").exists():
            muntin.demo(task, out=folder, max_time_s=float(sys.argv[2]) if sys.argv[2:] else 0.0)
        sheet = Image.open(folder / "run" / "pictures" / "predictions.png").convert("RGB")
        rows = 1.0 if task == "classify" else ROWS
        sheet = sheet.crop((0, 0, sheet.width, round(rows * sheet.height)))
        sheet.thumbnail((WIDTH, WIDTH))
        sheet.save(HERE / f"tutorial_{task}.jpg", quality=80, optimize=True)


if __name__ == "__main__":
    main()
