# SPDX-License-Identifier: Apache-2.0
"""Data sets of generated scenes, written in the layouts in which people have theirs.

`num_train` images are to learn from, `num_val` other ones to check with; every fourth is a PNG, the
others are JPEGs. Files of the same names are overwritten. Other arguments are those of
`make_scene`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from PIL import Image

from muntin.run_lengths import encode_mask
from muntin.shapes import Size
from muntin.synthetic.scenes import CLASS_NAMES, KEYPOINT_NAMES, Scene, SceneObject, make_scene

Folder = str | os.PathLike[str]

_SKELETON = {
    "supercategory": "shape",
    "keypoints": list(KEYPOINT_NAMES),
    "skeleton": [[1, tip] for tip in range(2, len(KEYPOINT_NAMES) + 1)],
}


class SceneOptions(TypedDict, total=False):
    """How scenes look; see `make_scene`."""

    size: Size
    max_angle: float
    usual_colours: float


def write_classify(
    folder: Folder,
    *,
    num_train_per_class: int,
    num_val_per_class: int,
    seed: int = 0,
    **options: Unpack[SceneOptions],
) -> Path:
    """Write `train` and `val` folders of class folders, one object per image of 64 x 64 pixels."""
    root = Path(folder)
    looks: dict[str, Any] = {"size": (64, 64), **options}
    per_class = num_train_per_class + num_val_per_class
    parts = {"train": range(num_train_per_class), "val": range(num_train_per_class, per_class)}
    for class_id, name in enumerate(CLASS_NAMES):
        for part, numbers in parts.items():
            (root / part / name).mkdir(parents=True, exist_ok=True)
            for number in numbers:
                scene = make_scene(seed, class_id * per_class + number, classes=(name,), **looks)
                _save(scene, root / part / name, number)
    return root


def write_coco(
    folder: Folder,
    *,
    num_train: int,
    num_val: int,
    max_objects: int = 5,
    seed: int = 0,
    classes: Sequence[str] = CLASS_NAMES,
    **options: Unpack[SceneOptions],
) -> Path:
    """Write a COCO data set of several objects per image, with masks and keypoints.

    The files are `annotations/instances_train.json` and `instances_val.json`, and the images in
    `train` and `val`. Masks are compressed run lengths; keypoints outside the image are 0, 0, 0.
    The ids of the categories count from 1 in the order of `classes`.
    """
    root = Path(folder)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    looks = {**options, "max_objects": max_objects, "classes": classes}
    for part, scenes in _write_parts(root, num_train, num_val, seed, looks):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, scene) in enumerate(scenes, 1):
            height, width = scene.image.shape[:2]
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for one in scene.objects:
                ids = {"id": len(annotations) + 1, "image_id": number}
                annotations.append(ids | _describe(one))
        values = {
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, **_SKELETON} for number, name in enumerate(classes, 1)
            ],
        }
        text = json.dumps(values)
        (root / "annotations" / f"instances_{part}.json").write_text(text, encoding="utf-8")
    return root


def write_maps(
    folder: Folder,
    *,
    num_train: int,
    num_val: int,
    max_objects: int = 5,
    seed: int = 0,
    classes: Sequence[str] = CLASS_NAMES,
    **options: Unpack[SceneOptions],
) -> Path:
    """Write images and masks: `images` and `masks` with `train` and `val`, and a `classes.txt`.

    Masks are PNGs of class numbers; 0 is the background, and one class follows another in the order
    of `classes`.
    """
    root = Path(folder)
    looks = {**options, "max_objects": max_objects, "classes": classes}
    for part, scenes in _write_parts(root, num_train, num_val, seed, looks, images="images"):
        (root / "masks" / part).mkdir(parents=True, exist_ok=True)
        for name, scene in scenes:
            labels = np.zeros(scene.image.shape[:2], np.uint8)
            for one in scene.objects:
                labels[one.mask] = one.class_id + 1
            Image.fromarray(labels).save(root / "masks" / part / f"{name.partition('.')[0]}.png")
    (root / "classes.txt").write_text("\n".join(("background", *classes)) + "\n", encoding="utf-8")
    return root


def write_frames(
    folder: Folder,
    *,
    num_train: int,
    num_val: int,
    seed: int = 0,
    **options: Unpack[SceneOptions],
) -> Path:
    """Write images of one instance each, and its keypoints as DeepLabCut has them.

    The images are in `train` and `val`, with a `CollectedData.csv` beside them. Cells of keypoints
    that are covered or outside are empty.
    """
    root = Path(folder)
    columns = [name for name in KEYPOINT_NAMES for _ in "xy"]
    for part, scenes in _write_parts(root, num_train, num_val, seed, {**options}):
        rows = [
            ["scorer", *("muntin" for _ in columns)],
            ["bodyparts", *columns],
            ["coords", *("xy"[place % 2] for place in range(len(columns)))],
        ]
        for name, scene in scenes:
            cells = []
            for x, y, seen in scene.objects[0].keypoints:
                # From the corner of the first pixel to its middle.
                cells += [f"{x - 0.5:.2f}", f"{y - 0.5:.2f}"] if seen == 2 else ["", ""]
            rows.append([name, *cells])
        text = "".join(",".join(row) + "\n" for row in rows)
        (root / part / "CollectedData.csv").write_text(text, encoding="utf-8")
    return root


def _write_parts(
    root: Path, num_train: int, num_val: int, seed: int, looks: dict[str, Any], images: str = ""
) -> Iterator[tuple[str, Iterator[tuple[str, Scene]]]]:
    """Yield the name of each part, and its scenes with the names of their images, one by one."""

    def write(part: str, first: int, count: int) -> Iterator[tuple[str, Scene]]:
        (root / images / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = make_scene(seed, first + number, **looks)
            yield _save(scene, root / images / part, number), scene

    yield "train", write("train", 0, num_train)
    yield "val", write("val", num_train, num_val)


def _save(scene: Scene, folder: Path, number: int) -> str:
    """Write an image and give its name."""
    encoded = Image.fromarray(scene.image)
    if number % 4 == 3:
        name = f"{number:05d}.png"
        encoded.save(folder / name, compress_level=4)
    else:
        name = f"{number:05d}.jpg"
        encoded.save(folder / name, quality=92)
    return name


def _describe(one: SceneObject) -> dict[str, Any]:
    left, top, right, bottom = one.box_xyxy
    points = np.where(one.keypoints[:, 2:] > 0, one.keypoints, 0)
    return {
        "category_id": one.class_id + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(one.mask.sum()),
        "iscrowd": 0,
        "segmentation": encode_mask(one.mask),
        "keypoints": [round(float(number), 2) for number in points.ravel()],
        "num_keypoints": int((points[:, 2] > 0).sum()),
    }
