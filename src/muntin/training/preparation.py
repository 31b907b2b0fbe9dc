# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From what a user asked for to a run that is resolved in every field."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from muntin.configs import with_texts
from muntin.data.cache import DataConfig
from muntin.data.detection_transforms import DetectionAugmentConfig
from muntin.data.splitting import describe_split, split
from muntin.errors import ConfigError, DataError
from muntin.heads.network import Network
from muntin.heads.table import AnyHeadConfig
from muntin.nn.mimetic import start_mimetic
from muntin.ops.triton.window_support import find_missing
from muntin.recipes import MachineConfig, Recipe, TrainConfig, find_recipe
from muntin.runs import Run, RunConfig, is_run
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.training.checkpointing import checkpoint_blocks
from muntin.training.choices import (
    choose_preprocessing,
    default_model,
    default_recipe,
    is_small,
    refuse_attention,
    resolve_machine,
    typical_size,
)
from muntin.training.maps import choose_scale, default_map_model
from muntin.training.optimization import check_freeze, scaled_rate
from muntin.training.request import Request, refuse_mistakes, sort_settings, task_of
from muntin.training.room import fit_batch
from muntin.training.scenes import (
    Scenes,
    choose_head,
    choose_window,
    default_dense_model,
    enlarge_for,
    look_at_scenes,
)
from muntin.training.starting import start_network
from muntin.training.subjects import cut_subjects, default_subject_model, look_at_subjects
from muntin.zoo.building import dense_config, find_model, model_config
from muntin.zoo.families import BackboneConfig, free_attention
from muntin.zoo.table import ALIASES, ModelEntry

__all__ = ["Prepared", "Request", "prepare"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run that can start.

    Attributes:
        run: Everything resolved; nothing is written yet.
        network: With its first weights.
        train: Images to learn from.
        val: Images to validate with.
        notes: What was chosen and why, one line each.
    """

    run: Run
    network: Network
    train: Listing
    val: Listing
    notes: tuple[str, ...]


_DEFAULTS: Mapping[str, Callable[[Size, str, str], tuple[str, Size]]] = {
    "detection": default_dense_model,
    "segmentation": default_map_model,
    "keypoints": default_subject_model,
}
"""Kind of task -> function that chooses model and image size."""


def prepare(request: Request) -> Prepared:
    """Resolve a request.

    Raises:
        ConfigError: A name or a setting is wrong.
        DataError: The data cannot be used.
        WeightError: Weights that were asked for cannot be had.
    """
    notes: list[str] = []
    base, settings = request.base, sort_settings(request.settings)
    refuse_mistakes(request, settings)
    seed = _choose_seed(request, settings["train"])
    reading = with_texts(base.data_config if base else DataConfig(), settings["data"])
    task = task_of(request)
    asked = with_texts(request.machine, settings["machine"])
    machine = resolve_machine(asked, notes, compiles=not task.detects)
    train, val = _list_parts(request, reading, seed, notes)
    look = look_at_subjects if task.top_down else look_at_scenes
    scenes = look(train) if task.dense else None
    origin = _find_origin(request)
    entry, name, model, usual = _choose_model(
        request, origin, settings["model"], train, machine, scenes, notes
    )
    refuse_attention(model, machine)
    head = choose_head(
        request.head,
        origin.head if origin and origin.task == task.name else None,
        task,
        getattr(model, "embed_dim", 0) <= 64,
        scenes.crowded if scenes is not None and base is None else 0,
        settings["head"],
        notes,
    )
    if head is not None and "out_indices" not in dict(settings["model"]):
        model = dense_config(model, finest=head.finest)
    if base is None:
        reading = _adapt_reading(reading, settings["data"], task, model, scenes, machine, notes)
    preprocessing = choose_preprocessing(
        entry, model, reading, task.recipe_kind, (0, 0) if scenes is None else scenes.typical
    )
    if task.top_down:
        preprocessing = cut_subjects(preprocessing, head, train, notes)
    run = Run(
        path=Path(request.out),
        config=RunConfig(
            task=request.task,
            data=request.data,
            val=request.val,
            model_name=name,
            model=model,
            head=cast(AnyHeadConfig | None, head),
            data_config=reading,
            machine=machine,
        ),
        classes=task.classes(train),
        preprocessing=preprocessing,
    )
    torch.manual_seed(seed)
    network = run.build_network()
    source = start_network(network, task.name, run.classes, request.weights, entry, notes)
    license_ = entry.license if source == entry.weights else ""
    run = replace(run, config=replace(run.config, weights=source, license=license_))
    run, network = _tune_run(request, run, network, settings, usual, len(train), seed, notes)
    notes.append(_describe(run.config))
    return Prepared(run=run, network=network, train=train, val=val, notes=tuple(notes))


def _tune_run(
    request: Request,
    run: Run,
    network: Network,
    settings: Mapping[str, list[tuple[str, str]]],
    usual: Size,
    count: int,
    seed: int,
    notes: list[str],
) -> tuple[Run, Network]:
    """Choose how to train a network that has its first weights, and adapt it to that."""
    base, machine = request.base, run.config.machine
    img_size = run.config.model.img_size
    recipe = _choose_recipe(request, run.task, run.config.weights, count, settings["train"], notes)
    augment = recipe.augment
    if isinstance(augment, DetectionAugmentConfig) and any(usual):
        augment = choose_window(augment, img_size, usual, notes)
    tuned = _tune(request, recipe, settings["train"], count, img_size, machine, seed)
    if run.task.dense is not None and not _asked_for_batch(request, settings["train"]):
        tuned = fit_batch(network, tuned, img_size, run.task.dense.example, machine.device, notes)
    if tuned.residual == "half" and machine.precision == "fp32":
        message = "train.residual=half needs precision bf16 or fp16, got fp32. Leave one out."
        raise ConfigError(message)
    check_freeze(network.backbone, tuned.freeze)
    if tuned.recomputed_blocks:  # refuses more than there are
        checkpoint_blocks(copy.deepcopy(network.backbone), tuned.recomputed_blocks)
    config = replace(
        run.config,
        # Loading may have adopted the rule for odd sizes that the weights were trained with.
        model=cast(BackboneConfig, network.backbone.config),
        head=cast(AnyHeadConfig, network.head.config) if run.task.dense else None,
        train=tuned,
        augment=with_texts(base.augment if base else augment, settings["augment"]),
    )
    if tuned.drop_path_rate != "model":
        config = replace(config, model=replace(config.model, drop_path_rate=tuned.drop_path_rate))
        state = network.state_dict()
        network = replace(run, config=config).build_network()
        network.load_state_dict(state)
    if tuned.init == "mimetic" and not config.weights:
        start_mimetic(network.backbone, seed)
    return replace(run, config=config), network


def _choose_seed(request: Request, settings: list[tuple[str, str]]) -> int:
    start = request.base.train if request.base is not None else TrainConfig()
    if request.seed >= 0:
        start = replace(start, seed=request.seed)
    chosen: TrainConfig = with_texts(start, [row for row in settings if row[0] == "seed"])
    return chosen.seed


def _describe(config: RunConfig) -> str:
    tuned, machine = config.train, config.machine
    effective = tuned.batch_size * tuned.accumulate
    scaled = f" ({tuned.learning_rate:g} x {effective}/{tuned.lr_batch})" if tuned.lr_batch else ""
    gathered = f" x {tuned.accumulate}" if tuned.accumulate > 1 else ""
    return (
        f"{tuned.optimizer}, learning rate {scaled_rate(tuned, tuned.batch_size):.2g}{scaled}, "
        f"batch {tuned.batch_size}{gathered}, {machine.precision} on {machine.device}"
    )


def _list_parts(
    request: Request, reading: DataConfig, seed: int, notes: list[str]
) -> tuple[Listing, Listing]:
    task = task_of(request)
    data = task.list_data(request.data, None, reading)
    if data.note:
        notes.append(data.note)
    train, val = data.train, data.val or data.test
    if train is None:
        message = f"{request.data} must have training images, got only {data.note}."
        raise DataError(message)
    if data.fault:
        message = f"{data.fault}. See: muntin check {task.name} {request.data}"
        raise DataError(message)
    if request.val:
        parts = task.list_data(request.val, task.classes(train), reading)
        val = parts.val or parts.test or parts.train
        if val is not None and val.multi_label and not train.multi_label:
            message = (
                f"validation images must have one class each, as those to train on, got some "
                f"with none or several in {request.val}."
            )
            raise DataError(message)
    elif data.val is None and val is not None:
        notes.append("validated on the test part, as there is no other: its figures choose epochs")
    if val is None:
        train, val = split(train, fraction=reading.val_fraction, seed=seed)
        notes.append(describe_split(train, val))
    if not len(val):
        message = (
            f"validation needs at least one image, got none from {len(train)} in "
            f"{request.data}. Add images, raise data.val_fraction, or pass --val."
        )
        raise DataError(message)
    return train, val


def _adapt_reading(
    reading: DataConfig,
    settings: list[tuple[str, str]],
    task: Task,
    model: BackboneConfig,
    scenes: Scenes | None,
    machine: MachineConfig,
    notes: list[str],
) -> DataConfig:
    """Choose what depends on model and images, and was not set."""
    if scenes is None:
        if is_small(model) and "crop_fraction" not in dict(settings):
            return replace(reading, crop_fraction=1.0)
        return reading
    if task.kind != "segmentation" or reading.scale or reading.short_side:
        return reading
    scale = choose_scale(scenes.typical, model.img_size, machine.device)
    if scale < 1:
        notes.append(f"images are seen at {scale:g} of their size (data.scale)")
    return replace(reading, scale=scale)


def _find_origin(request: Request) -> RunConfig | None:
    """The config whose model and head are taken: the one repeated, else that of `--weights RUN`."""
    if request.base is not None or request.model or not is_run(request.weights):
        return request.base
    config = Run.open(request.weights).config
    # The maps that dense tasks read have norms of their own, which a classifier has no use for.
    if config.task != request.task and task_of(request).dense is None:
        return None
    return config


def _choose_model(
    request: Request,
    origin: RunConfig | None,
    settings: list[tuple[str, str]],
    train: Listing,
    machine: MachineConfig,
    scenes: Scenes | None,
    notes: list[str],
) -> tuple[ModelEntry, str, Any, Size]:
    """Pick row, name and config of the model, and the size before small objects enlarged it."""
    changed: dict[str, Any] = {}
    usual: Size = (0, 0)
    name = request.model or (origin.model_name if origin else "")
    if scenes is not None and (origin is None or origin.task != request.task):
        choose = _DEFAULTS[task_of(request).recipe_kind]
        default, shown = choose(scenes.typical, request.weights, machine.device)
        name = name or default
        if not any(request.img_size):
            usual, changed["img_size"] = shown, enlarge_for(scenes, shown)
            pixels = "x".join(map(str, changed["img_size"]))
            notes.append(f"model {name} at {pixels} pixels, by images and objects (--img-size)")
    elif not name:
        name, side = default_model(typical_size(train), request.weights, machine.device)
        changed["img_size"] = (side, side)
        notes.append(f"model {name} at {side} pixels, by the size of the images (--model)")
    name = ALIASES.get(name, name)
    entry = find_model(name)
    if "img_size" not in changed:  # otherwise it was said with its size
        notes.append(f"model {name}")
    if any(request.img_size):
        changed["img_size"] = request.img_size
    if origin is not None and not request.model:
        config = replace(_attend_here(origin.model, machine, notes), **changed)
    else:
        config = model_config(name, changed)
    return entry, name, with_texts(config, settings), usual


def _attend_here(model: BackboneConfig, machine: MachineConfig, notes: list[str]) -> Any:  # noqa: ANN401
    """Give the config of another run's model, without fused attention where that cannot run."""
    free = free_attention(model)
    lack = "" if free is model else find_missing(machine.device)
    if not lack:
        return model
    notes.append(f'attention "auto" instead of the "fused" of the run: {lack}')
    return free


def _choose_recipe(
    request: Request,
    task: Task,
    source: str,
    count: int,
    settings: list[tuple[str, str]],
    notes: list[str],
) -> Recipe:
    name = dict(settings).get("recipe", request.recipe)
    if name == "auto" and request.base is not None:
        name = request.base.train.recipe
    if name == "auto":
        name, why = default_recipe(count, pretrained=bool(source), kind=task.recipe_kind)
        notes.append(f"recipe {name}: {why} (--recipe)")
    return find_recipe(name, task.recipe_kind)


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
    # A handful of images should still give a few steps an epoch, unless somebody asked.
    most = max(min(count, 4), count // 8)
    asked = _asked_for_batch(request, settings)
    if not asked and config.batch_size > most:
        config = replace(config, batch_size=most)
    return config


def _asked_for_batch(request: Request, settings: list[tuple[str, str]]) -> bool:
    given = request.batch_size or request.base is not None or "batch_size" in dict(settings)
    return bool(given)
