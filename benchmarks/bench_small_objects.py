# SPDX-License-Identifier: Apache-2.0
"""Objects of 4 to 11 pixels: the default detector beside FCOS, its predecessor, in equal time.

The images are generated: discs, squares and crosses of weak contrast on noise, 20 to 40 in each
image of 320 x 320 pixels. Both heads are trained as a user does it, with nothing named but the
head.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import record
from PIL import Image

SIZE = 320
NAMES = ("disc", "square", "cross")
HEADS = ("", "fcos_small")


def main() -> None:
    """Train and score both."""
    options = record.options(__doc__, minutes=10.0, train=160, test=60, out="")
    with tempfile.TemporaryDirectory() as folder:
        data = write_set(Path(folder) / "specks", options.train, options.test)
        results = {}
        for head in HEADS:
            run = Path(options.out or folder).resolve() / (head or "default")
            more = ("--head", head) if head else ()
            scored, config = record.train_and_score(
                "detect", data, data, run, options.minutes, options=more
            )
            test = {name: scored["test"][name] for name in ("box_ap", "box_ap50", "num_images")}
            finest = config["head"]["neck"]["finest"]
            results[head or "default"] = {**scored, "test": test, "finest": finest}
    content = {
        "what": f"objects of 4 to 11 pixels, from scratch, {options.minutes:g} minutes each",
        "minutes": options.minutes,
        **results,
    }
    record.save("detection_small", content, ("faster-coco-eval",))


def write_set(folder: Path, num_train: int, num_val: int) -> Path:
    """Write a COCO data set of small objects."""
    for part, count, seed in (("train", num_train, 0), ("val", num_val, 1)):
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for number in range(count):
            pixels, boxes = make_image(np.random.default_rng([seed, number]))
            name = f"{number:04d}.png"
            Image.fromarray(pixels).save(folder / part / name)
            images.append({"id": number, "file_name": name, "height": SIZE, "width": SIZE})
            for class_id, (left, top, side) in boxes:
                annotations.append({
                    "id": len(annotations), "image_id": number, "category_id": class_id + 1,
                    "bbox": [left, top, side, side], "area": side * side, "iscrowd": 0,
                })  # fmt: skip
        categories = [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)]
        values = {"images": images, "annotations": annotations, "categories": categories}
        file = folder / "annotations" / f"instances_{part}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(values))
    return folder


def make_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, list[int]]]]:
    """An image and its objects: class, and left, top and side in pixels."""
    values = rng.normal(110, 18, (SIZE, SIZE, 3)) + rng.normal(0, 25, 3)
    boxes: list[tuple[int, list[int]]] = []
    free = np.ones((SIZE, SIZE), bool)
    for _ in range(int(rng.integers(20, 41))):
        side, class_id = int(rng.integers(4, 12)), int(rng.integers(len(NAMES)))
        left, top = (int(v) for v in rng.integers(1, SIZE - side - 1, 2))
        place = np.s_[top : top + side, left : left + side]
        if not free[place].all():
            continue
        free[place] = False
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        arm = max(1.0, side / 6)
        shape = (np.hypot(x, y) <= side / 2, x == x, (np.abs(x) <= arm) | (np.abs(y) <= arm))
        values[place] += shape[class_id][..., None] * (rng.uniform(35, 80) * rng.choice((-1, 1)))
        boxes.append((class_id, [left, top, side]))
    return values.clip(0, 255).astype(np.uint8), boxes


if __name__ == "__main__":
    main()
