# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets of generated scenes, written in the layouts in which people have theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from muntin.data.synthetic_scenes import CLASS_NAMES, KEYPOINT_NAMES, SceneObject, make_scene
from muntin.run_lengths import encode_mask
from muntin.shapes import Size, UInt8

__all__ = ["write_classify", "write_coco", "write_frames", "write_maps"]


def write_classify(
    folder: str | os.PathLike[str],
    *,
    num_train_per_class: int,
    num_val_per_class: int,
    size: Size = (64, 64),
    seed: int = 0,
    max_angle: float = np.pi,
    usual_colours: float = 0.0,
) -> Path:
    """Write `train` and `val` folders of class folders, one object per image.

    Every fourth image of a class is a PNG, the others are JPEGs.

    Args:
        folder: Where to; made when it is not there, files of the same names are overwritten.
        num_train_per_class: Images of each class to learn from.
        num_val_per_class: Images of each class to check with; other ones.
        size: (height, width) in pixels.
        seed: Number of the set.
        max_angle: As in `make_scene`; the less objects are turned, the easier they are.
        usual_colours: As in `make_scene`; the more, the easier.

    Returns:
        The folder.
    """
    root = Path(folder)
    per_class = num_train_per_class + num_val_per_class
    for class_id, name in enumerate(CLASS_NAMES):
        for number in range(per_class):
            part = "train" if number < num_train_per_class else "val"
            index = class_id * per_class + number
            scene = make_scene(
                seed,
                index,
                size=size,
                classes=(name,),
                max_angle=max_angle,
                usual_colours=usual_colours,
            )
            _save(scene.image, root / part / name, number)
    return root


def write_coco(
    folder: str | os.PathLike[str],
    *,
    num_train: int,
    num_val: int,
    size: Size = (96, 96),
    max_objects: int = 5,
    seed: int = 0,
    max_angle: float = np.pi,
    usual_colours: float = 0.0,
    classes: Sequence[str] = CLASS_NAMES,
) -> Path:
    """Write a COCO data set of several objects per image, with masks and keypoints.

    The files are `annotations/instances_train.json` and `instances_val.json`, and the images in
    `train` and `val`, every fourth a PNG, the others JPEGs. Masks are compressed run lengths.
    Keypoints outside the image are 0, 0, 0.

    Args:
        folder: Where to; made when it is not there, files of the same names are overwritten.
        num_train: Images to learn from.
        num_val: Images to check with; other ones.
        size: (height, width) in pixels.
        max_objects: As in `make_scene`.
        seed: Number of the set.
        max_angle: As in `make_scene`; the less objects are turned, the easier they are.
        usual_colours: As in `make_scene`; the more, the easier.
        classes: Which of `CLASS_NAMES` may come; the ids of the categories count from 1 in this
            order.

    Returns:
        The folder.
    """
    root = Path(folder)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train", 0, num_train), ("val", num_train, num_val)):
        (root / part).mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(count):
            scene = make_scene(
                seed,
                first + number,
                size=size,
                max_objects=max_objects,
                classes=classes,
                max_angle=max_angle,
                usual_colours=usual_colours,
            )
            name = _save(scene.image, root / part, number)
            image = {"id": number + 1, "file_name": name, "height": size[0], "width": size[1]}
            images.append(image)
            for one in scene.objects:
                ids = {"id": len(annotations) + 1, "image_id": image["id"]}
                annotations.append(ids | _describe(one))
        values = {
            "images": images,
            "annotations": annotations,
            "categories": [_category(number, name) for number, name in enumerate(classes, 1)],
        }
        text = json.dumps(values)
        (root / "annotations" / f"instances_{part}.json").write_text(text, encoding="utf-8")
    return root


def write_maps(
    folder: str | os.PathLike[str],
    *,
    num_train: int,
    num_val: int,
    size: Size = (96, 96),
    max_objects: int = 5,
    seed: int = 0,
    max_angle: float = np.pi,
    usual_colours: float = 0.0,
    classes: Sequence[str] = CLASS_NAMES,
) -> Path:
    """Write images and masks: `images` and `masks` with `train` and `val`, and a `classes.txt`.

    Masks are PNGs of class numbers; 0 is the background, and one class follows another in the order
    of `classes`.

    Args:
        folder: Where to; made when it is not there, files of the same names are overwritten.
        num_train: Images to learn from.
        num_val: Images to check with; other ones.
        size: (height, width) in pixels.
        max_objects: As in `make_scene`.
        seed: Number of the set.
        max_angle: As in `make_scene`; the less objects are turned, the easier they are.
        usual_colours: As in `make_scene`; the more, the easier.
        classes: Which of `CLASS_NAMES` may come.

    Returns:
        The folder.
    """
    root = Path(folder)
    for part, first, count in (("train", 0, num_train), ("val", num_train, num_val)):
        (root / "masks" / part).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = make_scene(
                seed,
                first + number,
                size=size,
                max_objects=max_objects,
                classes=classes,
                max_angle=max_angle,
                usual_colours=usual_colours,
            )
            name = _save(scene.image, root / "images" / part, number)
            labels = np.zeros(size, np.uint8)
            for one in scene.objects:
                labels[one.mask] = one.class_id + 1
            Image.fromarray(labels).save(root / "masks" / part / f"{name.partition('.')[0]}.png")
    (root / "classes.txt").write_text("\n".join(("background", *classes)) + "\n", encoding="utf-8")
    return root


def write_frames(
    folder: str | os.PathLike[str],
    *,
    num_train: int,
    num_val: int,
    size: Size = (96, 96),
    seed: int = 0,
    max_angle: float = np.pi,
    usual_colours: float = 0.0,
) -> Path:
    """Write images of one instance each, and its keypoints as DeepLabCut has them.

    The images are in `train` and `val`, every fourth a PNG, the others JPEGs, with a
    `CollectedData.csv` beside them. Cells of keypoints that are covered or outside are empty.

    Args:
        folder: Where to; made when it is not there, files of the same names are overwritten.
        num_train: Images to learn from.
        num_val: Images to check with; other ones.
        size: (height, width) in pixels.
        seed: Number of the set.
        max_angle: As in `make_scene`; the less objects are turned, the easier they are.
        usual_colours: As in `make_scene`; the more, the easier.

    Returns:
        The folder.
    """
    root = Path(folder)
    columns = [name for name in KEYPOINT_NAMES for _ in "xy"]
    for part, first, count in (("train", 0, num_train), ("val", num_train, num_val)):
        rows = [
            ["scorer", *("muntin" for _ in columns)],
            ["bodyparts", *columns],
            ["coords", *("xy"[place % 2] for place in range(len(columns)))],
        ]
        for number in range(count):
            scene = make_scene(
                seed,
                first + number,
                size=size,
                max_angle=max_angle,
                usual_colours=usual_colours,
            )
            name = _save(scene.image, root / part, number)
            cells = []
            for x, y, seen in scene.objects[0].keypoints:
                # From the corner of the first pixel to its middle.
                cells += [f"{x - 0.5:.2f}", f"{y - 0.5:.2f}"] if seen == 2 else ["", ""]
            rows.append([name, *cells])
        text = "".join(",".join(row) + "\n" for row in rows)
        (root / part / "CollectedData.csv").write_text(text, encoding="utf-8")
    return root


def _save(image: UInt8[np.ndarray, "H W 3"], folder: Path, number: int) -> str:
    """Write an image and give its name; every fourth is a PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    encoded = Image.fromarray(image)
    if number % 4 == 3:
        name = f"{number:05d}.png"
        encoded.save(folder / name, compress_level=4)
    else:
        name = f"{number:05d}.jpg"
        encoded.save(folder / name, quality=92)
    return name


def _category(number: int, name: str) -> dict[str, Any]:
    middle_to_tips = [[1, tip] for tip in range(2, len(KEYPOINT_NAMES) + 1)]
    return {
        "id": number,
        "name": name,
        "supercategory": "shape",
        "keypoints": list(KEYPOINT_NAMES),
        "skeleton": middle_to_tips,
    }


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
