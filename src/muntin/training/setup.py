# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""From a user's request to a run with every field resolved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from muntin.configs import with_texts
from muntin.data.data_config import DataConfig
from muntin.data.detection_transforms import DetectionAugmentConfig
from muntin.data.splitting import describe_split, split
from muntin.errors import ConfigError, DataError
from muntin.heads.head_table import AnyHeadConfig
from muntin.heads.network import Network
from muntin.nn.mimetic_init import init_mimetic
from muntin.ops.triton.window_support import find_missing
from muntin.recipes import MachineConfig, Recipe, TrainConfig, find_recipe
from muntin.runs import Run, RunConfig, is_run
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.training.dataset_statistics import (
    DatasetStatistics,
    measure_instances,
    measure_objects,
    median_size,
)
from muntin.training.defaults import (
    choose_augment_window,
    choose_head,
    choose_preprocessing,
    choose_scale,
    default_detection_model,
    default_keypoint_model,
    default_model,
    default_recipe,
    default_segmentation_model,
    enlarge_img_size,
    is_small,
    use_instance_crop,
)
from muntin.training.initialization import initialize_network
from muntin.training.machine import check_attention, resolve_machine
from muntin.training.optimization import check_freeze, scaled_learning_rate
from muntin.training.prepared_run import PreparedRun
from muntin.training.recompute import checkpoint_blocks
from muntin.training.request import Request, check_request, group_settings, task_of
from muntin.zoo.families import BackboneConfig, free_attention
from muntin.zoo.model_building import dense_config, find_model, model_config
from muntin.zoo.model_zoo import ALIASES, ModelEntry

__all__ = ["prepare"]


_DEFAULTS: Mapping[str, Callable[[Size, str, str], tuple[str, Size]]] = {
    "detection": default_detection_model,
    "segmentation": default_segmentation_model,
    "keypoints": default_keypoint_model,
}
"""Kind of task -> function that returns the default model and image size."""


def prepare(request: Request) -> PreparedRun:
    """Resolve a request: data, model, head, weights, recipe, machine.

    Raises:
        ConfigError: A name or a setting is invalid.
        DataError: The data cannot be used.
        WeightError: The requested weights are not available.
    """
    notes: list[str] = []
    base, settings = request.base, group_settings(request.settings)
    # Before any file is read: a typo must not be reported after minutes.
    check_request(request, settings)
    seed = _choose_seed(request, settings["train"])
    data = with_texts(base.data_config if base else DataConfig(), settings["data"], group="data")
    task = task_of(request)
    requested = with_texts(request.machine, settings["machine"], group="machine")
    machine = resolve_machine(requested, notes, compiles=not task.detects)
    train, val = _list_splits(request, data, seed, notes)
    measure = measure_instances if task.top_down else measure_objects
    statistics = measure(train) if task.dense else None
    origin = _find_origin(request)
    entry, name, model, original_size = _choose_model(
        request, origin, settings["model"], train, machine, statistics, notes
    )
    check_attention(model, machine)
    head = choose_head(
        request.head,
        origin.head if origin and origin.task == task.name else None,
        task,
        getattr(model, "embed_dim", 0) <= 64,
        statistics.max_objects if statistics is not None and base is None else 0,
        settings["head"],
        notes,
    )
    # Maps that the head does not read need not be computed.
    if head is not None and "out_indices" not in dict(settings["model"]):
        model = dense_config(model, finest=head.finest)
    # A repeated run keeps its values, even where other images would suggest different ones.
    if base is None:
        data = _adapt_data_config(data, settings["data"], task, model, statistics, machine, notes)
    preprocessing = choose_preprocessing(
        entry, model, data, task.recipe_kind, (0, 0) if statistics is None else statistics.size
    )
    if task.top_down:
        preprocessing = use_instance_crop(preprocessing, head, train, notes)
    run = Run(
        path=Path(request.out),
        config=RunConfig(
            task=request.task,
            data=request.data,
            val=request.val,
            model_name=name,
            model=model,
            head=cast(AnyHeadConfig | None, head),
            data_config=data,
            machine=machine,
        ),
        classes=task.classes(train),
        preprocessing=preprocessing,
    )
    # Here and not earlier: the initial weights must not depend on how the data were listed.
    torch.manual_seed(seed)
    network = run.build_network()
    source = initialize_network(network, task.name, run.classes, request.weights, entry, notes)
    # The license is known for published weights only.
    license_ = entry.license if source == entry.weights else ""
    run = replace(run, config=replace(run.config, weights=source, license=license_))
    run, network = _configure_training(
        request, run, network, settings, original_size, len(train), seed, notes
    )
    notes.append(_describe(run.config))
    return PreparedRun(
        run=run,
        network=network,
        train=train,
        val=val,
        keep_batch=_is_batch_given(request, settings["train"]),
        notes=tuple(notes),
    )


def _configure_training(
    request: Request,
    run: Run,
    network: Network,
    settings: Mapping[str, list[tuple[str, str]]],
    original_size: Size,
    count: int,
    seed: int,
    notes: list[str],
) -> tuple[Run, Network]:
    """Choose recipe, batch and augmentation for an initialised network, and apply them to it."""
    base, machine = request.base, run.config.machine
    img_size = run.config.model.img_size
    recipe = _choose_recipe(request, run.task, run.config.weights, count, settings["train"], notes)
    augment = recipe.augment
    if isinstance(augment, DetectionAugmentConfig) and any(original_size):
        augment = choose_augment_window(augment, img_size, original_size, notes)
    tuned = _choose_train_config(request, recipe, settings["train"], count, img_size, machine, seed)
    if tuned.residual == "half" and machine.precision == "fp32":
        message = "train.residual=half needs precision bf16 or fp16, got fp32. Set residual=full."
        raise ConfigError(message)
    check_freeze(network.backbone, tuned.freeze)
    if tuned.recomputed_blocks:  # raises for more blocks than the backbone has
        checkpoint_blocks(copy.deepcopy(network.backbone), tuned.recomputed_blocks)
    config = replace(
        run.config,
        # Loading may have adopted the size rule that the weights were trained with.
        model=cast(BackboneConfig, network.backbone.config),
        head=cast(AnyHeadConfig, network.head.config) if run.task.dense else None,
        train=tuned,
        augment=with_texts(base.augment if base else augment, settings["augment"]),
    )
    # Blocks get their drop path when they are built: build them again around the same weights.
    if tuned.drop_path_rate != "model":
        config = replace(config, model=replace(config.model, drop_path_rate=tuned.drop_path_rate))
        state = network.state_dict()
        network = replace(run, config=config).build_network()
        network.load_state_dict(state)
    # Only without loaded weights, which it would overwrite.
    if tuned.init == "mimetic" and not config.weights:
        init_mimetic(network.backbone, seed)
    return replace(run, config=config), network


def _choose_seed(request: Request, settings: list[tuple[str, str]]) -> int:
    start = request.base.train if request.base is not None else TrainConfig()
    if request.seed >= 0:
        start = replace(start, seed=request.seed)
    # Splitting the data needs the seed before the other settings can be resolved.
    chosen: TrainConfig = with_texts(start, [row for row in settings if row[0] == "seed"])
    return chosen.seed


def _describe(config: RunConfig) -> str:
    tuned, machine = config.train, config.machine
    effective = tuned.batch_size * tuned.accumulate
    scaled = f" ({tuned.learning_rate:g} x {effective}/{tuned.lr_batch})" if tuned.lr_batch else ""
    accumulated = f" x {tuned.accumulate}" if tuned.accumulate > 1 else ""
    rate = scaled_learning_rate(tuned, tuned.batch_size)
    return (
        f"{tuned.optimizer}, learning rate {rate:.2g}{scaled}, "
        f"batch {tuned.batch_size}{accumulated}, {machine.precision} on {machine.device}"
    )


def _list_splits(
    request: Request, config: DataConfig, seed: int, notes: list[str]
) -> tuple[Listing, Listing]:
    task = task_of(request)
    data = task.list_data(request.data, None, config)
    if data.note:
        notes.append(data.note)
    train, val = data.train, data.val or data.test
    if train is None:
        message = f"{request.data} must contain training images, found only {data.note}."
        raise DataError(message)
    if data.fault:
        message = f"{data.fault}. See: muntin check {task.name} {request.data}"
        raise DataError(message)
    if request.val:
        parts = task.list_data(request.val, task.classes(train), config)
        # Validation data may have splits of their own, or be a single folder.
        val = parts.val or parts.test or parts.train
        if val is not None and val.multi_label and not train.multi_label:
            message = (
                f"validation images must have exactly one class each, like the training images; "
                f"{request.val} has images with no class or with several."
            )
            raise DataError(message)
    elif data.val is None and val is not None:
        notes.append(
            "no validation split found: validating on the test split, which selects the best epoch"
        )
    if val is None:
        train, val = split(train, fraction=config.val_fraction, seed=seed)
        notes.append(describe_split(train, val))
    if not len(val):
        message = (
            f"the validation split must have at least one image, got none of the {len(train)} in "
            f"{request.data}. Add images, raise data.val_fraction, or pass --val."
        )
        raise DataError(message)
    return train, val


def _adapt_data_config(
    data: DataConfig,
    settings: list[tuple[str, str]],
    task: Task,
    model: BackboneConfig,
    statistics: DatasetStatistics | None,
    machine: MachineConfig,
    notes: list[str],
) -> DataConfig:
    """Set the fields that depend on model and images, unless the user set them."""
    if statistics is None:
        if is_small(model) and "crop_fraction" not in dict(settings):
            return replace(data, crop_fraction=1.0)
        return data
    if task.kind != "segmentation" or data.scale or data.short_side:
        return data
    scale = choose_scale(statistics.size, model.img_size, machine.device)
    if scale < 1:
        notes.append(f"images are scaled by {scale:g} (data.scale)")
    return replace(data, scale=scale)


def _find_origin(request: Request) -> RunConfig | None:
    """Config that gives model and head: that of the repeated run, else that of `--weights RUN`."""
    if request.base is not None or request.model or not is_run(request.weights):
        return request.base
    config = Run.open(request.weights).config
    # DenseTask tasks add a norm for each map, which a classifier does not have.
    if config.task != request.task and task_of(request).dense is None:
        return None
    return config


def _choose_model(
    request: Request,
    origin: RunConfig | None,
    settings: list[tuple[str, str]],
    train: Listing,
    machine: MachineConfig,
    statistics: DatasetStatistics | None,
    notes: list[str],
) -> tuple[ModelEntry, str, Any, Size]:
    """Choose entry, name and config of the model, and the image size before `enlarge_img_size`."""
    changed: dict[str, Any] = {}
    original: Size = (0, 0)
    name = request.model or (origin.model_name if origin else "")
    if statistics is not None and (origin is None or origin.task != request.task):
        choose = _DEFAULTS[task_of(request).recipe_kind]
        default, size = choose(statistics.size, request.weights, machine.device)
        name = name or default
        if not any(request.img_size):
            original, changed["img_size"] = size, enlarge_img_size(statistics, size)
            pixels = "x".join(map(str, changed["img_size"]))
            notes.append(
                f"model {name} at {pixels} pixels, by the size of images and objects (--img-size)"
            )
    elif not name:
        name, side = default_model(median_size(train), request.weights, machine.device)
        changed["img_size"] = (side, side)
        notes.append(f"model {name} at {side} pixels, by the size of the images (--model)")
    name = ALIASES.get(name, name)
    entry = find_model(name)
    if "img_size" not in changed:  # otherwise a note above names it
        notes.append(f"model {name}")
    if any(request.img_size):
        changed["img_size"] = request.img_size
    if origin is not None and not request.model:
        # The architecture that the weights belong to; settings of that run may differ from the zoo.
        config = replace(_use_available_attention(origin.model, machine, notes), **changed)
    else:
        config = model_config(name, changed)
    return entry, name, with_texts(config, settings), original


def _use_available_attention(
    model: BackboneConfig, machine: MachineConfig, notes: list[str]
) -> Any:  # noqa: ANN401
    """Replace fused attention in the config of another run's model where it cannot run."""
    free = free_attention(model)
    missing = "" if free is model else find_missing(machine.device)
    if not missing:
        return model
    notes.append(f'attention "auto" instead of "fused" as in the run: {missing}')
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


def _choose_train_config(
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
        # The time limit ends the run, not the number of epochs.
        config = replace(config, epochs=10_000)
    config = with_texts(config, settings)
    if config.batch_size == 0:
        default = 128 if max(img_size) <= 64 else 64 if machine.device == "cuda" else 16
        config = replace(config, batch_size=default)
    # Small sets still need several steps an epoch: the weights change too rarely otherwise.
    limit = max(min(count, 4), count // 8)
    given = _is_batch_given(request, settings)
    if not given and config.batch_size > limit:
        config = replace(config, batch_size=limit)
    return config


def _is_batch_given(request: Request, settings: list[tuple[str, str]]) -> bool:
    given = request.batch_size or request.base is not None or "batch_size" in dict(settings)
    return bool(given)
