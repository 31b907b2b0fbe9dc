# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""One call from data to a run folder: `train`."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch.multiprocessing.spawn import ProcessException

from muntin.configs import from_dict, to_dict
from muntin.data.cache import ImageCache
from muntin.drawing.plots import draw_curves
from muntin.drawing.saving import save_figure
from muntin.errors import ConfigError, MuntinError, RunError, shorten
from muntin.heads.network import Network
from muntin.recipes import MachineConfig
from muntin.runs import WEIGHTS, Run, RunConfig, read_json, write_json
from muntin.samples import Listing
from muntin.scoring.figures import draw_scored
from muntin.shapes import Size
from muntin.training.batch_preview import draw_batch
from muntin.training.memory_budget import fit_memory
from muntin.training.checkpoint import read_checkpoint
from muntin.training.defaults import PRECISIONS
from muntin.training.interruption import leave_to_others
from muntin.training.journal import read_journal
from muntin.training.loop import Fitted, Stores, fit
from muntin.training.setup import Request, prepare
from muntin.training.progress import Reporter, as_time
from muntin.training.supervision import build_objective

__all__ = ["TrainedRun", "train"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """What `train` gives back.

    Attributes:
        path: The run folder.
        metrics: Figures of the best epoch on the validation images.
        epochs: Epochs that were trained.
        seconds: How long it took.
        interrupted: Whether it was stopped by Ctrl-C; go on with ``resume=True``.
    """

    path: Path
    metrics: dict[str, Any]
    epochs: int
    seconds: float
    interrupted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What every process of a run needs; it is pickled when there are several."""

    run: Run
    network: Network
    train: Listing
    val: Listing
    resume: bool
    started: float
    stop_after: int
    quiet: bool
    pictures: bool


def train(
    task: str,
    data: str | Path,
    *,
    model: str = "",
    head: str = "",
    val: str | Path = "",
    weights: str | Path | None = "auto",
    recipe: str = "auto",
    epochs: int = 0,
    max_time_s: float = 0.0,
    batch_size: int = 0,
    img_size: int | Size = 0,
    precision: str = "auto",
    device: str = "auto",
    devices: int = 1,
    seed: int = -1,
    out: str | Path = "",
    resume: bool = False,
    settings: Mapping[str, object] | None = None,
    config: str | Path | RunConfig | None = None,
    quiet: bool = False,
    stop_after: int = 0,
    pictures: bool = True,
) -> TrainedRun:
    """Train a model on your own data.

    Args:
        task: "classify", "detect" (boxes), "instance" (boxes and masks), "semantic" (the class of
            each pixel) or "pose" (keypoints).
        data: For "classify" a folder of class folders; train and val folders of those; a .zip or
            .tar of either; a CSV with the columns path and class. For "detect" and "instance" a
            COCO folder or JSON, Pascal VOC, or YOLO txt. For "semantic" images and masks, for
            "pose" COCO keypoints or CSV files of DeepLabCut.
        model: A name of `list_models`; chosen by the size of the images when empty.
        head: "fcos", "mask_rcnn", "upernet", "vitpose" and others, but for "classify"; chosen by
            the size of the model when empty.
        val: Validation images, when `data` has none; else a part is split off.
        weights: "auto" takes published weights when they can be had; "none" or None starts fresh;
            else a file, a hub id, or a run folder, whose model and head are taken too unless
            they are named.
        recipe: "finetune", "small-data" or, by task, "imagenet", "coco-3x", "ade20k" or
            "coco-pose"; "auto" chooses.
        epochs: Passes over the data; the recipe's when 0.
        max_time_s: Wall time for everything in seconds; the learning rate follows the clock.
        batch_size: Images a step; 0 chooses.
        img_size: Side, or (height, width), in pixels; 0 keeps the model's.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".
        devices: Processes, one a device.
        seed: Of everything random; 0 unless given.
        out: The run folder; ``runs/NAME`` of the data, numbered, when empty.
        resume: Go on with the run in `out`.
        settings: Any field of the configs, such as ``{"train.learning_rate": 1e-4}``.
        config: ``config.json`` of a run to repeat.
        quiet: Show nothing.
        stop_after: End after so many steps, as if interrupted; 0 = never.
        pictures: Whether a batch, the curves and the best and worst images are drawn into the
            run's ``pictures``.

    Returns:
        The run folder and the figures of its best epoch.

    Raises:
        ConfigError: A name or a setting is wrong.
        DataError: The data cannot be used.
        WeightError: Weights that were asked for cannot be had.
        TrainingError: The loss is not a number.
        RunError: The run folder cannot be written or resumed.
    """
    started = time.monotonic()
    reporter = Reporter(None if quiet else Console())
    base = _read_config(config) if isinstance(config, (str, Path)) else config
    folder = Path(out) if out else _fresh_folder(Path(data))
    request = Request(
        task=task,
        data=str(data),
        out=str(folder),
        val=str(val),
        model=model,
        head=head,
        weights="none" if weights is None else str(weights),
        recipe=recipe,
        epochs=epochs,
        max_time_s=max_time_s,
        batch_size=batch_size,
        img_size=(img_size, img_size) if isinstance(img_size, int) else img_size,
        seed=seed,
        machine=_machine(base, precision, device, devices),
        settings=tuple((key, str(value)) for key, value in (settings or {}).items()),
        base=base,
    )
    request = _resumed(request, bool(out)) if resume else _repeated(request)
    prepared = prepare(request)
    if not resume and prepared.run.config.train.memory_gib:
        prepared = fit_memory(prepared, keep_batch=bool(batch_size))
    run = replace(prepared.run, config=request.base) if resume and request.base else prepared.run
    if resume:
        _refuse_other_data(folder, run, prepared.train, prepared.val)
    else:
        _write_start(run, prepared.train, prepared.val)
    for note in prepared.notes if not resume else (f"going on with {folder}",):
        reporter.note(note)
    job = _Job(
        run=run,
        network=prepared.network,
        train=prepared.train,
        val=prepared.val,
        resume=resume,
        started=started,
        stop_after=stop_after,
        quiet=quiet,
        pictures=pictures,
    )
    fitted = _launch(job)
    if pictures and (lines := read_journal(run.path)):
        goal, _ = run.task.goal(fitted.figures)
        save_figure(draw_curves(lines, goal), run.path / "pictures" / "curves.png")
    return _finish(run, fitted, reporter)


def _launch(job: _Job) -> Fitted:
    machine = job.run.config.machine
    several = machine.devices > 1
    fabric = Fabric(
        accelerator=machine.device,
        devices=machine.devices,
        # Processes are spawned: no script is run twice, and one device needs no process group.
        strategy="ddp_spawn" if several else "auto",
        precision=PRECISIONS[machine.precision],  # type: ignore[arg-type]
    )
    return _launch_several(fabric, job) if several else _work(fabric, job)


def _launch_several(fabric: Fabric, job: _Job) -> Fitted:
    failures: Any = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with leave_to_others() as interrupted:
        try:
            # In a partial, Fabric leaves the job as it is; it cannot look into frozen dataclasses.
            epochs, seconds, stopped = fabric.launch(
                partial(_work_beside_others, job=job, failures=failures)
            )
        except ProcessException as error:
            if not failures.empty():
                raise failures.get() from error
            if interrupted:
                raise KeyboardInterrupt from error
            raise
    # Not through a pipe: figures of many classes would fill it before anybody reads.
    figures = read_checkpoint(job.run.path)["position"]["figures"]
    return Fitted(figures=figures, epochs=epochs, seconds=seconds, interrupted=stopped)


def _work_beside_others(
    fabric: Fabric,
    *,
    job: _Job,
    failures: Any,  # noqa: ANN401 (a queue)
) -> tuple[int, float, bool]:
    """Work, and tell the process that launched this one why it could not be done."""
    try:
        # Tensors of a pickled network lie in memory that the processes share.
        fitted = _work(fabric, replace(job, network=copy.deepcopy(job.network)))
    except MuntinError as error:
        failures.put(error)
        raise
    return fitted.epochs, fitted.seconds, fitted.interrupted


def _work(fabric: Fabric, job: _Job) -> Fitted:
    """What each process does."""
    run = job.run
    reading = run.config.data_config
    if fabric.world_size > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
    stores = Stores(
        train=ImageCache(job.train, run.preprocessing, reading, approximate=True),
        val=ImageCache(job.val, run.preprocessing, reading, full_labels=True),
    )
    first = fabric.is_global_zero
    if first and job.pictures and not job.resume:
        draw_batch(run, stores.train)
    with Reporter(None if job.quiet or not first else Console()) as reporter:
        fitted = fit(
            fabric,
            run,
            job.network,
            stores,
            reporter,
            build_objective(run, job.train, fabric.device),
            started=job.started,
            resume=job.resume,
            stop_after=job.stop_after,
        )
    if job.pictures and fitted.best is not None:
        draw_scored(fitted.best, stores.val, run.classes, run.path / "pictures" / "val")
    return fitted


def _finish(run: Run, fitted: Fitted, reporter: Reporter) -> TrainedRun:
    goal, value = run.task.goal(fitted.figures)
    if fitted.interrupted:
        reporter.note(
            f"Stopped after {as_time(fitted.seconds)}; nothing is lost. Go on with: muntin train "
            f"{run.config.task} {run.config.data} --resume --out {run.path}"
        )
    elif goal:
        if unseen := _unscored(run, fitted.figures):
            reporter.note(f"mean over the other classes: no pixel of {unseen} in validation")
        reporter.note(f"best {goal} {value:.4f} in {as_time(fitted.seconds)}; run: {run.path}")
    return TrainedRun(
        path=run.path,
        metrics=fitted.figures,
        epochs=fitted.epochs,
        seconds=fitted.seconds,
        interrupted=fitted.interrupted,
    )


def _unscored(run: Run, figures: Mapping[str, Any]) -> str:
    """Classes of pixels that validation says nothing about."""
    if run.task.kind != "segmentation":
        return ""
    rows = zip(run.classes.names, figures.get("iou", ()), strict=False)
    return shorten(name for name, value in rows if value is None)


def _write_start(run: Run, train: Listing, val: Listing) -> None:
    """Write what is known before the first step, the split included."""
    run.write()
    paths = {
        "train": [train.source, len(train)],
        "val": [val.source, [entry.path for entry in val.entries]],
    }
    write_json(run.path / "split.json", paths)


def _fresh_folder(data: Path) -> Path:
    name = data.name.partition(".")[0] or "run"
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
    message = f"runs/ must have room for one more run of {name!r}. Pass --out."
    raise RunError(message)


def _resumed(request: Request, named: bool) -> Request:
    """Ask for what the run in `out` was asked for, and for nothing else."""
    plain = Request(
        task=request.task,
        data=request.data,
        out=request.out,
        val=request.val,
        machine=MachineConfig(),
    )
    given = [f.name for f in fields(plain) if getattr(request, f.name) != getattr(plain, f.name)]
    if given:
        message = (
            f"a resumed run keeps its settings, got {', '.join(given)} with --resume. Leave out "
            f"what sets them, or start a new run with --config and another --out."
        )
        raise ConfigError(message)
    if not named:
        message = "resume needs the run to go on with, got no --out. Pass the run folder as --out."
        raise ConfigError(message)
    base = Run.open(request.out).config
    val = request.val or base.val
    return replace(request, val=val, weights="none", machine=base.machine, base=base)


def _repeated(request: Request) -> Request:
    """Fill in what a run that is repeated began with; leave a new one as it is."""
    folder, base = Path(request.out), request.base
    # What was stopped before its first step has nothing to lose, and is begun anew.
    if any((folder / name).exists() for name in ("last.ckpt", "last.ckpt.old", WEIGHTS)):
        message = (
            f"out must be a new folder, got {folder}, which holds a run. Pass another --out, or "
            f"--resume to go on with it."
        )
        raise RunError(message)
    if base is None:
        return request
    if request.recipe != "auto":
        message = f"a config has its recipe, got recipe {request.recipe!r} too. Leave one out."
        raise ConfigError(message)
    weights = (base.weights or "none") if request.weights == "auto" else request.weights
    val = request.val or (base.val if base.data == request.data else "")
    return replace(request, weights=weights, val=val)


def _read_config(path: str | Path) -> RunConfig:
    if not Path(path).is_file():
        message = f"config must be the config.json of a run, found no file at {str(path)!r}."
        raise ConfigError(message)
    try:
        return RunConfig.from_dict(read_json(Path(path)), where=str(path))
    except RunError as error:
        message = f"config must be the config.json of a run, got something else in {str(path)!r}."
        raise ConfigError(message) from error


def _refuse_other_data(folder: Path, run: Run, train: Listing, val: Listing) -> None:
    """The images of a resumed run are those that it began with, wherever they lie now."""
    before = read_json(folder / "split.json")
    same = (
        before["train"][1:] == [len(train)]
        and before["val"][1:] == [[entry.path for entry in val.entries]]
        and Run.open(folder).classes == run.classes
    )
    if not same:
        message = (
            f"a run must be resumed on the images it began with, got others in {train.source} "
            f"(see {folder / 'split.json'}). Restore them, or start a new run with --config."
        )
        raise RunError(message)


def _machine(base: RunConfig | None, precision: str, device: str, devices: int) -> MachineConfig:
    wanted: dict[str, Any] = {"precision": precision, "device": device, "devices": devices}
    if base is not None:
        asked = {key: value for key, value in wanted.items() if value not in ("auto", 1)}
        wanted = {**to_dict(base.machine), **asked}
    return from_dict(MachineConfig, wanted, where="the command")
