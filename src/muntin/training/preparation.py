# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From what a user asked for to a run that is resolved in every field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from muntin.configs import replace as replace_fields
from muntin.configs import with_texts
from muntin.data.splitting import describe_split, split
from muntin.data.storing import DataConfig
from muntin.data.transforms import AugmentConfig, Preprocessing
from muntin.devices import choose_device, choose_precision, has_compiler
from muntin.errors import ConfigError, DataError, WeightError, unknown_name
from muntin.heads.network import Network
from muntin.nn.mimetic import start_mimetic
from muntin.recipes import MachineConfig, Recipe, TrainConfig, find_recipe
from muntin.runs import Run, RunConfig
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.tasks import find_task
from muntin.training.choices import default_model, default_recipe, typical_size
from muntin.training.optimization import scaled_rate
from muntin.weights.loading import load_weights
from muntin.zoo import ALIASES, BackboneConfig, ModelEntry, find_model, model_config

__all__ = ["Prepared", "Request", "prepare"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a user asked for; empty, 0 and "auto" leave the choice to `prepare`.

    Attributes:
        task: Name of the task.
        data: Training pictures, perhaps with validation beside them.
        out: The run folder.
        val: Validation pictures.
        model: Name in the zoo.
        weights: "auto", "none", a file or a hub id.
        recipe: Name of a preset.
        epochs: Passes over the data.
        max_time_s: Wall time in seconds.
        batch_size: Pictures a step.
        img_size: (height, width) in pixels; (0, 0) chooses.
        seed: Of everything random.
        machine: Where to run.
        settings: Dotted names of config fields and their values as text.
        base: A run's config to start from instead of a recipe.
    """

    task: str
    data: str
    out: str
    val: str = ""
    model: str = ""
    weights: str = "auto"
    recipe: str = "auto"
    epochs: int = 0
    max_time_s: float = 0.0
    batch_size: int = 0
    img_size: Size = (0, 0)
    seed: int = -1
    machine: MachineConfig
    settings: tuple[tuple[str, str], ...] = ()
    base: RunConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run that can start.

    Attributes:
        run: Everything resolved; nothing is written yet.
        network: With its first weights.
        train: Pictures to learn from.
        val: Pictures to validate with.
        notes: What was chosen and why, one line each.
    """

    run: Run
    network: Network
    train: Listing
    val: Listing
    notes: tuple[str, ...]


def prepare(request: Request) -> Prepared:
    """Resolve a request.

    Raises:
        ConfigError: A name or a setting is wrong.
        DataError: The data cannot be used.
        WeightError: Weights that were asked for cannot be had.
    """
    notes: list[str] = []
    base, settings = request.base, _sort_settings(request.settings)
    _refuse_mistakes(request, settings)
    seed = _choose_seed(request, settings["train"])
    reading = with_texts(base.reading if base else DataConfig(), settings["data"])
    machine = _resolve_machine(with_texts(request.machine, settings["machine"]), notes)
    train, val = _list_parts(request, reading, seed, notes)
    entry, name, model = _choose_model(request, settings["model"], train, machine, notes)
    if base is None and "crop_fraction" not in dict(settings["data"]) and _is_small(model):
        reading = replace(reading, crop_fraction=1.0)
    run = Run(
        path=Path(request.out),
        config=RunConfig(
            task=request.task,
            data=request.data,
            val=request.val,
            model_name=name,
            model=model,
            reading=reading,
            machine=machine,
        ),
        classes=find_task(request.task).classes(train),
        preprocessing=_preprocessing(entry, model, reading),
    )
    torch.manual_seed(seed)
    network = run.build_network()
    source = _load(network, request.weights, entry, notes)
    recipe = _choose_recipe(request, source, len(train), settings["train"], notes)
    tuned = _tune(request, recipe, settings["train"], len(train), model.img_size, machine, seed)
    config = replace(
        run.config,
        # Loading may have adopted the rule for odd sizes that the weights were trained with.
        model=cast(BackboneConfig, network.backbone.config),
        weights=source,
        license=entry.license if source == entry.weights else "",
        train=tuned,
        augment=with_texts(base.augment if base else recipe.augment, settings["augment"]),
    )
    if tuned.drop_path_rate != "model":
        config = replace(config, model=replace(config.model, drop_path_rate=tuned.drop_path_rate))
        state = network.state_dict()
        network = replace(run, config=config).build_network()
        network.load_state_dict(state)
    if tuned.init == "mimetic" and not source:
        start_mimetic(network.backbone, seed)
    notes.append(_describe(config))
    return Prepared(
        run=replace(run, config=config), network=network, train=train, val=val, notes=tuple(notes)
    )


def _refuse_mistakes(request: Request, settings: Mapping[str, list[tuple[str, str]]]) -> None:
    """Find what is wrong with the words before any data is read."""
    if request.recipe != "auto":
        find_recipe(request.recipe)
    with_texts(TrainConfig(), settings["train"])
    with_texts(AugmentConfig(), settings["augment"])
    if request.model:
        with_texts(model_config(ALIASES.get(request.model, request.model), {}), settings["model"])


def _choose_seed(request: Request, settings: list[tuple[str, str]]) -> int:
    start = request.base.train if request.base is not None else TrainConfig()
    if request.seed >= 0:
        start = replace(start, seed=request.seed)
    chosen: TrainConfig = with_texts(start, [row for row in settings if row[0] == "seed"])
    return chosen.seed


def _is_small(model: BackboneConfig) -> bool:
    """Whether pictures are too small to cut a border off."""
    return min(model.img_size) < 128


def _preprocessing(entry: ModelEntry, model: BackboneConfig, reading: DataConfig) -> Preprocessing:
    """What the weights expect; small pictures are resized without bicubic's overshoot."""
    return Preprocessing(
        img_size=model.img_size,
        mean=_per_channel(entry.mean, model.in_chans),
        std=_per_channel(entry.std, model.in_chans),
        crop_fraction=reading.crop_fraction,
        interpolation="bilinear" if _is_small(model) else "bicubic",
        in_chans=model.in_chans,
    )


def _describe(config: RunConfig) -> str:
    tuned, machine = config.train, config.machine
    effective = tuned.batch_size * tuned.accumulate
    scaled = f" ({tuned.learning_rate:g} x {effective}/{tuned.lr_batch})" if tuned.lr_batch else ""
    gathered = f" x {tuned.accumulate}" if tuned.accumulate > 1 else ""
    return (
        f"{tuned.optimizer}, learning rate {scaled_rate(tuned, tuned.batch_size):.2g}{scaled}, "
        f"batch {tuned.batch_size}{gathered}, {machine.precision} on {machine.device}"
    )


def _sort_settings(settings: tuple[tuple[str, str], ...]) -> dict[str, list[tuple[str, str]]]:
    """Sort ``train.epochs``-like names by their first word."""
    rooms: dict[str, list[tuple[str, str]]] = {
        room: [] for room in ("train", "augment", "data", "machine", "model")
    }
    for path, text in settings:
        room, _, field = path.partition(".")
        if room not in rooms or not field:
            hint = "Settings are such as train.epochs=10."
            raise ConfigError(unknown_name("group of settings", room, rooms, hint=hint))
        rooms[room].append((field, text))
    return rooms


def _resolve_machine(machine: MachineConfig, notes: list[str]) -> MachineConfig:
    device = choose_device(machine.device)
    precision = machine.precision
    if precision == "auto":
        precision = choose_precision(device)
    if precision == "fp16" and device.type == "cpu":
        message = "precision fp16 needs a GPU, got device cpu. Use bf16 or fp32."
        raise ConfigError(message)
    wanted = machine.compile
    if wanted == "auto":
        wanted = "on" if device.type == "cuda" else "off"
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


def _list_parts(
    request: Request, reading: DataConfig, seed: int, notes: list[str]
) -> tuple[Listing, Listing]:
    task = find_task(request.task)
    data = task.list_data(request.data, None)
    if data.note:
        notes.append(data.note)
    train, val = data.train, data.val or data.test
    if train is None:
        message = f"{request.data} must have training pictures, got only {data.note}."
        raise DataError(message)
    if request.val:
        parts = task.list_data(request.val, train.class_names)
        val = parts.val or parts.test or parts.train
        if val is not None and val.multi_label and not train.multi_label:
            message = (
                f"validation pictures must have one class each, as those to train on, got some "
                f"with none or several in {request.val}."
            )
            raise DataError(message)
    if val is None:
        train, val = split(train, fraction=reading.val_fraction, seed=seed)
        notes.append(describe_split(train, val))
    if not len(val):
        message = (
            f"validation needs at least one picture, got none from {len(train)} in "
            f"{request.data}. Add pictures, raise data.val_fraction, or pass --val."
        )
        raise DataError(message)
    return train, val


def _choose_model(
    request: Request,
    settings: list[tuple[str, str]],
    train: Listing,
    machine: MachineConfig,
    notes: list[str],
) -> tuple[ModelEntry, str, Any]:
    """Pick row, name and config of the model."""
    changed: dict[str, Any] = {}
    name = request.model or (request.base.model_name if request.base else "")
    if not name:
        name, side = default_model(typical_size(train), request.weights, machine.device)
        changed["img_size"] = (side, side)
        notes.append(f"model {name} at {side} pixels, by the size of the pictures (--model)")
    name = ALIASES.get(name, name)
    entry = find_model(name)
    if request.base is not None and not request.model:
        config = request.base.model
    else:
        if any(request.img_size):
            changed["img_size"] = request.img_size
        config = model_config(name, changed)
    if request.base is not None and any(request.img_size):
        config = replace(config, img_size=request.img_size)
    return entry, name, with_texts(config, settings)


def _per_channel(values: tuple[float, ...], in_chans: int) -> tuple[float, ...]:
    return values if in_chans == len(values) else (round(float(np.mean(values)), 4),) * in_chans


def _load(network: Network, weights: str, entry: ModelEntry, notes: list[str]) -> str:
    """Load the first weights; give their source, or nothing for fresh ones."""
    if weights in ("none", ""):
        notes.append("weights: fresh (--weights none)")
        return ""
    if weights != "auto":
        report = load_weights(network, weights)
        notes.append(f"weights: {report.summary()}")
        return weights
    if not entry.weights:
        notes.append("weights: fresh; no published file is known for this model")
        return ""
    try:
        report = load_weights(network, entry.weights)
    except WeightError as error:
        notes.append(f"weights: fresh; {entry.weights} could not be had ({error})")
        return ""
    notes.append(f"weights: {report.summary()}; licence {entry.license or 'not stated'}")
    return entry.weights


def _choose_recipe(
    request: Request, source: str, count: int, settings: list[tuple[str, str]], notes: list[str]
) -> Recipe:
    name = dict(settings).get("recipe", request.recipe)
    if name != "auto":
        return find_recipe(name)
    if request.base is not None:
        return find_recipe(request.base.train.recipe)
    name, why = default_recipe(count, pretrained=bool(source))
    notes.append(f"recipe {name}: {why} (--recipe)")
    return find_recipe(name)


def _tune(
    request: Request,
    recipe: Recipe,
    settings: list[tuple[str, str]],
    count: int,
    img_size: Size,
    machine: MachineConfig,
    seed: int,
) -> Any:  # noqa: ANN401 (a TrainConfig)
    config = request.base.train if request.base is not None else recipe.train
    changed: Mapping[str, Any] = {
        "epochs": request.epochs,
        "max_time_s": request.max_time_s,
        "batch_size": request.batch_size,
    }
    config = replace(config, seed=seed, **{key: value for key, value in changed.items() if value})
    if request.max_time_s and not request.epochs:
        # The clock decides; no number of epochs shall end the run before it.
        config = replace(config, epochs=10_000)
    config = with_texts(config, settings)
    if config.batch_size == 0:
        room = 128 if max(img_size) <= 64 else 64 if machine.device == "cuda" else 16
        config = replace(config, batch_size=room)
    # A handful of pictures should still give a few steps an epoch, unless somebody asked.
    most = max(min(count, 4), count // 8)
    asked = request.batch_size or request.base is not None or "batch_size" in dict(settings)
    if not asked and config.batch_size > most:
        config = replace(config, batch_size=most)
    return config
