# SPDX-License-Identifier: Apache-2.0
"""Memory and time of prediction on large images, and what windows cost in accuracy.

``tiling``: a small Mask R-CNN is trained for a minute on generated scenes; images of several sizes
are laid out with such scenes, so that the number of objects grows with the area as well.

``large_maps``: a segmenter is trained for two minutes on generated images of two classes, light
discs and boxes on dark ground, with noise. (The same two minutes on the scenes of the demo, where
things are partly covered and have any colour that the ground may have, are a second figure.) It
predicts an image of 12,000 x 9,000 pixels; and images that can be seen at once are seen at once
and in windows, and scored.

Each prediction of a large image runs in a process of its own, whose peak resident memory is read.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image, ImageDraw

import muntin
from muntin.benching.result_rows import summarize
from muntin.devices import peak_mib
from muntin.metrics.class_metrics import SemanticMetric
from muntin.synthetic.datasets import write_coco, write_maps
from muntin.synthetic.scenes import make_scene

Size = tuple[int, int]
Array = np.ndarray[Any, Any]
TILING_SIZES = ((750, 1000), (1500, 2000), (3000, 4000))
TILE = 256
MAP_SIZE = (9000, 12000)
MINUTES = 2
SIDE = 128
CLASSES = ("ground", "thing")


def main() -> None:
    """Measure and write the results."""
    options = record.options(__doc__, topics=tuple(TOPICS), repeat=3)
    for topic in options.topics:
        with tempfile.TemporaryDirectory() as folder:
            content = TOPICS[topic](Path(folder), options.repeat)
        record.save(topic, content)


def measure_tiling(folder: Path, repeat: int) -> dict[str, Any]:
    """Instance segmentation in tiles: one row per size."""
    write_coco(folder / "data", num_train=200, num_val=20, size=(TILE, TILE), max_objects=6)
    record.train_and_score("instance", folder / "data", folder / "data", folder / "run", 1)
    rows = []
    for size in TILING_SIZES:
        path = folder / f"{size[0]}.png"
        lay_out(size, TILE, scene_at)[0].save(path)
        arguments = {"select": {"max_detections": 1000}}, {"tile": TILE}
        answers = [record.alone(predict, folder / "run", path, *arguments) for _ in range(repeat)]
        row = {"size": list(size), "megapixels": size[0] * size[1] / 1e6}
        rows.append({**row, **summarized(answers), "objects": answers[0]["objects"]})
    what = f"instance segmentation in tiles of {TILE} pixels: wall time, peak memory"
    return {"what": what, "rows": rows}


def measure_maps(folder: Path, repeat: int) -> dict[str, Any]:
    """Semantic segmentation: accuracy, a large image, and windows."""
    plain, scenes, run = plain_set(folder / "plain"), scene_set(folder / "scenes"), folder / "run"
    ours, _ = record.train_and_score("semantic", plain, plain, run, MINUTES)
    harder, _ = record.train_and_score("semantic", scenes, scenes, folder / "harder", MINUTES)
    path = folder / "large.png"
    lay_out(MAP_SIZE, SIDE, random_plain_scenes())[0].save(path, compress_level=1)
    answers = [record.alone(predict, run, path, {}, {}) for _ in range(repeat)]
    return {
        "what": "maps of two classes: from scratch, then a large image, then windows",
        "muntin_command": f"muntin train semantic DATA --weights none --max-time {MINUTES}m",
        "train_seconds": ours["wall_seconds"],
        "miou": ours["test"]["miou"],
        "miou_scenes": harder["test"]["miou"],
        "size": list(MAP_SIZE),
        **summarized(answers),
        "windows": compare_windows(run),
    }


TOPICS = {"tiling": measure_tiling, "large_maps": measure_maps}


def predict(
    run: Path, image: Path, loading: dict[str, Any], calling: dict[str, Any]
) -> dict[str, float]:
    """Predict once, and measure time and peak memory."""
    predictor = muntin.load(run, **loading)
    begun = time.perf_counter()
    found = predictor(image, **calling)[0]
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "objects": len(found) if hasattr(found, "boxes") else 0,
    }


def summarized(answers: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Time and peak memory of equal predictions."""
    keys = ("seconds", "peak_mib")
    return {key: summarize([one[key] for one in answers]) for key in keys}


def compare_windows(run: Path) -> dict[str, Any]:
    """Score images that are seen at once and in windows."""
    predictor = muntin.load(run)
    metrics = {name: SemanticMetric(CLASSES) for name in ("at once", "in windows")}
    same = []
    for number in range(4):
        image, labels = lay_out((7 * SIDE + number, 9 * SIDE), SIDE, random_plain_scenes())
        pixels = np.asarray(image)
        whole = predictor(pixels, tile=max(pixels.shape))[0]
        parts = predictor(pixels, tile=2 * SIDE)[0]
        metrics["at once"].update([whole], [labels])
        metrics["in windows"].update([parts], [labels])
        same.append(float((whole.labels == parts.labels).mean()))
    return {
        "size": [7 * SIDE, 9 * SIDE],
        "window": 2 * SIDE,
        "same_pixels": summarize(same),
        **{f"miou {name}": metric.compute()["miou"] for name, metric in metrics.items()},
    }


def lay_out(
    size: Size, side: int, scene: Callable[[int, int], tuple[Array, Array]]
) -> tuple[Image.Image, Array]:
    """An image made of scenes by their corner, and the class of each pixel."""
    pixels, labels = np.zeros((*size, 3), np.uint8), np.zeros(size, np.int16)
    for top, left in itertools.product(range(0, size[0], side), range(0, size[1], side)):
        place = slice(top, top + side), slice(left, left + side)
        image, things = scene(top, left)
        high, wide = labels[place].shape
        pixels[place], labels[place] = image[:high, :wide], things[:high, :wide]
    return Image.fromarray(pixels), labels


def scene_at(top: int, left: int) -> tuple[Array, Array]:
    """A scene of the demo; its classes are not used."""
    image = make_scene(1, top * 100 + left, size=(TILE, TILE), max_objects=6).image
    return image, np.zeros((TILE, TILE), np.int16)


def random_plain_scenes() -> Callable[[int, int], tuple[Array, Array]]:
    """Plain scenes in random order."""
    scenes, order = [plain_scene(number) for number in range(64)], np.random.default_rng(0)
    return lambda top, left: scenes[order.integers(len(scenes))]


def plain_scene(number: int) -> tuple[Array, Array]:
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
    write_maps(folder, num_train=200, num_val=40, size=(SIDE, SIDE), max_objects=5)
    for path in folder.rglob("masks/**/*.png"):
        labels = np.minimum(np.asarray(Image.open(path)), 1).astype(np.uint8)
        Image.fromarray(labels).save(path)
    (folder / "classes.txt").write_text("ground\nthing\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    main()
