# SPDX-License-Identifier: Apache-2.0
"""Small generated sets of images with five bands of 16 bits, as instruments have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.deep_files import tiff

BANDS = 5
CLASSES = ("dry", "wet")


def values_of(class_id: int, number: int, size=(16, 16)) -> np.ndarray:
    """(H, W, 5) uint16 near 3000; only the last band tells the class."""
    rng = np.random.default_rng([class_id, number])
    values = 3000 + rng.integers(0, 400, (*size, BANDS))
    values[..., 4] += 600 * class_id
    return values.astype(np.uint16)


def write_bands(folder: Path, *, each: int = 6) -> Path:
    """Class folders."""
    for class_id, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            (folder / name / f"{number}.tif").write_bytes(tiff(values_of(class_id, number)))
    return folder


def scene_of(number: int, size=(64, 64)) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Values, labels and box of one rectangle that the last band alone shows."""
    rng = np.random.default_rng(number)
    top, left = rng.integers(4, 24, 2).tolist()
    high, wide = rng.integers(20, 34, 2).tolist()
    values = values_of(0, number, size)
    values[top : top + high, left : left + wide, 4] += 600
    labels = np.zeros(size, np.uint8)
    labels[top : top + high, left : left + wide] = 1
    return values, labels, [left, top, wide, high]


def write_maps_of_bands(folder: Path, *, count: int = 8) -> Path:
    """Images and masks."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        values, labels, _ = scene_of(number)
        (folder / "images" / f"{number}.tif").write_bytes(tiff(values))
        Image.fromarray(labels).save(folder / "masks" / f"{number}.png")
    (folder / "classes.txt").write_text("ground\nfield\n")
    return folder


def write_boxes_of_bands(folder: Path, *, count: int = 8) -> Path:
    """A COCO data set with boxes, masks and four keypoints, the corners."""
    (folder / "train").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, rows = [], []
    for number in range(count):
        values, _, (left, top, wide, high) = scene_of(number)
        (folder / "train" / f"{number}.tif").write_bytes(tiff(values))
        images.append({"id": number, "file_name": f"{number}.tif", "height": 64, "width": 64})
        right, bottom = left + wide, top + high
        corners = [left, top, right, top, right, bottom, left, bottom]
        points = [v for x, y in zip(corners[::2], corners[1::2], strict=True) for v in (x, y, 2)]
        rows.append({
            "id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0,
            "area": wide * high, "bbox": [left, top, wide, high], "segmentation": [corners],
            "keypoints": points, "num_keypoints": 4,
        })  # fmt: skip
    category = {"id": 1, "name": "field", "keypoints": list("abcd"), "skeleton": [[1, 2]]}
    values = {"images": images, "annotations": rows, "categories": [category]}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(values))
    return folder
