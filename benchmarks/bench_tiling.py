# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Memory and time of prediction on large images, in tiles: bounded, and linear in the area.

A small Mask R-CNN is trained for a minute on generated scenes; images of several sizes are laid
out with such scenes, so that the number of objects grows with the area as well. Each size runs in
a process of its own, whose peak resident memory is read at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import record
from PIL import Image

SIZES = ((750, 1000), (1500, 2000), (3000, 4000))
TILE = 256


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        predict(*options.inside)
        return
    from muntin.synthetic.datasets import write_coco

    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", Path(folder) / "run"
        write_coco(data, num_train=200, num_val=20, size=(TILE, TILE), max_objects=6)
        command = ["train", "instance", data, "--weights", "none", "--max-time", "60s"]
        words = [sys.executable, "-m", "muntin", *map(str, command), "--out", str(run)]
        subprocess.run(words, check=True)
        rows = [measure(run, Path(folder), size, options.repeat) for size in SIZES]
    content = {
        **record.environment(),
        "what": f"instance segmentation in tiles of {TILE} pixels: wall time, peak memory",
        "rows": rows,
    }
    print(json.dumps(content, indent=2))
    print(record.write("tiling", "cpu2", content))


def measure(run: Path, folder: Path, size: tuple[int, int], repeat: int) -> dict[str, object]:
    """One size, in processes of its own."""
    path = folder / f"{size[0]}.png"
    lay_out(size).save(path)
    words = [sys.executable, __file__, "--inside", str(run), str(path)]
    answers = [
        json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        for _ in range(repeat)
    ]
    return {
        "size": list(size),
        "megapixels": size[0] * size[1] / 1e6,
        "seconds": record.spread([answer["seconds"] for answer in answers]),
        "peak_mib": record.spread([answer["peak_mib"] for answer in answers]),
        "objects": answers[0]["objects"],
    }


def lay_out(size: tuple[int, int]) -> Image.Image:
    """An image made of scenes."""
    from muntin.synthetic.scenes import make_scene

    canvas = np.zeros((*size, 3), np.uint8)
    for top in range(0, size[0], TILE):
        for left in range(0, size[1], TILE):
            scene = make_scene(1, top * 100 + left, size=(TILE, TILE), max_objects=6).image
            part = canvas[top : top + TILE, left : left + TILE]
            part[:] = scene[: part.shape[0], : part.shape[1]]
    return Image.fromarray(canvas)


def predict(run: str, image: str) -> None:
    """Predict once, and measure time and peak memory."""
    import muntin
    from muntin.devices import memory_mib

    predictor = muntin.load(run, select={"max_detections": 1000})
    before = memory_mib()
    begun = time.perf_counter()
    found = predictor(image, tile=TILE)[0]
    seconds = time.perf_counter() - begun
    answer = {"seconds": seconds, "peak_mib": memory_mib(), "before_mib": before}
    print(json.dumps({**answer, "objects": len(found)}))


if __name__ == "__main__":
    main()
