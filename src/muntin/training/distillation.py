# SPDX-License-Identifier: Apache-2.0
"""The teacher of a run: which one, what is learnt of it, and the objective with it."""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch

from muntin.configs import with_texts
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.randomness import derive_seed
from muntin.devices import choose_device
from muntin.errors import ConfigError, plural, shorten
from muntin.features import FeatureSpec
from muntin.objectives.distilled_objective import (
    Answer,
    DistilledClasses,
    DistilledFeatures,
    SharedClasses,
    StoredAnswer,
    TeacherAnswer,
)
from muntin.objectives.objective import Autocast, Objective
from muntin.objectives.supervised_objective import Supervised
from muntin.objectives.teacher import Teacher, check_teacher, open_teacher
from muntin.run_config import DistillConfig, RunConfig
from muntin.runs import Run
from muntin.samples import Classes, Listing
from muntin.tasks.task import Task
from muntin.training.defaults import Choice
from muntin.training.progress import Reporter
from muntin.training.request import PreparedRun, Request
from muntin.training.teacher_cache import (
    StoredLogits,
    compute_answers,
    load_images,
    store_answers,
)

ALPHAS = {"hard": 0.5, "soft": 0.1, "features": 1.0}
"""Published weights of a teacher (arXiv 2012.12877, section 5.2); that of features is ours."""

LEAST_CROP = 0.5
"""Smallest `augment.crop_scale` with which answers for whole images are stored by default."""

_PROJECTION = 0x70726F6A
"""Address of the initial projections."""

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def read_distill(
    request: Request, settings: list[tuple[str, str]], task: Task
) -> DistillConfig | None:
    """Read what the request says of a teacher, before any data; None without one.

    Raises:
        ConfigError: The teacher cannot be one, or a setting does not suit the task.
    """
    base = None if request.base is None else request.base.distill
    start = base or DistillConfig()
    if request.teacher and request.teacher != start.teacher:
        start = replace(start, teacher=request.teacher, checksum="")
    if request.teacher_cache:
        start = replace(start, cache_dir=request.teacher_cache)
    config = with_texts(start, settings, group="distill")
    if not config.teacher:
        if settings or request.teacher_cache:
            given = f"distill.{settings[0][0]}" if settings else "--teacher-cache"
            message = f"{given} has no effect without a teacher, got none. Pass --teacher."
            raise ConfigError(message)
        return None
    check_teacher(config.teacher)
    if config.kind == "auto":
        config = replace(config, kind="features" if task.dense else "hard")
    if config.kind != "features" and task.dense:
        message = (
            f"distill.kind={config.kind} needs the task classify, got {task.name}. Set "
            f"distill.kind=features."
        )
        raise ConfigError(message)
    alpha = ALPHAS[config.kind] if config.alpha == "auto" else config.alpha
    return replace(config, alpha=alpha)


def resolve_distill(
    config: DistillConfig, run: RunConfig, classes: Classes, num_images: int
) -> Choice[DistillConfig]:
    """Open the teacher, match its classes, and decide whether its answers are stored."""
    teacher = open_teacher(config.teacher, backbone_only=config.kind == "features")
    if config.checksum and config.checksum != teacher.checksum:
        message = (
            f"the teacher {config.teacher} must have the weights that the run began with (SHA-256 "
            f"{config.checksum[:12]}), got others ({teacher.checksum[:12]}). Restore them, or "
            f"start a new run with --teacher."
        )
        raise ConfigError(message)
    config = replace(config, checksum=teacher.checksum)
    weight = f"weight {config.alpha:g} (distill.alpha)"
    start = f"teacher {config.teacher}: {config.kind} (distill.kind), {weight}"
    licensed = (f"{start}; license {teacher.license}" if teacher.license else start,)
    if config.kind == "features":
        strides = ", ".join(map(str, teacher.backbone.spec.strides))
        note = f"{licensed[0]}; its maps at strides {strides}"
        if config.cache == "on":
            message = (
                f"distill.cache=on needs distill.kind=hard or soft, got {config.kind}, whose maps "
                f"depend on the crop. Set distill.cache=off."
            )
            raise ConfigError(message)
        return Choice(replace(config, cache="off"), (note, _BESIDE))
    shared = match_classes(teacher, classes)
    size = num_images * len(shared.student) * 2 / 2**20
    cache = _choose_cache(config, run, size)
    notes = (*licensed, _describe_shared(teacher, classes, shared))
    return Choice(replace(config, cache=cache), (*notes, _describe_cache(config, cache, size)))


_BESIDE = "teacher: runs beside the student in every step, and sees the same augmented images"


def _choose_cache(config: DistillConfig, run: RunConfig, size_mib: float) -> Literal["on", "off"]:
    """Whether answers are stored; an explicit "on" must be possible."""
    augment = run.augment
    assert isinstance(augment, AugmentConfig), "of classification"
    mixed = {"augment.mixup": augment.mixup, "augment.cutmix": augment.cutmix}
    if config.cache == "on" and any(mixed.values()):
        names = " and ".join(name for name, value in mixed.items() if value)
        message = (
            f"distill.cache=on needs images that are not mixed, got {names} on. Set them to 0, or "
            f"distill.cache=off."
        )
        raise ConfigError(message)
    if config.cache == "on" and size_mib > config.cache_mib:
        message = (
            f"distill.cache=on needs {math.ceil(size_mib)} MiB for the answers, got "
            f"distill.cache_mib={config.cache_mib}. Raise it, or set distill.cache=off."
        )
        raise ConfigError(message)
    if config.cache != "auto":
        return config.cache
    mild = augment.crop_scale >= LEAST_CROP and augment.auto == "none" and not augment.jitter
    fits = size_mib <= config.cache_mib
    return "on" if mild and fits and not any(mixed.values()) else "off"


def _describe_cache(config: DistillConfig, cache: str, size_mib: float) -> str:
    if cache == "off":
        return f"{_BESIDE} (distill.cache=off)"
    place = config.cache_dir or "the run folder"
    return (
        f"teacher: sees each whole image once; answers of at most {math.ceil(size_mib)} MiB are "
        f"stored in {place}. That is faster than its answers to each crop, which they approximate "
        f"(arXiv 2106.05237; --set distill.cache=off)"
    )


def match_classes(teacher: Teacher, classes: Classes) -> SharedClasses:
    """Match classes by name, whatever their case, with spaces and underscores as one.

    A name that several classes have is left out.

    Raises:
        ConfigError: The teacher has another task, or too few classes in common.
    """
    theirs = teacher.classes
    kind = None if teacher.task is None else teacher.task.kind
    if theirs is None or teacher.task is None or kind != "classification":
        name = "none" if teacher.task is None else teacher.task.name
        message = (
            f"distill.kind=hard and soft need a teacher of the task classify, got {name} in "
            f"{teacher.source}. Set distill.kind=features."
        )
        raise ConfigError(message)
    if theirs.multi_label != classes.multi_label:
        kinds = ("exactly one class", "any number of classes")
        message = (
            f"the teacher must give an image {kinds[classes.multi_label]}, as the labels do, got "
            f"{kinds[theirs.multi_label]} in {teacher.source}. Set distill.kind=features."
        )
        raise ConfigError(message)
    known, wanted = _places(theirs.names), _places(classes.names)
    common = [name for name in wanted if name in known]
    least = 1 if classes.multi_label else 2
    if len(common) < least:
        message = (
            f"distill.kind=hard and soft need at least {plural(least, 'class', 'classes')} that "
            f"teacher and data share by name, got {len(common)}: the teacher {teacher.source} has "
            f"{shorten(theirs.names, limit=3)}, the data have {shorten(classes.names, limit=3)}. "
            f"Set distill.kind=features."
        )
        raise ConfigError(message)
    return SharedClasses(
        teacher=tuple(known[name] for name in common),
        student=tuple(wanted[name] for name in common),
    )


def _places(names: tuple[str, ...]) -> dict[str, int]:
    keys = [" ".join(name.casefold().replace("_", " ").split()) for name in names]
    counts = Counter(keys)
    return {key: number for number, key in enumerate(keys) if counts[key] == 1}


def _describe_shared(teacher: Teacher, classes: Classes, shared: SharedClasses) -> str:
    theirs = () if teacher.classes is None else teacher.classes.names
    unused = len(theirs) - len(shared.teacher)
    unknown = [name for number, name in enumerate(classes.names) if number not in shared.student]
    text = f"teacher: {len(shared.student)} of {len(classes.names)} classes matched by name"
    if unused:
        text += f"; {unused} of its classes are left out, and its probabilities sum to 1 again"
    if unknown:
        text += f"; {shorten(unknown)} learnt from labels alone"
    return text


def open_for(run: Run, device: torch.device, precision: str = "fp32") -> Teacher:
    """Open the teacher of a resolved run on a device."""
    distill = run.config.distill
    assert distill is not None, "a run with a teacher"
    autocast: Autocast = nullcontext
    if precision in _HALF:
        autocast = partial(torch.autocast, device.type, _HALF[precision])
    teacher = open_teacher(
        distill.teacher, backbone_only=distill.kind == "features", autocast=autocast
    )
    return replace(teacher, network=teacher.network.to(device))


def read_answers(prepared: PreparedRun, reporter: Reporter) -> StoredLogits | None:
    """Read or compute the stored answers for the training images; None if there are none."""
    run, distill = prepared.run, prepared.run.config.distill
    if distill is None or distill.cache != "on":
        return None
    teacher = open_for(run, choose_device(run.config.machine.device))
    shared = match_classes(teacher, run.classes)
    return store_answers(run, teacher, shared, prepared.train, reporter)


def sample_answers(run: Run, listing: Listing) -> tuple[StoredLogits | None, float]:
    """Compute the answers for a few images, where they would be stored, and seconds an image."""
    distill = run.config.distill
    if distill is None or distill.cache != "on":
        return None, 0.0
    teacher = open_for(run, choose_device(run.config.machine.device))
    shared = match_classes(teacher, run.classes)
    logits = torch.zeros(len(listing), len(shared.teacher), dtype=torch.float16)
    loader = load_images(teacher, listing, run.config)
    compute_answers(teacher, shared, loader, logits.__setitem__)  # kernels are chosen
    start = time.perf_counter()
    compute_answers(teacher, shared, loader, logits.__setitem__)
    return StoredLogits(logits, shared), (time.perf_counter() - start) / len(listing)


def add_teacher(
    objective: Objective[Any],
    run: Run,
    spec: FeatureSpec,
    device: torch.device,
    stored: StoredLogits | None = None,
) -> Objective[Any]:
    """Add the teacher of a run to its objective, if it has one.

    Args:
        objective: What is learnt without it; with a teacher, from labels.
        run: Resolved.
        spec: Of the student's backbone.
        device: Of a teacher that runs beside the student.
        stored: Answers that it looks up instead.
    """
    distill = run.config.distill
    if distill is None:
        return objective
    assert isinstance(objective, Supervised), "a teacher is refused where there are no labels"
    if stored is not None:
        return _with_classes(objective, distill, StoredAnswer(stored.logits), stored.shared)
    teacher = open_for(run, device, run.config.machine.precision)
    if distill.kind != "features":
        shared = match_classes(teacher, run.classes)
        answer = TeacherAnswer(teacher, run.preprocessing, shared.teacher)
        return _with_classes(objective, distill, answer, shared)
    # From an address: nothing else in the run may depend on what is drawn here.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(run.config.train.seed, _PROJECTION))
        return DistilledFeatures(
            objective,
            TeacherAnswer(teacher, run.preprocessing, None),
            student=spec,
            teacher=teacher.backbone.spec,
            alpha=float(distill.alpha),
        )


def _with_classes(
    supervised: Supervised, distill: DistillConfig, answer: Answer, shared: SharedClasses
) -> DistilledClasses:
    return DistilledClasses(
        supervised,
        answer,
        columns=shared.student,
        kind="hard" if distill.kind == "hard" else "soft",
        alpha=float(distill.alpha),
        temperature=distill.temperature,
    )
