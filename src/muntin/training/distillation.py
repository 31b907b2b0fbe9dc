# SPDX-License-Identifier: Apache-2.0
"""The teacher of a run: which one, what is learnt of it, and the objective with it."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning_fabric import Fabric

from muntin.configs import with_texts
from muntin.data.classification_transforms import AugmentConfig
from muntin.data.randomness import derive_seed
from muntin.devices import Autocast, choose_device
from muntin.engines.engine_table import find_format
from muntin.errors import ConfigError, WeightError, quote, shorten
from muntin.features import FeatureSpec
from muntin.heads.network import Network
from muntin.objectives.distilled_objective import DistilledClasses, DistilledFeatures
from muntin.objectives.objective import Objective
from muntin.objectives.supervised_objective import Supervised
from muntin.objectives.teacher import Teacher
from muntin.objectives.teacher_answer import (
    Answer,
    SharedClasses,
    StoredAnswer,
    TeacherAnswer,
    match_classes,
)
from muntin.run_config import DistillConfig, RunConfig
from muntin.run_files import weights_checksum
from muntin.runs import Run
from muntin.samples import Classes, Listing
from muntin.tasks.task import Task
from muntin.training.defaults import Choice
from muntin.training.teacher_cache import (
    TeacherImages,
    compute_answers,
    find_answers,
    store_answers,
)
from muntin.weights.source_info import read_source_info
from muntin.weights.weight_files import is_weight_file, weights_digest
from muntin.zoo.model_building import canonical_name
from muntin.zoo.model_zoo import MODELS

if TYPE_CHECKING:
    from muntin.training.progress import Reporter
    from muntin.training.request import PreparedRun, Request

ALPHAS = {"hard": 0.5, "soft": 0.1, "features": 1.0}
"""Published weights of a teacher (arXiv 2012.12877, section 5.2); that of features is ours."""

LEAST_CROP = 0.5
"""Smallest `augment.crop_scale` with which answers for whole images are stored by default."""

_PROJECTION = 0x70726F6A
"""Address of the initial projections."""


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
    config = with_texts(start, settings, group="distill")
    if not config.teacher and settings:
        message = (
            f"distill.{settings[0][0]} has no effect without a teacher, got none. Pass --teacher."
        )
        raise ConfigError(message)
    if not config.teacher:
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
    if config.kind != "soft" and "temperature" in dict(settings):
        message = (
            f"distill.temperature has no effect on distill.kind={config.kind}. Omit it, or set "
            f"distill.kind=soft."
        )
        raise ConfigError(message)
    if config.kind == "features" and config.cache == "on":
        message = (
            f"distill.cache=on needs distill.kind=hard or soft, got {config.kind}, whose maps "
            f"depend on the crop. Set distill.cache=off."
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
    start += f"; license {teacher.license}" if teacher.license else ""
    if config.kind == "features":
        strides = ", ".join(map(str, teacher.backbone.spec.strides))
        note = f"{start}; its maps at strides {strides}"
        return Choice(replace(config, cache="off"), (note, _BESIDE))
    shared = match_classes(teacher, classes)
    size = num_images * len(shared.student) * 2 / 2**20
    cache = _choose_cache(config, run, size)
    matched = _describe_shared(teacher, classes, shared)
    notes = (start, matched, _describe_cache(config, cache, size))
    return Choice(replace(config, cache=cache), notes)


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


def check_teacher(source: str) -> None:
    """Check that a teacher exists and was trained, without reading its weights.

    Raises:
        ConfigError: It is neither a run, an exported file nor a model.
        WeightError: Weights of the model are not available.
    """
    from muntin.published import find_published  # needed with a teacher alone

    path = Path(source)
    if is_weight_file(path) and find_format(path) is None:
        if canonical_name(path.stem) not in MODELS and read_source_info(path) is None:
            message = (
                f"--teacher must be a run folder or a model, got the file {source}, which says of "
                f"no model. Make a run of it: muntin convert {quote(source)} OUT --to run --model "
                f"NAME"
            )
            raise ConfigError(message)
    elif not _is_stored(source):
        try:
            find_published(source)
        except (ConfigError, WeightError) as error:
            message = f"--teacher must be a run folder or a model with trained weights. {error}"
            raise type(error)(message) from error


def open_teacher(
    source: str, *, backbone_only: bool = False, autocast: Autocast = nullcontext
) -> Teacher:
    """Open a run folder, an exported file, or what else `muntin.published.open_run` opens.

    Args:
        source: Path or name; ``timm:`` and a name for a model of timm.
        backbone_only: Whether a published model may lack a classifier, which is not read.
        autocast: As in `Teacher`.

    Raises:
        ConfigError: The source is none of these, or has no trained weights.
        RunError: A file of the run is missing or broken.
        WeightError: The weights are not available, or do not fit.
    """
    from muntin.published import open_run

    stored = _is_stored(source)
    if stored:
        run = Run.open(source, pretraining=True)
        if run.task.kind == "pretraining" and not backbone_only:
            message = (
                f"--teacher {source} was pretrained without labels and has maps to teach, but no "
                f"answers. Set distill.kind=features."
            )
            raise ConfigError(message)
    else:
        run = open_run(source, backbone_only=backbone_only)
    network = run.load_network()
    bare = backbone_only and not stored  # there may be no head with trained weights
    trained = network.backbone if bare and isinstance(network, Network) else network
    return Teacher(
        source=source,
        checksum=weights_checksum(run.path) if stored else weights_digest(trained),
        network=network.requires_grad_(False),
        preprocessing=run.preprocessing,
        task=None if bare else run.task,
        classes=None if bare else run.classes,
        license=run.config.license,
        autocast=autocast,
    )


def _is_stored(source: str) -> bool:
    """Whether a source is a path to a run folder or an exported file."""
    path = Path(source)
    return path.is_dir() or (path.exists() and find_format(path) is not None)


def open_for(config: RunConfig, device: torch.device, autocast: Autocast = nullcontext) -> Teacher:
    """Open the teacher of a resolved run on a device."""
    distill = config.distill
    assert distill is not None, "a run with a teacher"
    teacher = open_teacher(
        distill.teacher, backbone_only=distill.kind == "features", autocast=autocast
    )
    return replace(teacher, network=teacher.network.to(device))


def read_answers(prepared: PreparedRun, reporter: Reporter) -> StoredAnswer | None:
    """Read or compute the stored answers for the training images; None if there are none."""
    run, distill = prepared.run, prepared.run.config.distill
    if distill is None or distill.cache != "on":
        return None
    images, shared = _images_of(run, prepared.train)
    file = find_answers(run.path, distill, images.teacher, shared, prepared.train)
    return store_answers(file, images, shared, reporter)


def sample_answers(run: Run, listing: Listing) -> tuple[StoredAnswer | None, float]:
    """Compute the answers for a few images, where they would be stored, and seconds an image."""
    if run.config.distill is None or run.config.distill.cache != "on":
        return None, 0.0
    images, shared = _images_of(run, listing)
    logits = torch.zeros(len(listing), len(shared.teacher), dtype=torch.float16)
    compute_answers(images, shared, logits.__setitem__)  # kernels are chosen
    start = time.perf_counter()
    compute_answers(images, shared, logits.__setitem__)
    return StoredAnswer(logits, shared), (time.perf_counter() - start) / len(listing)


def _images_of(run: Run, listing: Listing) -> tuple[TeacherImages, SharedClasses]:
    teacher = open_for(run.config, choose_device(run.config.machine.device))
    return TeacherImages(listing, teacher, run.config), match_classes(teacher, run.classes)


def add_teacher(
    objective: Objective[Any],
    run: Run,
    spec: FeatureSpec,
    fabric: Fabric,
    stored: StoredAnswer | None = None,
) -> Objective[Any]:
    """Add the teacher of a run to its objective, if it has one.

    Args:
        objective: What is learnt without it; with a teacher, from labels.
        run: Resolved.
        spec: Of the student's backbone.
        fabric: Gives device and precision to a teacher that runs beside the student.
        stored: Answers that it looks up instead.
    """
    distill = run.config.distill
    if distill is None:
        return objective
    if not isinstance(objective, Supervised):
        task = run.config.task
        message = f"a teacher needs a task with labels, got {task}. Omit distill.teacher."
        raise ConfigError(message)
    alpha = float(distill.alpha)
    if stored is None:
        # Of the strategy: a student that leaves half precision takes its teacher with it.
        teacher = open_for(
            run.config, fabric.device, lambda: fabric.strategy.precision.forward_context()
        )
        shared = None if distill.kind == "features" else match_classes(teacher, run.classes)
        answer: Answer = TeacherAnswer(teacher, run.preprocessing, shared)
    else:
        answer = stored
    if isinstance(answer, TeacherAnswer) and answer.shared is None:
        # From an address: nothing else in the run may depend on what is drawn here.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(run.config.train.seed, _PROJECTION))
            return DistilledFeatures(objective, answer, student=spec, alpha=alpha)
    return DistilledClasses(
        objective,
        answer,
        kind="hard" if distill.kind == "hard" else "soft",
        alpha=alpha,
        temperature=distill.temperature,
    )
