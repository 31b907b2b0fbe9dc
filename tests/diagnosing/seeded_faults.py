# SPDX-License-Identifier: Apache-2.0
"""Small generated data sets, each with one fault that people's sets have, and its code."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from muntin.synthetic.datasets import write_classify, write_coco, write_frames, write_maps

SIZE = (64, 64)


class Seeded(NamedTuple):
    """A fault: the code that names it, the task, and what writes a set with it."""

    code: str
    task: str
    write: Callable[[Path], Any]


def coco(
    change: Callable[[list[dict[str, Any]], dict[str, Any]], object],
    parts: tuple[str, ...] = ("train", "val"),
    *,
    num_train: int = 30,
    size: tuple[int, int] = SIZE,
) -> Callable[[Path], None]:
    """A COCO set whose annotations, and file, `change` changes."""

    def write(folder: Path) -> None:
        write_coco(folder, num_train=num_train, num_val=12, max_objects=2, size=size)
        for part in parts:
            path = folder / "annotations" / f"instances_{part}.json"
            values = json.loads(path.read_text())
            for row in values["annotations"]:
                row.pop("segmentation"), row.pop("area")
            change(values["annotations"], values)
            path.write_text(json.dumps(values))

    return write


def boxes(change: Callable[..., list[float]], **options: Any) -> Callable[[Path], None]:
    """A COCO set each of whose boxes (x, y, width, height) is changed."""

    def each(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
        for row in rows:
            row["bbox"] = change(*row["bbox"])

    return coco(each, **options)


def yolo(row_of: Callable[..., str]) -> Callable[[Path], None]:
    """A YOLO set; `row_of` class number and centre x, centre y, width, height as fractions."""

    def write(folder: Path) -> None:
        write_coco(folder / "coco", num_train=30, num_val=12, max_objects=2, size=SIZE)
        for part in ("train", "val"):
            values = json.loads((folder / f"coco/annotations/instances_{part}.json").read_text())
            shutil.copytree(folder / "coco" / part, folder / "images" / part)
            (folder / "labels" / part).mkdir(parents=True)
            for image in values["images"]:
                lines = []
                for row in values["annotations"]:
                    if row["image_id"] == image["id"]:
                        x, y, w, h = np.array(row["bbox"]) / SIZE[0]
                        lines.append(row_of(row["category_id"] - 1, x + w / 2, y + h / 2, w, h))
                name = Path(image["file_name"]).with_suffix(".txt")
                (folder / "labels" / part / name).write_text("\n".join(lines) + "\n")
        names = [one["name"] for one in values["categories"]]
        text = f"train: images/train\nval: images/val\nnames: {json.dumps(names)}\n"
        (folder / "data.yaml").write_text(text)
        shutil.rmtree(folder / "coco")

    return write


def masks(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """A set of masks, each of which is changed."""

    def write(folder: Path) -> None:
        write_maps(folder, num_train=30, num_val=12, size=SIZE, max_objects=3)
        for path in (folder / "masks").rglob("*.png"):
            Image.fromarray(change(np.asarray(Image.open(path)))).save(path)

    return write


def frames(change: Callable[[float, float], tuple[float, float]]) -> Callable[[Path], None]:
    """A set of keypoints, each of which is changed."""

    def write(folder: Path) -> None:
        write_frames(folder, num_train=60, num_val=12, size=SIZE, max_angle=0.3)
        for path in folder.rglob("*.csv"):
            head, rows = [], []
            for number, row in enumerate(csv.reader(path.read_text().splitlines())):
                (head if number < 3 else rows).append(row)
            for row in rows:
                for place in range(1, len(row), 2):
                    if row[place]:
                        x, y = change(float(row[place]), float(row[place + 1]))
                        row[place : place + 2] = [f"{x:.2f}", f"{y:.2f}"]
            path.write_text("".join(",".join(row) + "\n" for row in [*head, *rows]))

    return write


def images(
    change: Callable[[np.ndarray], np.ndarray], parts: tuple[str, ...] = ("train", "val")
) -> Callable[[Path], None]:
    """Folders of classes, each of whose images is changed."""

    def write(folder: Path) -> None:
        write_classify(folder, num_train_per_class=6, num_val_per_class=3, size=(32, 32))
        for part in parts:
            for path in (folder / part).rglob("*.*g"):
                Image.fromarray(change(np.asarray(Image.open(path)))).save(path)

    return write


def _tint(pixels: np.ndarray) -> np.ndarray:
    return (pixels * [1.0, 0.8, 0.5]).astype(np.uint8)


def _swap_channels(folder: Path) -> None:
    images(_tint)(folder)
    for path in (folder / "val").rglob("*.*g"):
        Image.fromarray(np.asarray(Image.open(path))[..., ::-1]).save(path)


def _copy_with_other_class(folder: Path) -> None:
    write_classify(folder, num_train_per_class=5, num_val_per_class=2, size=(32, 32))
    for path in (folder / "train" / "disc").iterdir():
        shutil.copy(path, folder / "train" / "star" / f"copy{path.name}")


def _forget_class(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    rows[:] = [row for row in rows if row["category_id"] != 2]


def _rotate_images(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    """As boxes of the other image: each image gets the annotations of the next but four."""
    for row in rows:
        row["image_id"] = (row["image_id"] + 4) % len(values["images"]) + 1


def _pairs(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    names = ["left_eye", "right_eye", "left_ear", "right_ear", "left_hip", "right_hip"]
    for one in values["categories"]:
        one["keypoints"], one["skeleton"] = names, []
    for row in rows:
        x, y, w, h = row["bbox"]
        left, right = x + 0.25 * w, x + 0.75 * w
        ends = [(left, right), (right, left), (left, right)]  # the ears
        points = [(end, y + h * (0.2 + 0.3 * n), 2) for n, pair in enumerate(ends) for end in pair]
        row["keypoints"] = [number for point in points for number in point]
        row["num_keypoints"] = 6


def _shift_points(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    for row in rows:  # of the box rather than of the image
        x, y, _, _ = row["bbox"]
        points = np.array(row["keypoints"]).reshape(-1, 3) - [x + 40, y + 40, 0]
        row["keypoints"] = points.clip(0).ravel().tolist()


def _fractions_of_points(rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    for row in rows:
        points = np.array(row["keypoints"]).reshape(-1, 3) / [64, 64, 1]
        row["keypoints"] = points.ravel().tolist()


def _to_masks_of_next(folder: Path) -> None:
    masks(lambda m: m)(folder)
    paths = sorted((folder / "masks" / "train").iterdir())
    every = [path.read_bytes() for path in paths]
    for path, data in zip(paths, every[5:] + every[:5], strict=True):
        path.write_bytes(data)


W = SIZE[1]
DATA_FAULTS: dict[str, Seeded] = {
    "COCO boxes as fractions": Seeded(
        "units", "detect", boxes(lambda x, y, w, h: [x / W, y / W, w / W, h / W])
    ),
    "COCO boxes as two corners": Seeded(
        "units", "detect", boxes(lambda x, y, w, h: [x, y, x + w, y + h])
    ),
    "YOLO boxes in pixels": Seeded(
        "units",
        "detect",
        yolo(lambda c, x, y, w, h: f"{c} {W * x:.1f} {W * y:.1f} {W * w:.1f} {W * h:.1f}"),
    ),
    "keypoints as fractions": Seeded("units", "pose", coco(_fractions_of_points)),
    "YOLO classes from 1": Seeded(
        "class-range", "detect", yolo(lambda c, x, y, w, h: f"{c + 1} {x} {y} {w} {h}")
    ),
    "mask values three too high": Seeded("class-range", "semantic", masks(lambda m: m + 3)),
    "COCO centres as corners": Seeded(
        "centre-as-corner", "detect", boxes(lambda x, y, w, h: [x + w / 2, y + h / 2, w, h])
    ),
    "YOLO corners as centres": Seeded(
        "corner-as-centre",
        "detect",
        yolo(lambda c, x, y, w, h: f"{c} {x - w / 2} {y - h / 2} {w} {h}"),
    ),
    "boxes of images half as large": Seeded(
        "scaled", "detect", boxes(lambda *box: [number / 2 for number in box])
    ),
    "boxes of images twice as large": Seeded(
        "boxes-outside", "detect", boxes(lambda *box: [number * 2 for number in box])
    ),
    "boxes of mirrored images": Seeded(
        "mirrored", "detect", boxes(lambda x, y, w, h: [W - x - w, y, w, h])
    ),
    "boxes beside the EXIF orientation": Seeded(
        "turned", "detect", boxes(lambda x, y, w, h: [y, W - x - w, h, w])
    ),
    "boxes as y, x, height, width": Seeded(
        "axes", "detect", boxes(lambda x, y, w, h: [y, x, h, w], size=(64, 80))
    ),
    "boxes of other images": Seeded("other-images", "detect", coco(_rotate_images)),
    "nothing annotated in validation": Seeded(
        "empty-validation", "detect", coco(lambda rows, _: rows.clear(), ("val",))
    ),
    "masks of mirrored images": Seeded("mirrored", "semantic", masks(np.fliplr)),
    "masks beside the EXIF orientation": Seeded("turned", "semantic", masks(np.rot90)),
    "masks of background only": Seeded("one-class-masks", "semantic", masks(np.zeros_like)),
    "masks of the ignored value only": Seeded(
        "ignored-masks", "semantic", masks(lambda m: np.where(m < 9, np.uint8(255), m))
    ),
    "masks of other images": Seeded("other-images", "semantic", _to_masks_of_next),
    "keypoints from the corner of the box": Seeded("keypoints-apart", "pose", coco(_shift_points)),
    "ears swapped": Seeded("left-right", "pose", coco(_pairs)),
    "keypoints all equal": Seeded("keypoints-constant", "pose", frames(lambda x, y: (9.0, 9.0))),
    "keypoints of mirrored images": Seeded(
        "mirrored", "pose", frames(lambda x, y: (W - 1 - x, y))
    ),
    "validation in BGR": Seeded("channels", "classify", _swap_channels),
    "black images": Seeded("blank-images", "classify", images(np.zeros_like)),
    "copies with another class": Seeded("conflicting-labels", "classify", _copy_with_other_class),
    "a class in validation only": Seeded(
        "unseen-classes", "detect", coco(_forget_class, ("train",), num_train=20)
    ),
}  # fmt: skip
