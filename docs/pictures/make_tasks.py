# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of README: an answer of the model that `muntin demo TASK` trains.

``python docs/pictures/make_tasks.py RUNS`` in the root of the repository. RUNS is a folder for the
demos; those that are not in it are run first, which takes minutes each. The images are generated
ones that the model has not seen.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import muntin
from muntin.synthetic.scenes import make_scene

HERE = Path(__file__).resolve().parent
WIDTH = 560  # pixels; README shows them half as wide
SEED = 11  # of none of the demos
SCENES = {
    "classify": (0, (64, 64), 1),
    "detect": (1, (128, 160), 4),
    "instance": (1, (128, 160), 4),
    "semantic": (1, (128, 160), 4),
    "pose": (2, (128, 128), 1),
}
"""Number of the scene of each task, its height and width, and the most objects in it."""


def main() -> None:
    """Write ``task_TASK.png`` for each task."""
    for task, (number, size, most) in SCENES.items():
        folder = Path(sys.argv[1]) / f"demo-{task}"
        if not (folder / "run").exists():
            muntin.demo(task, out=folder, max_time_s=float(sys.argv[2]) if sys.argv[2:] else 0.0)
        looks = {"max_angle": 0.5, "usual_colours": 0.9}
        pixels = make_scene(SEED, number, size=size, max_objects=most, **looks).image
        (result,) = muntin.load(folder / "run")(pixels)
        drawn = muntin.draw(pixels, result).convert("RGB")
        drawn = drawn.resize(
            (WIDTH, round(WIDTH * drawn.height / drawn.width)), Image.Resampling.LANCZOS
        )
        small = drawn.quantize(128, method=Image.Quantize.MEDIANCUT)
        small.save(HERE / f"task_{task}.png", optimize=True)


if __name__ == "__main__":
    main()
