# SPDX-License-Identifier: Apache-2.0
"""Training from data to a run folder: `train`."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch.multiprocessing.spawn import ProcessException

from muntin.diagnosing.run_faults import diagnose_result
from muntin.drawing.notebook import show_facts
from muntin.drawing.plots import draw_curves
from muntin.drawing.saving import save_figure
from muntin.errors import MuntinError, RunError, quote, shorten
from muntin.objectives.objective import LossObjective
from muntin.run_config import RunConfig
from muntin.run_files import rewrite_config, write_json
from muntin.runs import Run, drop_epochs_from, read_journal
from muntin.scoring.evaluation_plots import draw_evaluation
from muntin.shapes import Size
from muntin.staging import part_of
from muntin.tasks.task_table import find_task
from muntin.training.arguments import TrainArguments, check_arguments
from muntin.training.checkpoint import defer_interrupts, read_checkpoint
from muntin.training.distillation import add_teacher, read_answers
from muntin.training.loop import FitResult, Loop
from muntin.training.machine import build_fabric, choose_machine
from muntin.training.memory_budget import fit_memory
from muntin.training.model_card import CARD, write_card
from muntin.training.overfit_check import check_first
from muntin.training.profiling import StepProfiler, measure_step_memory
from muntin.training.progress import Reporter, draw_batch, format_duration
from muntin.training.reconstruction_images import COUNT, ReconstructionImages
from muntin.training.request import PreparedRun, Request, read_config, repeat_request
from muntin.training.resume import check_same_data, resume_request
from muntin.training.run_lock import locked
from muntin.training.run_objective import build_objective
from muntin.training.setup import prepare


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class TrainedRun:
    """What `train` returns.

    Attributes:
        path: The run folder.
        metrics: Metrics of the best epoch on the validation images.
        epochs: Number of trained epochs.
        seconds: Duration of the training.
        interrupted: Whether Ctrl-C stopped it; continue with ``resume=True``.
    """

    path: Path
    metrics: dict[str, Any]
    epochs: int
    seconds: float
    interrupted: bool

    def __repr__(self) -> str:
        """The path and the figures that are numbers."""
        figures = "".join(
            f", {name}={value:.4g}"
            for name, value in self.metrics.items()
            if isinstance(value, int | float)
        )
        return f"TrainedRun(path={str(self.path)!r}, epochs={self.epochs}{figures})"

    def _repr_html_(self) -> str:
        facts = {"epochs": self.epochs, "seconds": self.seconds, **self.metrics}
        return show_facts(f"run {self.path}", facts, [self.path / "pictures" / "curves.png"])


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
    started: float = 0.0,
    teacher: str | Path = "",
) -> TrainedRun:
    """Train a model on your own data.

    Args:
        task: "classify", "detect" (boxes), "instance" (boxes and masks), "semantic" or "pose".
        data: Folder, archive, CSV or JSON in a layout that `muntin check` recognises.
        model: A name of `list_models`; empty = by the size of the images.
        head: "fcos", "mask_rcnn", "upernet", "vitpose" ...; empty = by the size of the model.
        val: Validation images; empty = the validation split of `data`, or a random part of it.
        weights: "auto" = published ones if available; "none"; a file; a hub id; a run (its model).
        recipe: "finetune", "small-data", "imagenet" ...; "auto" = by the number of images.
        epochs: Passes over the data; 0 = as in the recipe.
        max_time_s: Wall time for everything in seconds; the learning rate follows the clock.
        batch_size: Images per step; 0 = automatic.
        img_size: Side, or (height, width), in pixels; 0 = the default of the model.
        precision: "auto", "fp32", "bf16" or "fp16".
        device: "auto", "cpu", "cuda" or "mps".
        devices: Number of devices, each with its own process.
        seed: Random seed; -1 = 0, or that of `config`.
        out: The run folder; empty = ``runs/NAME``, numbered, after the name of the data.
        resume: Go on with the run in `out`, perhaps for longer (`training.resume`).
        settings: Any field of the configs, such as ``{"train.learning_rate": 1e-4}``.
        config: ``config.json`` of a run to repeat.
        quiet: Print nothing.
        stop_after: Stop after this many steps, as if interrupted; 0 = never.
        pictures: Whether to draw into the ``pictures`` of the run.
        started: The `time.monotonic` that a time limit counts from; 0 = now.
        teacher: Run folder or published model to learn from too (`run_config.DistillConfig`).

    Raises:
        ConfigError: A name or a setting is invalid.
        DataError: The data cannot be used.
        WeightError: The requested weights are not available.
        TrainingError: The loss, a gradient or a weight is NaN or infinite.
        RunError: The run folder cannot be written or resumed.
    """
    check_arguments(locals())
    find_task(task)  # pretraining is a verb of its own
    return arrange(TrainArguments(
        task=task, data=data, val=val, head=head, teacher=teacher, model=model, weights=weights,
        recipe=recipe, epochs=epochs, max_time_s=max_time_s, batch_size=batch_size,
        img_size=img_size, precision=precision, device=device, devices=devices, seed=seed, out=out,
        resume=resume, settings=settings, config=config, quiet=quiet, stop_after=stop_after,
        pictures=pictures, started=started,
    ))  # fmt: skip


def arrange(given: TrainArguments) -> TrainedRun:
    """Request a run of any task, new or to be resumed, and train it."""
    # Before anything is read, which a time limit includes.
    given = replace(given, started=given.started or time.monotonic())
    request = _request(given)
    with locked(Path(request.out), create=not given.resume):
        prepared = _resume(request, bool(given.out)) if given.resume else _start(request)
        reporter = _tell(prepared, given.quiet)
        if not given.resume:
            check_first(prepared, StepProfiler, reporter)
        prepared = replace(prepared, answers=read_answers(prepared, reporter))
        fitted = _launch(prepared.run, partial(_work, prepared=prepared, given=given))
        return _finish(prepared, fitted, reporter, given.pictures)


def _request(given: TrainArguments) -> Request:
    base, size = given.config, given.img_size
    base = read_config(base) if isinstance(base, (str, Path)) else base
    return Request(
        task=given.task, data=str(given.data), val=str(given.val), model=given.model,
        out=str(given.out or _new_folder(Path(given.data))), head=given.head,
        weights="none" if given.weights is None else str(given.weights), recipe=given.recipe,
        epochs=given.epochs, max_time_s=given.max_time_s, batch_size=given.batch_size,
        img_size=(size[0], size[1]) if isinstance(size, Sequence) else (size, size),
        seed=given.seed, base=base, teacher=str(given.teacher),
        machine=choose_machine(base, given.precision, given.device, given.devices),
        settings=tuple((key, str(value)) for key, value in (given.settings or {}).items()),
    )  # fmt: skip


def _tell(prepared: PreparedRun, quiet: bool) -> Reporter:
    """Print what was chosen automatically."""
    reporter = Reporter(None if quiet else Console())
    for note in prepared.notes:
        reporter.note(note)
    return reporter


def _start(request: Request) -> PreparedRun:
    """Prepare a new run, and write its small files before the first step."""
    request = repeat_request(request)
    # Not for a resumed run: another batch size would change the gradients.
    prepared = fit_memory(prepare(request), measure_step_memory)
    prepared.run.write()
    if read_journal(prepared.run.path):  # of a training that was cut before its first checkpoint
        drop_epochs_from(prepared.run.path, 1)
    train, val = prepared.train, prepared.val
    paths = {
        "train": [train.source, len(train)],
        "val": [val.source, [entry.path for entry in val.entries]],
    }
    write_json(prepared.run.path / "split.json", paths)
    return prepared


def _resume(request: Request, has_out: bool) -> PreparedRun:
    """Prepare a run that goes on, with the config that it wrote: defaults may have changed."""
    request = resume_request(request, has_out)
    prepared = prepare(request)
    run = replace(prepared.run, config=request.base or prepared.run.config)
    check_same_data(run.path, run, prepared.train, prepared.val)
    # It may go on for longer, which the next --resume must know.
    rewrite_config(run.path, run.config.to_dict())
    return replace(prepared, run=run, notes=(f"resuming {run.path}",))


def _launch(run: Run, work: Callable[[Fabric], FitResult]) -> FitResult:
    machine = run.config.machine
    fabric = build_fabric(machine, machine.devices)
    if machine.devices == 1:
        return work(fabric)
    failures: Any = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with defer_interrupts() as interrupted:
        try:
            # In a partial: Fabric would try to move the fields of a frozen dataclass to the device.
            epochs, seconds, stopped = fabric.launch(
                partial(_work_beside_others, work=work, failures=failures)
            )
        except ProcessException as error:
            # The error that the process raised, rather than the fact that it ended.
            if not failures.empty():
                raise failures.get() from error
            # Ctrl-C at the start, before the processes handle it themselves.
            if interrupted:
                raise KeyboardInterrupt from error
            raise
    # From the file, not through the pipe of the process: large metrics would fill it and block.
    figures = read_checkpoint(run.path)["position"]["figures"]
    return FitResult(figures=figures, epochs=epochs, seconds=seconds, interrupted=stopped)


def _work_beside_others(
    fabric: Fabric,
    *,
    work: Callable[[Fabric], FitResult],
    failures: Any,  # noqa: ANN401 (a queue)
) -> tuple[int, float, bool]:
    """Train in a spawned process, and pass an error to the process that launched it."""
    try:
        fitted = work(fabric)
    except MuntinError as error:
        failures.put(error)
        raise
    return fitted.epochs, fitted.seconds, fitted.interrupted


def _work(
    fabric: Fabric,
    *,
    prepared: PreparedRun,
    given: TrainArguments,
) -> FitResult:
    """Train in one process."""
    run, pictures = prepared.run, given.pictures
    if fabric.world_size > 1:
        # One thread pool per process: together they must not use more threads than cores.
        torch.set_num_threads(max(1, torch.get_num_threads() // fabric.world_size))
        # Tensors of a pickled network are in shared memory: without a copy all processes would
        # train the same weights.
        prepared = replace(prepared, network=copy.deepcopy(prepared.network))
    first = fabric.is_global_zero
    reporter = Reporter(None if given.quiet or not first else Console())
    network = prepared.network
    objective = build_objective(run, prepared.train, fabric.device, network)
    taught = add_teacher(objective, run, network.spec, fabric, prepared.answers)
    loop = Loop(fabric, prepared, taught, reporter)
    # Before the first step: wrong labels or too strong an augmentation show at once.
    if first and pictures and not given.resume:
        draw_batch(run, loop.train)
    if first and pictures and isinstance(objective, LossObjective):
        listing = prepared.val if len(prepared.val) >= COUNT else prepared.train
        watch = ReconstructionImages(run, listing, objective, fabric.device)
        loop.validation.watch = watch
        if not given.resume:
            watch(loop.trainer.best_network)
            reporter.note(f"what it learns shows in {run.path / 'pictures'}")
    with loop.records as records, reporter:
        fitted = loop.fit(started=given.started, resume=given.resume, stop_after=given.stop_after)
        records.end(fitted.figures, "interrupted" if fitted.interrupted else "finished")
    # From the outputs of the best epoch: nothing is computed again.
    if pictures and fitted.best is not None and run.task.kind != "pretraining":
        draw_evaluation(fitted.best, loop.val, run.classes, part_of(run.path, "pictures", "val"))
    return fitted


def _finish(
    prepared: PreparedRun, fitted: FitResult, reporter: Reporter, pictures: bool
) -> TrainedRun:
    """Draw the curves, write the model card, and report the result."""
    run = prepared.run
    goal, value = run.task.goal(fitted.figures)
    if pictures and (lines := read_journal(run.path)):
        save_figure(draw_curves(lines, goal), part_of(run.path, "pictures", "curves.png"))
    found = diagnose_result(run, (prepared.train, prepared.val), fitted.figures, fitted.best)
    for finding in () if fitted.interrupted else found:
        reporter.note(str(finding), style="yellow")
    duration, trained = format_duration(fitted.seconds), (fitted.epochs, fitted.seconds)
    if fitted.interrupted:
        reporter.note(
            f"Stopped after {duration}; nothing is lost. Resume with: {run.task.command} "
            f"{quote(run.config.data)} --resume --out {quote(run.path)}"
        )
    elif not write_card(run, (prepared.train, prepared.val), fitted.figures, trained, found):
        reporter.note(f"{run.path / CARD} was changed by somebody, and stays as it is")
    if goal and not fitted.interrupted:
        if missing := _unscored(run, fitted.figures):
            reporter.note(f"mean IoU excludes classes without validation pixels: {missing}")
        reporter.note(f"best {goal} {value:.4f} in {duration}; run: {run.path}")
    return TrainedRun(
        path=run.path,
        metrics=fitted.figures,
        epochs=fitted.epochs,
        seconds=fitted.seconds,
        interrupted=fitted.interrupted,
    )


def _unscored(run: Run, figures: Mapping[str, Any]) -> str:
    """Names of the segmentation classes without a pixel in the validation images."""
    if run.task.kind != "segmentation":
        return ""
    rows = zip(run.classes.names, figures.get("iou", ()), strict=False)
    return shorten(name for name, value in rows if value is None)


def _new_folder(data: Path) -> Path:
    name = data.name.partition(".")[0] or "run"
    # Never overwrites a run that is not named with --out.
    for number in range(1, 10_000):
        folder = Path("runs") / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
    message = f"runs/ must have fewer than 10,000 runs of {name!r}. Pass --out."
    raise RunError(message)
