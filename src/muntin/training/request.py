# SPDX-License-Identifier: Apache-2.0
"""Requests for a run, new, repeated or resumed, and the checks that need no data."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from muntin.configs import with_texts
from muntin.data.data_config import DataConfig
from muntin.errors import ConfigError, RunError, unknown_name
from muntin.heads.head_table import PRETRAINING_KINDS, find_head
from muntin.heads.network import HeadConfig, Network
from muntin.objectives.teacher_answer import StoredAnswer
from muntin.recipes import AUGMENTS, find_recipe
from muntin.run_config import DistillConfig, RunConfig
from muntin.run_files import WEIGHTS, read_json
from muntin.runs import Run, is_run, read_journal
from muntin.samples import Listing
from muntin.shapes import Size
from muntin.staging import refuse_existing
from muntin.tasks.task import Task
from muntin.tasks.task_table import TASKS, task_of_run
from muntin.train_config import MachineConfig, TrainConfig
from muntin.zoo.model_building import canonical_name, model_config


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A requested run, with the arguments of `muntin.train`; `prepare` resolves "", 0 and "auto".

    `settings` are dotted names of config fields with values as text; `base` is the config of an
    earlier run to start from instead of a recipe.
    """

    task: str
    data: str
    out: str
    val: str = ""
    model: str = ""
    head: str = ""
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
    teacher: str = ""
    extend: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedRun:
    """A run that is ready to start: every field resolved, initial weights loaded, nothing written.

    `keep_batch` tells whether the user has set the batch size; `notes` say what was chosen
    automatically and why, one line each; `answers` are those of a teacher, if they are stored.
    """

    run: Run
    network: Network
    train: Listing
    val: Listing
    keep_batch: bool
    notes: tuple[str, ...]
    answers: StoredAnswer | None = None


def task_of(request: Request) -> Task:
    """Return the requested task, which may depend on the head."""
    head: HeadConfig | str | None = request.head or None
    if head is None and request.base is not None:
        head = request.base.head
    # Fine-tuning a run continues with its head, which may determine the task.
    elif head is None and not request.model and is_run(request.weights):
        config = Run.open(request.weights, pretraining=True).config
        head = config.head if config.task == request.task else None
    return task_of_run(request.task, head)


def choose_seed(request: Request, settings: list[tuple[str, str]]) -> int:
    """Return the seed: that of ``--set``, else of the request, else of the run to start from."""
    start = request.base.train if request.base is not None else TrainConfig()
    if request.seed >= 0:
        start = replace(start, seed=request.seed)
    # Splitting the data needs the seed before the other settings can be resolved.
    chosen: TrainConfig = with_texts(start, [row for row in settings if row[0] == "seed"])
    return chosen.seed


MIN_SIDE = 32
"""Pixels; smaller images leave no cell in the coarsest level of a pyramid."""

MIN_CLASSIFIED_SIDE = 8
"""Pixels; smaller images show nothing that could be learnt."""

MAX_SIDE = 2**15
"""Pixels; activations of larger images fit into no memory."""


def _check_head(name: str, task: Task) -> None:
    if task.kind == "pretraining":
        if name not in PRETRAINING_KINDS:
            raise ConfigError(unknown_name("objective", name, PRETRAINING_KINDS))
        return
    if task.dense is None:
        message = f"{task.name} has one head, got head={name!r}. Omit it."
        raise ConfigError(message)
    for other in TASKS.values():
        if other.dense and name in other.dense.heads.keys() - task.dense.heads.keys():
            message = (
                f"head {name!r} belongs to task {other.name}, got task {task.name}. "
                f"Use: muntin train {other.name}"
            )
            raise ConfigError(message)
    find_head(name, task.dense.heads)


_WEIGHTING = frozenset(("train.class_weights", "train.label_smoothing"))
_OF_LABELS = _WEIGHTING | {
    "train.location_loss", "data.sampler", "augment.mixup", "augment.cutmix"
}  # fmt: skip


def _find_unused(task: Task) -> frozenset[str]:
    """Settings that say nothing to a task, although its configs have them."""
    if task.kind == "pretraining":
        return _OF_LABELS
    return _WEIGHTING if task.detects or task.top_down else frozenset()


def _check_recompute(request: Request, settings: Mapping[str, list[tuple[str, str]]]) -> None:
    """Check that the user does not set what `train.memory_gib` chooses."""
    start = TrainConfig() if request.base is None else request.base.train
    tuned: TrainConfig = with_texts(start, settings["train"], group="train")
    explicit = "recomputed_blocks" in dict(settings["train"]) and tuned.recomputed_blocks
    if explicit and tuned.memory_gib:
        message = (
            f"train.memory_gib chooses train.recomputed_blocks, got both: "
            f"train.memory_gib={tuned.memory_gib:g}, train.recomputed_blocks="
            f"{tuned.recomputed_blocks}. Set only one of them."
        )
        raise ConfigError(message)


def require_sides(size: Size, task: Task) -> None:
    """Refuse images of a size that cannot be trained."""
    least = MIN_SIDE if task.dense else MIN_CLASSIFIED_SIDE
    if min(size) < least:
        message = (
            f"img_size must be at least {least} pixels for {task.name}, got {tuple(size)}. "
            f"Increase it."
        )
        raise ConfigError(message)
    if max(size) > MAX_SIDE:
        message = f"img_size must be at most {MAX_SIDE} pixels a side, got {tuple(size)}."
        raise ConfigError(message)


def check_request(request: Request, settings: Mapping[str, list[tuple[str, str]]]) -> None:
    """Check names and settings before any data is read."""
    task = task_of(request)
    if request.extend:
        check_extension(request, settings)
    if request.recipe != "auto":
        find_recipe(request.recipe, task.recipe_kind)
    # The configs built here are dropped: only their errors matter.
    _check_recompute(request, settings)
    with_texts(AUGMENTS[task.recipe_kind](), settings["augment"], group="augment")
    if request.head:
        _check_head(request.head, task)
    if any(request.img_size):
        require_sides(request.img_size, task)
    given = {f"{group}.{name}" for group, rows in settings.items() for name, _ in rows}
    if unused := given & _find_unused(task):
        message = f"{min(unused)} has no effect on {task.name}. Omit it."
        raise ConfigError(message)
    if request.model:
        config = model_config(canonical_name(request.model), {})
        with_texts(config, settings["model"], group="model")


_OF_ORIGIN = ("model", "head", "img_size", "base", "teacher")
_FIXED = ("model.", "head.", "data.range", "data.scale", "data.short_side", "data.crop_fraction")


def check_extension(request: Request, settings: Mapping[str, list[tuple[str, str]]]) -> None:
    """Refuse what an extended run takes from the run that it extends, or cannot have."""
    given = [name for name in _OF_ORIGIN if getattr(request, name) not in ("", (0, 0), None)]
    if request.weights not in ("auto", request.extend):
        given.append("weights")
    named = [f"{group}.{name}" for group, rows in settings.items() for name, _ in rows]
    given += [name for name in named if name.startswith(_FIXED)]
    given += [name for name in named if name == "train.class_weights"]
    if task_of(request).kind == "keypoints":  # classes there are keypoints of one skeleton
        message = "--extend adds classes to classify, detect, instance or semantic, got pose."
        raise ConfigError(message)
    if given:
        message = (
            f"--extend takes model, head, image size and preprocessing from {request.extend}, and "
            f"weighs no classes, got {', '.join(given).replace('base', '--config')} too. Omit it."
        )
        raise ConfigError(message)


def group_settings(settings: tuple[tuple[str, str], ...]) -> dict[str, list[tuple[str, str]]]:
    """Group settings such as ``train.epochs`` by the word before the dot."""
    groups: dict[str, list[tuple[str, str]]] = {
        group: [] for group in ("train", "augment", "data", "machine", "model", "head", "distill")
    }
    for path, text in settings:
        group, _, field = path.partition(".")
        if group not in groups or not field:
            # The group was left out: compare with fields, the closest of which comes first.
            kinds = (DistillConfig, MachineConfig, DataConfig, *AUGMENTS.values(), TrainConfig)
            names = ("distill", "machine", "data", *["augment"] * len(AUGMENTS), "train")
            known = {
                field.name: f"{before}.{field.name}"
                for before, kind in zip(names, kinds, strict=True)
                for field in fields(kind)
            }
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"Did you mean {known[near[0]]!r}?" if near else "Write train.epochs=10."
            message = f"a setting must begin with {', '.join(groups)}, got {path!r}. {hint}"
            raise ConfigError(message)
        groups[group].append((field, text))
    return groups


def _was_cut(folder: Path) -> bool:
    """Whether a training ended while it wrote its first weights and checkpoint."""
    try:
        epochs = int(read_json(folder / "config.json")["train"]["epochs"])
    except (RunError, LookupError, TypeError, ValueError):
        return False
    return (folder / "split.json").is_file() and len(read_journal(folder)) <= 1 < epochs


def repeat_request(request: Request) -> Request:
    """Fill in weights and validation images of a run that is repeated with --config."""
    folder, base = Path(request.out), request.base
    # A run that stopped before its first checkpoint has nothing to lose and is overwritten.
    kept = any((folder / name).exists() for name in ("last.ckpt", "last.ckpt.old"))
    if kept or ((folder / WEIGHTS).exists() and not _was_cut(folder)):
        message = (
            f"out must be a new folder, got {folder}, which contains a run. Pass another --out, or "
            f"--resume to continue it."
        )
        raise RunError(message)
    refuse_existing([folder], [request.data, request.val], option="--out", force=True)
    if not (folder / "config.json").exists():  # then these files are not those of a run
        names = ("classes.json", "preprocessing.json", "split.json", "journal.jsonl")
        refuse_existing([folder / name for name in names], (), option="--out", force=None)
    if base is None:
        return request
    if base.task != request.task:
        message = f"--config must be of task {request.task!r}, got a run of task {base.task!r}."
        raise ConfigError(message)
    if request.recipe != "auto":
        message = f"--config includes a recipe, got --recipe {request.recipe} too. Omit one."
        raise ConfigError(message)
    weights = (base.weights or "none") if request.weights == "auto" else request.weights
    val = request.val or (base.val if base.data == request.data else "")
    return replace(request, weights=weights, val=val)


def read_config(path: str | Path) -> RunConfig:
    """Read ``config.json`` of a run."""
    try:
        return RunConfig.from_dict(read_json(Path(path)), where=str(path))
    except RunError as error:
        message = f"config must be the config.json of a run: {error}"
        raise ConfigError(message) from error
