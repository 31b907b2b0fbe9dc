# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Maps of classes of large images: memory, seams, and what windows cost in accuracy.

A model is trained for two minutes on generated images of two classes, as a user would: light
discs and boxes on dark ground, with noise. (The same two minutes on the scenes of the demo, where
things are partly covered and have any colour that the ground may have, are a second figure.) A
image of 12,000 x 9,000 pixels is then predicted in a process of its own, whose peak resident
memory is read at the end; and images that can be seen at once are seen at once and in windows,
and scored.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image, ImageDraw

MINUTES = 2
SIDE = 128


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="9000x12000")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--inside", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(predict(*options.inside)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        figures, seconds = learn(plain_set(folder / "plain"), run)
        harder, _ = learn(scene_set(folder / "scenes"), folder / "harder")
        high, wide = (int(side) for side in options.size.split("x"))
        lay_out(high, wide)[0].save(folder / "large.png", compress_level=1)
        answers = [inside(run, folder / "large.png") for _ in range(options.repeat)]
        tiled = compare(run, folder)
    content = {
        **record.environment(),
        "what": "maps of two classes: from scratch, then a large image, then windows",
        "muntin_command": f"muntin train semantic DATA --weights none --max-time {MINUTES}m",
        "train_seconds": round(seconds, 1),
        "miou": figures["miou"],
        "miou_scenes": harder["miou"],
        "size": [high, wide],
        "seconds": record.spread([one["seconds"] for one in answers]),
        "peak_mib": record.spread([one["peak_mib"] for one in answers]),
        "windows": tiled,
    }
    print(json.dumps(content, indent=2))
    print(record.write("large_maps", f"cpu{os.cpu_count()}", content))


def learn(data: Path, run: Path) -> tuple[dict[str, Any], float]:
    """Train as a user does, and score."""
    words = ["train", "semantic", data, "--weights", "none", "--max-time", f"{MINUTES}m"]
    begun = time.monotonic()
    record.muntin(*words, "--out", run)
    seconds = time.monotonic() - begun
    figures: dict[str, Any] = json.loads(record.muntin("eval", run, data, "--json", keep=True))
    return figures, seconds


def plain_scene(number: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Light discs and boxes on dark ground, with noise; and what is thing."""
    rng = np.random.default_rng([7, number])
    labels = Image.new("L", (SIDE, SIDE))
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(20, 110, 3).tolist()))
    for _ in range(int(rng.integers(1, 6))):
        sides = rng.integers(12, 48, 2)
        left, top = (rng.integers(0, SIDE - sides)).tolist()
        box = (left, top, left + int(sides[0]), top + int(sides[1]))
        shape = "ellipse" if rng.random() < 0.5 else "rectangle"
        colour = tuple(rng.integers(130, 240, 3).tolist())
        getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
        getattr(ImageDraw.Draw(labels), shape)(box, fill=1)
    noisy = np.asarray(image) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return noisy.clip(0, 255).astype(np.uint8), np.asarray(labels)


def plain_set(folder: Path) -> Path:
    """200 plain scenes to learn from and 40 others to score on."""
    for part, numbers in (("train", range(64, 264)), ("val", range(264, 304))):
        for place in (folder / "images" / part, folder / "masks" / part):
            place.mkdir(parents=True)
        for number in numbers:
            pixels, labels = plain_scene(number)
            Image.fromarray(pixels).save(folder / "images" / part / f"{number}.png")
            Image.fromarray(labels).save(folder / "masks" / part / f"{number}.png")
    (folder / "classes.txt").write_text("ground\nthing\n", encoding="utf-8")
    return folder


def scene_set(folder: Path) -> Path:
    """The scenes of the demo, every object of one class."""
    from muntin.synthetic.datasets import write_maps

    write_maps(folder, num_train=200, num_val=40, size=(SIDE, SIDE), max_objects=5)
    for path in folder.rglob("masks/**/*.png"):
        labels = np.minimum(np.asarray(Image.open(path)), 1).astype(np.uint8)
        Image.fromarray(labels).save(path)
    (folder / "classes.txt").write_text("ground\nthing\n", encoding="utf-8")
    return folder


def lay_out(high: int, wide: int) -> tuple[Image.Image, np.ndarray[Any, Any]]:
    """An image made of plain scenes, and the class of each pixel."""
    scenes = [plain_scene(number) for number in range(64)]
    pixels = np.zeros((high, wide, 3), np.uint8)
    labels = np.zeros((high, wide), np.int16)
    order = np.random.default_rng(0)
    for top in range(0, high, SIDE):
        for left in range(0, wide, SIDE):
            image, things = scenes[order.integers(len(scenes))]
            part = pixels[top : top + SIDE, left : left + SIDE]
            part[:] = image[: part.shape[0], : part.shape[1]]
            labels[top : top + SIDE, left : left + SIDE] = things[: part.shape[0], : part.shape[1]]
    return Image.fromarray(pixels), labels


def inside(run: Path, image: Path) -> dict[str, float]:
    """Predict in a process of its own."""
    words = [sys.executable, __file__, "--inside", str(run), str(image)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def predict(run: str, image: str) -> dict[str, float]:
    """Predict once, and measure time and peak memory."""
    import muntin
    from muntin.devices import memory_mib

    predictor = muntin.load(run)
    begun = time.perf_counter()
    found = predictor(image)[0]
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak_mib": memory_mib(), "pixels": found.labels.size}


def compare(run: Path, folder: Path) -> dict[str, Any]:
    """Score images that are seen at once and in windows."""
    import muntin
    from muntin.metrics.semantic_metric import SemanticMetric

    predictor = muntin.load(run)
    metrics = {"at once": SemanticMetric(("ground", "thing"))}
    metrics["in windows"] = SemanticMetric(("ground", "thing"))
    same = []
    for number in range(4):
        image, labels = lay_out(7 * SIDE + number, 9 * SIDE)
        pixels = np.asarray(image)
        whole = predictor(pixels, tile=max(pixels.shape))[0]
        parts = predictor(pixels, tile=2 * SIDE)[0]
        metrics["at once"].update([whole], [labels])
        metrics["in windows"].update([parts], [labels])
        same.append(float((whole.labels == parts.labels).mean()))
    return {
        "size": [7 * SIDE, 9 * SIDE],
        "window": 2 * SIDE,
        "same_pixels": record.spread(same),
        **{f"miou {name}": metric.compute()["miou"] for name, metric in metrics.items()},
    }


if __name__ == "__main__":
    main()
