# SPDX-License-Identifier: Apache-2.0
"""Going on with a run: with the settings and the images that it has, and perhaps for longer."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from muntin.configs import with_texts
from muntin.errors import ConfigError, RunError
from muntin.heads.head_table import find_head
from muntin.run_config import RunConfig
from muntin.run_files import read_split
from muntin.runs import Run
from muntin.samples import Listing
from muntin.tasks.task_table import task_of_run
from muntin.train_config import MachineConfig, TrainConfig
from muntin.training.distillation import check_teacher
from muntin.training.request import Request, group_settings, task_of
from muntin.zoo.model_building import canonical_name

_LENGTHS = ("epochs", "max_time_s")


def resume_request(request: Request, has_out: bool, devices: int = 0, nodes: int = 1) -> Request:
    """Return the request of the run in `out`, which the user must have given.

    Settings must be those of the run, except for a larger `epochs` or `max_time_s`, over all
    sittings: the learning rate then has the value that it would have had in the longer run at this
    point. `devices` (0 = as before), `nodes`, `machine.workers`, `machine.timeout_s` and
    `machine.log` may change: they have no influence on the result.
    """
    if not has_out:
        message = "--resume needs a run folder, got no --out. Pass the run folder as --out."
        raise ConfigError(message)
    if not Path(request.out).is_dir():
        message = (
            f"--resume needs an existing run folder, got none at --out {request.out}. Check it, or "
            f"omit --resume to start a new run there."
        )
        raise RunError(message)
    base = Run.open(request.out, pretraining=True).config
    # First: settings and recipes of another kind of run would be called unknown.
    if base.task != request.task:
        wanted, found = (task_of_run(name).command for name in (request.task, base.task))
        message = (
            f"--resume of {wanted} needs one of its runs, got --out {request.out}, a run of "
            f"{found}. Resume it with {found}, or give another --out."
        )
        raise RunError(message)
    base = _find_teacher(request, base)
    settings = group_settings(request.settings)
    given = {name: value for name in _LENGTHS if (value := getattr(request, name))}
    train = with_texts(replace(base.train, **given), settings["train"], group="train")
    _require_longer(train, base.train)
    kept = {name: getattr(train, name) for name in (*_LENGTHS, "shard")}
    train = replace(base.train, **kept)
    if changed := _find_changes(request, base, settings):
        message = (
            f"a resumed run keeps its settings, got another {', '.join(changed)} with --resume. "
            f"Omit them, or start a new run with another --out."
        )
        raise ConfigError(message)
    machine = with_texts(base.machine, settings["machine"], group="machine")
    machine = replace(machine, devices=devices or machine.devices, nodes=nodes)
    return Request(
        task=request.task,
        data=request.data,
        out=request.out,
        val=request.val or base.val,
        # Weights come from the checkpoint: loading others first would waste time.
        weights="none",
        machine=machine,
        base=replace(base, train=train, machine=machine),
    )


def _find_teacher(request: Request, base: RunConfig) -> RunConfig:
    """The config of the run with its teacher at the place that the request names, if any."""
    if base.distill is None:
        return base
    source = request.teacher or base.distill.teacher
    try:
        check_teacher(source)
    except ConfigError as error:
        message = (
            f"the teacher {source!r} of the run must be there when it is resumed. Restore it, or "
            f"say where the same weights are now, with --teacher. {error}"
        )
        raise ConfigError(message) from error
    # Its checksum stays: other weights are refused where they are opened.
    return replace(base, distill=replace(base.distill, teacher=source))


def _require_longer(train: TrainConfig, before: TrainConfig) -> None:
    for name in _LENGTHS:
        new, old = getattr(train, name), getattr(before, name)
        unlimited = name == "max_time_s" and not new
        if new != old and not unlimited and (new < old or not old):
            least = f"at least {old:g}" if old else "left out: the run has no limit of time"
            message = (
                f"train.{name} must be {least}, got {new:g} with --resume: a run goes on for as "
                f"long as it was begun, or for longer."
            )
            raise ConfigError(message)


def _find_changes(
    request: Request, base: RunConfig, settings: dict[str, list[tuple[str, str]]]
) -> list[str]:
    """Names of what was given and differs from the run."""
    train, machine = base.train, base.machine
    # What is given, what stands for "not given", and what is the same as in the run.
    values: dict[str, tuple[Any, ...]] = {
        "model": (request.model and canonical_name(request.model), "", base.model_name),
        "weights": (request.weights, "auto", base.weights or "none"),
        "recipe": (request.recipe, "auto", train.recipe),
        "batch_size": (
            request.batch_size, 0, train.batch_size, train.batch_size * train.accumulate
        ),
        "img_size": (request.img_size, (0, 0), tuple(base.model.img_size)),
        "seed": (request.seed, -1, train.seed),
        "teacher": (request.teacher, "", base.distill and base.distill.teacher),
        "extend": (request.extend, "", base.extend and base.extend.run),
    }  # fmt: skip
    free = {*_LENGTHS, "workers", "log", "shard", "devices", "nodes", "timeout_s"}
    for field in fields(MachineConfig):
        if field.name in free:
            continue
        same = (field.default, getattr(machine, field.name))
        values[field.name] = (getattr(request.machine, field.name), *same)
    changed = [name for name, (given, *same) in values.items() if given not in same]
    if request.base is not None and replace(request.base, train=train) != base:
        changed.append("--config")
    if request.head and not _is_head(request, settings["head"], base):
        changed.append("head")
    for group in settings:
        config = getattr(base, "data_config" if group == "data" else group)
        for name, text in settings[group]:
            if name in free and group in ("train", "machine"):
                continue
            if config is None or with_texts(config, [(name, text)], group=group) != config:
                changed.append(f"{group}.{name}")
    return changed


def _is_head(request: Request, rows: list[tuple[str, str]], base: RunConfig) -> bool:
    """Whether the head of the run is the requested one, as far as it was not adapted to images."""
    dense, has = task_of(request).dense, base.head
    if dense is None or has is None:
        return has is not None and request.head == has.kind
    head = with_texts(find_head(request.head, dense.heads), rows, group="head")
    if type(head) is not type(has):
        return False
    adapted = ("select", "proposals", "pre_nms")
    kept = {name: getattr(has, name) for name in adapted if hasattr(has, name)}
    return bool(replace(head, **kept) == has)


def check_same_data(folder: Path, run: Run, train: Listing, val: Listing) -> None:
    """Check that a resumed run gets the images it started with; they may have been moved."""
    _, num_train, _, held_out = read_split(folder)
    # The validation images are compared by path, as their metrics select the best epoch.
    same = (
        num_train == len(train)
        and held_out == [entry.path for entry in val.entries]
        and Run.open(folder, pretraining=True).classes == run.classes
    )
    if not same:
        message = (
            f"a run must be resumed with the images it started with, got others in {train.source} "
            f"(see {folder / 'split.json'}). Restore them, or start a new run with --config."
        )
        raise RunError(message)
