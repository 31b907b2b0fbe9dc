# SPDX-License-Identifier: Apache-2.0
"""Tiny detectors and small sets of scenes: what many tests of detection stand on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from muntin.configs import with_texts
from muntin.heads.network import Network
from muntin.samples import Classes
from muntin.synthetic.datasets import write_coco
from muntin.tasks.task_table import find_task
from muntin.training.session import TrainedRun, train
from muntin.zoo import create_backbone

BODY = "swin_nano_patch4_window4_64"
BODY_SETTINGS = {
    "model.embed_dim": 16,
    "model.depths": "1,1,1",
    "model.num_heads": "1,1,2",
    "machine.workers": 0,
}
_BODY = {"embed_dim": 16, "depths": (1, 1, 1), "num_heads": (1, 1, 2)}
_RCNN = {
    "neck.channels": 32, "box_dim": 64, "mask_dim": 16, "mask_convs": 1, "roi_batch": 48,
    "rpn_batch": 64, "pre_nms": "200,200", "proposals": "100,100",
}  # fmt: skip
_FCOS = {"neck.channels": 32, "num_convs": 1}


def head_settings(head: str, **more: Any) -> dict[str, Any]:
    """Tiny widths for a head, as settings."""
    chosen = {**(_FCOS if head.startswith(("fcos", "dense")) else _RCNN), **more}
    return {f"head.{name}": value for name, value in chosen.items()}


def tiny_detector(
    head: str,
    num_classes: int,
    *,
    task: str = "instance",
    seed: int = 0,
    threshold: float = 0.0,
    most: int = 20,
) -> Network:
    """A network with random weights that finds something everywhere, at most so many an image."""
    row = find_task(task)
    assert row.dense is not None
    texts = [(name[5:], str(value)) for name, value in head_settings(head).items()]
    texts += [("select.score_threshold", str(threshold)), ("select.max_detections", str(most))]
    config = with_texts(row.dense.heads[head], texts)
    torch.manual_seed(seed)
    body = create_backbone(BODY, **_BODY)
    classes = Classes(names=tuple(map(str, range(num_classes))))
    return Network(body, row.build_head(body, classes, config)).eval()


def mixed_sizes(folder: Path, *, count: int = 9, sizes=((48, 64), (80, 56), (90, 120))) -> Path:
    """A COCO data set without a val part whose images have several sizes."""
    images, annotations, categories = [], [], []
    (folder / "train").mkdir(parents=True)
    for number, size in enumerate(sizes):
        part = write_coco(
            folder.parent / f"{folder.name}-{number}", num_train=count // len(sizes), num_val=0,
            size=size, seed=number,
        )  # fmt: skip
        values = json.loads((part / "annotations" / "instances_train.json").read_text())
        categories = values["categories"]
        for image in values["images"]:
            name = f"{number}_{image['file_name']}"
            (part / "train" / image["file_name"]).rename(folder / "train" / name)
            images.append({**image, "id": 1000 * number + image["id"], "file_name": name})
        for one in values["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": 1000 * number + one["image_id"]}
            annotations.append({**one, **ids})
    values = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(values))
    return folder


def train_detector(
    task: str, data: Path, out: Path, *, head: str = "", settings=None, **options: Any
) -> TrainedRun:
    """Train a tiny detector without drawing; a resumed run keeps what it began with."""
    options = {"pictures": False, **options}
    if options.get("resume"):
        return train(task, data, out=out, quiet=True, settings=settings, **options)
    if "config" not in options:
        chosen = {"model": BODY, "img_size": 64, "epochs": 2, "batch_size": 4, "weights": "none"}
        options = {"precision": "fp32", "device": "cpu", **chosen, **options}
        name = head or ("fcos_small" if task == "detect" else "mask_rcnn_small")
        body = BODY_SETTINGS if options["model"] == BODY else {"machine.workers": 0}
        few = {"train.warmup": 0, "head.select.max_detections": 20}  # masks of all take long
        settings = {**body, **head_settings(name), **few, **(settings or {})}
        options["head"] = name
    return train(task, data, out=out, quiet=True, settings=settings, **options)


def train_dense(task: str, data: Path, out: Path, *, settings=None, **options: Any) -> TrainedRun:
    """The same for maps and keypoints, whose heads have one width."""
    options = {"pictures": False, **options}
    if options.get("resume"):
        return train(task, data, out=out, quiet=True, settings=settings, **options)
    chosen = {
        "model": BODY, "img_size": 64, "epochs": 2, "batch_size": 4, "weights": "none",
        "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    settings = {**BODY_SETTINGS, "head.channels": 16, "train.warmup": 0, **(settings or {})}
    return train(task, data, out=out, quiet=True, settings=settings, **{**chosen, **options})


def empty_images(data: Path, part: str, numbers: set[int]) -> None:
    """Take the objects of some images out of a data set that `write_coco` made."""
    file = data / "annotations" / f"instances_{part}.json"
    values = json.loads(file.read_text())
    wanted = {image["id"] for n, image in enumerate(values["images"]) if n not in numbers}
    values["annotations"] = [a for a in values["annotations"] if a["image_id"] in wanted]
    file.write_text(json.dumps(values))


def blank(size=(48, 64), colour=128) -> Image.Image:
    """An image of nothing."""
    return Image.new("RGB", (size[1], size[0]), (colour,) * 3)
