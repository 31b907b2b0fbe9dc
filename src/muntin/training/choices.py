# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""What is chosen when nobody says: model by images, recipe by their number, device, precision."""

from __future__ import annotations

import numpy as np
import torch

from muntin.configs import replace as replace_fields
from muntin.data.archives import read_bytes
from muntin.data.cache import DataConfig
from muntin.data.decoding import decode
from muntin.data.transforms import Preprocessing
from muntin.devices import choose_device, choose_precision, has_compiler
from muntin.errors import ConfigError, DataError, WeightError
from muntin.recipes import MachineConfig
from muntin.samples import Listing, TaskKind
from muntin.shapes import Size
from muntin.weights.hub import fetch
from muntin.zoo.building import find_model
from muntin.zoo.families import BackboneConfig
from muntin.zoo.table import ModelEntry

__all__ = [
    "PRECISIONS",
    "can_be_had",
    "choose_preprocessing",
    "default_model",
    "default_recipe",
    "is_small",
    "resolve_machine",
    "typical_size",
]

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""What Lightning Fabric calls them."""

FEW = 100_000
"""Below so many training images a fresh model takes the small-data recipe."""

FEW_SCENES = 20_000
"""The same for images with objects, which hold many examples each."""


def typical_size(listing: Listing, most: int = 32) -> Size:
    """Median (height, width) of some images, in pixels."""
    sizes = []
    for index in range(0, len(listing), max(1, len(listing) // most)):
        entry = listing.entries[index]
        if entry.size is not None:
            sizes.append(entry.size)
            continue
        try:
            image = decode(read_bytes(listing.source, entry.path), where=entry.path)
        except (DataError, OSError):
            continue
        sizes.append(image.shape[:2])
    if not sizes:
        return 224, 224
    height, width = np.median(np.array(sizes), axis=0)
    return int(height), int(width)


def default_model(size: Size, weights: str, device: str) -> tuple[str, int]:
    """Name and image side in pixels for images of a size, given `--weights` and the device."""
    side = min(size)
    if side <= 48:
        return "swin_nano_patch2_window4_32", max(16, -(-side // 8) * 8)
    published = "swin_tiny_patch4_window7_224"
    if side >= 96 and weights != "none" and (weights != "auto" or can_be_had(published)):
        return published, 224
    most = 128 if device == "cpu" else 224
    return "swin_nano_patch4_window4_64", min(most, max(48, -(-side // 16) * 16))


def can_be_had(name: str) -> bool:
    """Whether published weights are in the cache or the hub answers."""
    try:
        fetch(find_model(name).weights)
    except WeightError:
        return False
    return True


def default_recipe(
    count: int, *, pretrained: bool, kind: TaskKind = "classification"
) -> tuple[str, str]:
    """Name of the recipe for so many training images, and why."""
    few = FEW if kind == "classification" else FEW_SCENES
    unit = "instances" if kind == "keypoints" else "images"
    if pretrained and (kind == "classification" or count < few):
        return "finetune", "the weights are trained already"
    if count < few:
        return "small-data", f"{count} {unit} are few for a fresh model"
    published: dict[TaskKind, str] = {
        "classification": "imagenet",
        "detection": "coco-3x",
        "segmentation": "ade20k",
        "keypoints": "coco-pose",
    }
    return published[kind], f"{count} {unit} are many"


def is_small(model: BackboneConfig) -> bool:
    """Whether images are too small to cut a border off."""
    return min(model.img_size) < 128


def choose_preprocessing(
    entry: ModelEntry,
    model: BackboneConfig,
    reading: DataConfig,
    kind: TaskKind,
    typical: Size,
) -> Preprocessing:
    """What the weights expect; small images are resized without bicubic's overshoot.

    Images with objects are scaled to fit inside, those whose pixels are classified by `scale` or
    `short_side`; others are cropped.
    """
    if kind == "segmentation":
        return Preprocessing(
            img_size=model.img_size,
            mean=_per_channel(entry.mean, model.in_chans),
            std=_per_channel(entry.std, model.in_chans),
            fit="sliding_window",
            scale=reading.scale or 1.0,
            short_side=reading.short_side,
            typical_size=typical,
            interpolation="bilinear",
            in_chans=model.in_chans,
        )
    if kind == "detection":
        return Preprocessing(
            img_size=model.img_size,
            mean=_per_channel(entry.mean, model.in_chans),
            std=_per_channel(entry.std, model.in_chans),
            fit="letterbox",
            typical_size=typical,
            interpolation="bilinear",
            in_chans=model.in_chans,
        )
    return Preprocessing(
        img_size=model.img_size,
        mean=_per_channel(entry.mean, model.in_chans),
        std=_per_channel(entry.std, model.in_chans),
        crop_fraction=reading.crop_fraction,
        interpolation="bilinear" if is_small(model) else "bicubic",
        in_chans=model.in_chans,
    )


def _per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    return values if in_chans == len(values) else (round(float(np.mean(values)), 4),) * in_chans


def resolve_machine(
    machine: MachineConfig, notes: list[str], *, compiles: bool = True
) -> MachineConfig:
    """Fill in what "auto" stands for on this machine.

    Args:
        machine: As asked for.
        notes: What could not be had is added.
        compiles: Whether steps may be compiled without being asked: those of a detector, whose
            boxes are never equally many, are not.

    Raises:
        ConfigError: The device is not there, or cannot do what is asked.
    """
    device = choose_device(machine.device)
    precision = machine.precision
    if precision == "auto":
        precision = choose_precision(device)
    if precision == "fp16" and device.type == "cpu":
        message = "precision fp16 needs a GPU, got device cpu. Use bf16 or fp32."
        raise ConfigError(message)
    wanted = machine.compile
    if wanted == "auto":
        wanted = "on" if device.type == "cuda" and compiles else "off"
    if wanted == "on" and not has_compiler():
        notes.append("no C++ compiler is found, so steps are not compiled (machine.compile)")
        wanted = "off"
    workers = machine.workers
    if workers < 0:
        import os

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        workers = max(1, cores // 2) if device.type == "cpu" else max(1, min(cores, 16))
    resolved = {"device": device.type, "precision": precision}
    return replace_fields(machine, {**resolved, "compile": wanted, "workers": workers})


def refuse_attention(model: BackboneConfig, machine: MachineConfig) -> None:
    """Refuse a back end of attention that cannot run here, before anything is written.

    Raises:
        ConfigError: The model's is "fused", and this machine has no kernels for it.
    """
    if getattr(model, "attention", "auto") != "fused":
        return
    from muntin.ops.triton.window_support import find_obstacle

    obstacle = find_obstacle(machine.device, None, torch.float32, 32, 49, 0.0)
    if obstacle:
        message = f"{obstacle}, for model.attention=fused. Take auto instead."
        raise ConfigError(message)
