# SPDX-License-Identifier: Apache-2.0
"""Small images and small runs: what many tests train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from muntin.training.session import TrainedRun, train

MODEL = "swin_nano_patch2_window4_32"
SETTINGS = {
    "model.embed_dim": 16,
    "model.depths": "1,1",
    "model.num_heads": "1,2",
    "model.out_indices": "0,1",
    "machine.workers": 0,
}
CLASSES = ("ash", "birch", "cedar")


def image(class_id: int, number: int, side: int = 16) -> Image.Image:
    """A noisy image whose brightness tells its class."""
    generator = np.random.default_rng([class_id, number])
    values = 50 + 60 * class_id + generator.integers(0, 50, (side, side, 3))
    return Image.fromarray(values.astype(np.uint8))


def write_images(folder: Path, *, each: int = 6, side: int = 16, classes=CLASSES) -> Path:
    """A folder of class folders."""
    for class_id, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            image(class_id, number, side).save(folder / name / f"{number}.png")
    return folder


def train_small(data: Path, out: Path, *, settings=None, **options) -> TrainedRun:
    """Train a tiny Swin in a moment, without drawing; a resumed run keeps what it began with."""
    options = {"pictures": False, **options}
    if options.get("resume"):
        return train("classify", data, out=out, quiet=True, settings=settings, **options)
    if "config" not in options:
        chosen = {"model": MODEL, "img_size": 16, "epochs": 2, "batch_size": 4}
        options = {"precision": "fp32", "device": "cpu", **chosen, **options}
        settings = {**SETTINGS, **(settings or {})}
    return train("classify", data, out=out, quiet=True, settings=settings, **options)
