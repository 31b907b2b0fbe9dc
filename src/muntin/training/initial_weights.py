# SPDX-License-Identifier: Apache-2.0
"""The weights that a training starts with, and what the run that they come from says."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from muntin.configs import to_dict
from muntin.errors import MuntinWarning, RunError, WeightError, shorten
from muntin.heads.extended_head import copy_part
from muntin.heads.network import Head, Network
from muntin.recipes import RECIPES
from muntin.run_config import RunConfig
from muntin.run_files import find_results, weights_checksum
from muntin.runs import Run, is_run
from muntin.samples import Classes, TaskKind
from muntin.shapes import Size
from muntin.tasks.task import Task
from muntin.train_config import TrainConfig
from muntin.training.defaults import PUBLISHED, Choice, default_model, default_recipe
from muntin.weights.opened_weights import open_weights
from muntin.weights.source_info import SourceInfo, read_source_info
from muntin.weights.state_matching import class_tensors
from muntin.weights.weight_files import WAYS_OUT
from muntin.weights.weight_loading import load_weights
from muntin.zoo.model_building import classifier_config
from muntin.zoo.model_zoo import MODELS, BackboneConfig, ModelEntry
from muntin.zoo.published_classifier import find_source_model

if TYPE_CHECKING:
    from muntin.training.request import Request

FRESH_WEIGHTS = "fresh weights instead of published ones"


def warn_of_fresh(kind: TaskKind, size: Size, device: str, name: str) -> None:
    """Warn where only for lack of published weights the default model is the one of this name."""
    hoped, _ = default_model(kind, size, "auto", device, is_available=lambda hub_id: True)
    if hoped != name:
        text = f"{FRESH_WEIGHTS}, and a small model: {MODELS[hoped].weights!r} cannot be had. "
        warnings.warn(f"{text}To use them, {WAYS_OUT}", MuntinWarning, stacklevel=4)


def find_origin(request: Request, task: Task) -> RunConfig | None:
    """Config that gives model and head: that of the repeated run, else that of `--weights RUN`."""
    if request.base is not None or request.model or not is_run(request.weights):
        return request.base
    config = Run.open(request.weights, pretraining=True).config
    return config if task.dense else replace(config, model=classifier_config(config.model))


def find_beside(request: Request) -> SourceInfo | None:
    """What files beside the weights state, if weights are given."""
    return None if request.weights in ("auto", "none", "") else read_source_info(request.weights)


def find_stated_model(request: Request, task: Task) -> tuple[str, BackboneConfig] | None:
    """Name and config of the model that files beside the weights state; None if they do not."""
    beside = find_beside(request)
    if beside is None or not (beside.family or beside.model or beside.model_type):
        return None
    name, entry = find_source_model("", beside, {})
    return name, entry.config if task.dense else classifier_config(entry.config)


_RATES = ("learning_rate", "muon_learning_rate")
_KEPT = ("optimizer", "lr_batch", "layer_decay", "betas")
AFTER_SCRATCH = 0.3
"""Part of the peak learning rates of a run from random weights that suits its trained ones: the
full rates would undo what it has learnt, and those for published weights barely move small models.
"""


def find_continued(request: Request, classes: Classes) -> TrainConfig | None:
    """How to go on from a run of this task whose weights are loaded; None without one.

    By its own recipe and optimizer. For other classes at its rates, or those of the recipe if they
    are higher: layers of classes start anew. For the same ones, its rates are kept where it went on
    from other weights itself, and lowered (`AFTER_SCRATCH`) where it began with random ones.
    """
    if request.base is not None or not is_run(request.weights):
        return None
    origin = Run.open(request.weights, pretraining=True)
    config = origin.config
    known = RECIPES[origin.task.recipe_kind]
    if config.task != request.task or config.train.recipe not in known:
        return None
    train, fresh = config.train, known[config.train.recipe].train
    part = 1.0 if config.weights else AFTER_SCRATCH
    rates = {name: part * getattr(train, name) for name in _RATES}
    if _output_names(origin.classes) != _output_names(classes):
        rates = {name: max(getattr(train, name), getattr(fresh, name)) for name in _RATES}
    return replace(
        fresh,
        **{name: getattr(train, name) for name in _KEPT},
        **rates,
        start_size=1.0,  # small images at first would undo what was learnt from large ones
    )


def find_tuning(request: Request, task: Task, count: int) -> TrainConfig | None:
    """How to go on from a pretraining on few images, from random weights; None otherwise.

    As training from scratch on `count` images would: rates for published weights, which are to be
    kept nearly as they are, barely move small models.
    """
    if request.base is not None or not is_run(request.weights) or task.kind == "pretraining":
        return None
    origin = Run.open(request.weights, pretraining=True)
    name, _ = default_recipe(count, pretrained=False, kind=task.recipe_kind)
    large = origin.config.weights or not origin.config.train.recipe.startswith("pretrain-")
    if origin.task.kind != "pretraining" or large or name != "small-data":
        return None
    return replace(RECIPES[task.recipe_kind][name].train, start_size=1.0)


def initialize(network: Network, run: Run, weights: str, entry: ModelEntry) -> Choice[str]:
    """Load the initial weights; return their source, empty for random ones.

    Of a run of another task, or with added classes, only the backbone is loaded; of one with other
    classes everything but the class-specific layers. `entry` names the published weights.
    """
    if weights in ("none", ""):
        return Choice("", ("weights: random (--weights none)",))
    if run.config.extend is not None:
        return _load_extended(network, run)
    if weights != "auto":
        return Choice(weights, _load_requested(network, run, weights))
    if run.task.kind == "pretraining":
        return Choice("", ("weights: random; those to go on from are given with --weights",))
    if not entry.weights:
        others = f"but for others, such as {PUBLISHED} (muntin models lists them)"
        return Choice("", (f"weights: random; none are published for this model, {others}",))
    try:
        report = load_weights(network, entry.weights, made_with=to_dict(entry.config))
    # Only "auto" may end with random weights; a source that the user named must exist.
    except WeightError as error:
        warnings.warn(f"{FRESH_WEIGHTS}: {error}", MuntinWarning, stacklevel=2)
        return Choice("", (f"weights: random; {entry.weights} is not available: {WAYS_OUT}",))
    license_ = entry.license or "not stated"
    return Choice(entry.weights, (f"weights: {report.summary()}; license {license_}",))


def _load_requested(network: Network, run: Run, weights: str) -> tuple[str, ...]:
    origin = Run.open(weights, pretraining=True) if is_run(weights) else None
    if origin is not None:
        find_results(origin.path, verify=True)
    # A head with added classes goes on by --extend only.
    if origin is not None and (origin.config.task != run.config.task or origin.config.extend):
        return (_load_backbone(network.backbone, weights),)
    # Kept to be restored: loading overwrites layers of equal shape, whatever their classes.
    state = network.state_dict()
    fresh = {name: state[name].clone() for name in class_tensors(network)}
    note = f"weights: {load_weights(network, weights).summary()}"
    if origin is None or _output_names(origin.classes) == _output_names(run.classes):
        return (note,)
    network.load_state_dict(fresh, strict=False)
    reset = (
        f"{weights} has different classes, or in a different order "
        f"({shorten(_output_names(origin.classes))}): class-specific layers keep random weights"
    )
    return note, reset


def _load_extended(network: Network, run: Run) -> Choice[str]:
    """Load the run that is extended; the new part begins as a copy but for its class layers."""
    extend = run.config.extend
    assert extend is not None, "only a run that extends another one is loaded so"
    origin = Run.open(extend.run)
    if weights_checksum(origin.path) != extend.checksum:
        message = (
            f"{extend.run} must have the weights that were extended, got others (checksum). "
            f"Restore them, or extend the run again with --extend."
        )
        raise RunError(message)
    before: Any = origin.load_network()
    # Copied name by name, not searched for: every bit is to be the same.
    network.backbone.load_state_dict(before.backbone.state_dict())
    head: Any = network.head
    known = before.head.parts if origin.config.extend else [before.head]
    for part, trained in zip(head.parts[:-1], known, strict=True):
        part.load_state_dict(trained.state_dict())
    # Pyramid and convolutions have learnt what objects are; only the classes begin anew.
    last: Head = head.parts[-1]
    layers: Mapping[str, tuple[int, int]] = last.class_layers()
    copy_part(known[-1], last, [*layers])
    return Choice(extend.run, (f"weights: those of {extend.run}, its classes frozen",))


# Each task has norms of its own behind the maps, the tokens or their mean that it reads.
_OUTPUT_NORM = re.compile(r"(norm\d*|fc_norm)\.")


def _load_backbone(backbone: nn.Module, weights: str) -> str:
    """Load the backbone of a run of another task; output norms that it lacks stay random."""
    opened = open_weights(weights, "auto", backbone)
    prefix, state = opened.found.body_prefix, opened.state
    own = {name: x for name, x in backbone.state_dict().items() if _OUTPUT_NORM.match(name)}
    fresh = {prefix + name: x for name, x in own.items() if prefix + name not in state}
    found = replace(opened.found, state={**state, **fresh})
    report = load_weights(backbone, replace(opened, found=found))
    said = f", random: {shorten(fresh, limit=8)}" if fresh else ""
    return f"weights: {report.summary()}; backbone only{said}"


def _output_names(classes: Classes) -> tuple[str, ...]:
    """Names of the keypoints in pose tasks, else of the classes."""
    return classes.names if classes.skeleton is None else classes.skeleton.names
