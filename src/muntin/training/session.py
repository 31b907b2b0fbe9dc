# SPDX-License-Identifier: Apache-2.0
"""Training from data to a run folder: `train`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console

from muntin.collectives import backend_of, from_first
from muntin.configs import with_texts
from muntin.devices import choose_device
from muntin.diagnosing.run_faults import diagnose_result
from muntin.drawing.notebook import show_facts
from muntin.drawing.plots import draw_curves
from muntin.drawing.saving import save_figure
from muntin.errors import RunError, quote, shorten
from muntin.objectives.objective import LossObjective
from muntin.run_config import RunConfig
from muntin.run_files import rewrite_config, write_json
from muntin.runs import Run, drop_epochs_from, read_journal
from muntin.scoring.evaluation_plots import draw_evaluation
from muntin.shapes import Size
from muntin.staging import part_of
from muntin.tasks.task_table import find_task
from muntin.training.arguments import TrainArguments, check_arguments
from muntin.training.cluster_training import arrange_on
from muntin.training.distillation import add_teacher, read_answers
from muntin.training.local_processes import start_processes
from muntin.training.loop import FitResult, Loop
from muntin.training.machine import choose_machine
from muntin.training.memory_budget import fit_memory
from muntin.training.model_card import CARD, write_card
from muntin.training.overfit_check import check_first
from muntin.training.processes import (
    Place,
    check_data,
    check_versions,
    find_place,
    here,
    joined,
    take_part,
    telling_losses,
)
from muntin.training.profiling import StepProfiler, measure_step_memory
from muntin.training.progress import Reporter, draw_batch, format_duration
from muntin.training.reconstruction_images import COUNT, ReconstructionImages
from muntin.training.request import (
    PreparedRun,
    Request,
    group_settings,
    read_config,
    repeat_request,
)
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
        rank: Of this process, where torchrun or SLURM has started several.
    """

    path: Path
    metrics: dict[str, Any]
    epochs: int
    seconds: float
    interrupted: bool
    rank: int = 0

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
    devices: int = 0,
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
    nodes: int = 0,
    on: str = "",
    extend: str | Path = "",
    folds: int = 0,
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
        devices: Number of devices of each machine, each with its own process; 0 = as torchrun or
            SLURM has started, or as in the run to be resumed or repeated, or 1.
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
        nodes: Number of machines where torchrun or SLURM has started processes; 0 = theirs.
        on: "ray", or the address of a cluster such as "ray://head:10001", which starts them.
        extend: Run folder to add the classes of `data` to (`training.extension`).
        folds: Train so many runs, each validated on another part (`training.folds`); 0 = one run.

    Raises:
        ConfigError: A name or a setting is invalid.
        DataError: The data cannot be used.
        WeightError: The requested weights are not available.
        TrainingError: The loss, a gradient or a weight is NaN or infinite.
        RunError: The run folder cannot be written or resumed.
    """
    given: dict[str, Any] = {**locals()}
    check_arguments(given)
    find_task(task)  # pretraining is a verb of its own
    return arrange(TrainArguments(**given))


def arrange(given: TrainArguments) -> TrainedRun:
    """Request a run of any task, new or to be resumed, and train it."""
    if given.folds:
        return _arrange_folds(given)
    # Before anything is read, which a time limit includes.
    given = replace(given, started=given.started or time.monotonic())
    if given.on:
        return arrange_on(given, Path(given.out or _new_folder(Path(given.data))), arrange)
    place = find_place(given.devices, given.nodes)
    if not place.launcher:
        return _arrange(given, place)
    with _meeting(given, place):
        return _arrange(replace(given, devices=place.local_world, nodes=place.nodes), place)


@contextmanager
def _meeting(given: TrainArguments, place: Place) -> Iterator[None]:
    """Join what a launcher started, before the first has read the data and resolved settings."""
    rows = group_settings(_texts(given.settings))["machine"]
    machine = with_texts(choose_machine(None, "auto", given.device, 1), rows, group="machine")
    device: Any = choose_device(machine.device).type
    with joined(place, replace(machine, device=device)), telling_losses(machine):
        check_versions()
        yield


def _arrange(given: TrainArguments, place: Place) -> TrainedRun:
    """Prepare in the first process, and train in all."""
    first = place.rank == 0 or not place.launcher
    with ExitStack() as stack:
        prepared = from_first(lambda: _prepare(_request(given), given, stack, place))
        reporter = Reporter(None if given.quiet or not first else Console())
        fitted = _launch(prepared.run, place, partial(_work, prepared=prepared, given=given))
        if first:
            _finish(prepared, fitted, reporter, given.pictures)
    return TrainedRun(
        path=prepared.run.path,
        metrics=fitted.figures,
        epochs=fitted.epochs,
        seconds=fitted.seconds,
        interrupted=fitted.interrupted,
        rank=place.rank,
    )


def _prepare(
    request: Request, given: TrainArguments, stack: ExitStack, place: Place
) -> PreparedRun:
    """Prepare a run, lock its folder until the stack ends, and print what was chosen."""
    stack.enter_context(locked(Path(request.out), create=not given.resume))
    prepared = _resume(request, given) if given.resume else _start(request)
    machine = prepared.run.config.machine
    place = place if place.launcher else here(machine.devices)
    if place.world > 1:
        notes = (*prepared.notes, place.describe(backend_of(machine.device)))
        prepared = replace(prepared, notes=notes)
    reporter = Reporter(None if given.quiet else Console())
    for note in prepared.notes:
        reporter.note(note)
    if not given.resume:
        check_first(prepared, StepProfiler, reporter)
    return replace(prepared, answers=read_answers(prepared, reporter))


def _arrange_folds(given: TrainArguments) -> TrainedRun:
    from muntin.training.folds import report_folds, train_folds

    place = here(1) if given.on else find_place(given.devices, given.nodes)
    given = replace(given, quiet=given.quiet or place.rank > 0)
    out = Path(given.out or _new_folder(Path(given.data)))
    runs = train_folds(given, out, arrange)
    out = runs[0].path.parent  # that of the first process
    return TrainedRun(
        path=out,
        metrics=report_folds(runs, find_task(given.task), out, given),
        epochs=sum(run.epochs for run in runs),
        seconds=sum(run.seconds for run in runs),
        interrupted=runs[-1].interrupted,
        rank=place.rank,
    )


def _request(given: TrainArguments) -> Request:
    base, size, weights = given.config, given.img_size, given.weights
    weights = given.extend if given.extend and weights == "auto" else weights
    base = read_config(base) if isinstance(base, (str, Path)) else base
    return Request(
        task=given.task, data=str(given.data), val=str(given.val), model=given.model,
        out=str(given.out or _new_folder(Path(given.data))), head=given.head,
        weights="none" if weights is None else str(weights), recipe=given.recipe,
        epochs=given.epochs, max_time_s=given.max_time_s, batch_size=given.batch_size,
        img_size=(size[0], size[1]) if isinstance(size, Sequence) else (size, size),
        seed=given.seed, base=base, teacher=str(given.teacher), extend=str(given.extend),
        machine=choose_machine(
            base, given.precision, given.device, given.devices, max(given.nodes, 1)
        ),
        settings=_texts(given.settings),
    )  # fmt: skip


def _texts(settings: Mapping[str, object] | None) -> tuple[tuple[str, str], ...]:
    return tuple((key, str(value)) for key, value in (settings or {}).items())


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


def _resume(request: Request, given: TrainArguments) -> PreparedRun:
    """Prepare a run that goes on, with the config that it wrote: defaults may have changed."""
    request = resume_request(request, bool(given.out), given.devices, max(given.nodes, 1))
    prepared = prepare(request)
    # What was measured or taken from weights that may be gone is in the folder.
    pre = Run.open(request.out, pretraining=True).preprocessing
    run = replace(prepared.run, config=request.base or prepared.run.config, preprocessing=pre)
    check_same_data(run.path, run, prepared.train, prepared.val)
    # It may go on for longer, which the next --resume must know.
    rewrite_config(run.path, run.config.to_dict())
    return replace(prepared, run=run, notes=(f"resuming {run.path}",))


def _launch(run: Run, place: Place, work: Callable[[Fabric], FitResult]) -> FitResult:
    """Do the work in this process, with the others of a launcher, or in processes of its own."""
    if run.config.machine.devices == 1 or place.launcher:
        return take_part(place, run.config, work)
    return start_processes(run.config, work)


def _work(fabric: Fabric, *, prepared: PreparedRun, given: TrainArguments) -> FitResult:
    """Train in one process."""
    run, pictures = prepared.run, given.pictures
    if fabric.world_size > 1:
        check_data((prepared.train, prepared.val))
    first = fabric.is_global_zero
    reporter = Reporter(None if given.quiet or not first else Console())
    network = prepared.network
    objective = build_objective(run, prepared.train, fabric.device, network)
    taught = add_teacher(objective, run, network.spec, fabric, prepared.answers)
    loop = Loop(fabric, prepared, taught, reporter)
    # Before the first step: wrong labels or too strong an augmentation show at once.
    if first and pictures and not given.resume:
        draw_batch(run, loop.train)
    begun = loop.trainer.best_network  # shards are gathered by all processes
    if first and pictures and isinstance(objective, LossObjective):
        listing = prepared.val if len(prepared.val) >= COUNT else prepared.train
        watch = ReconstructionImages(run, listing, objective, fabric.device)
        loop.validation.watch = watch
        if not given.resume:
            watch(begun)
            reporter.note(f"what it learns shows in {run.path / 'pictures'}")
    with loop.records as records, reporter:
        fitted = loop.fit(started=given.started, resume=given.resume, stop_after=given.stop_after)
        records.end(fitted.figures, "interrupted" if fitted.interrupted else "finished")
    # From the outputs of the best epoch: nothing is computed again.
    if pictures and fitted.best is not None and run.task.kind != "pretraining":
        draw_evaluation(fitted.best, loop.val, run.classes, part_of(run.path, "pictures", "val"))
    # The outputs of the best epoch are large: they stay in their process.
    return fitted if fabric.world_size == 1 else replace(fitted, best=None)


def _finish(prepared: PreparedRun, fitted: FitResult, reporter: Reporter, pictures: bool) -> None:
    """Draw the curves, write the model card, and report the result."""
    run = prepared.run
    goal, value = run.task.goal(fitted.figures)
    if pictures and (lines := read_journal(run.path)):
        save_figure(draw_curves(lines, goal), part_of(run.path, "pictures", "curves.png"))
    duration, trained = format_duration(fitted.seconds), (fitted.epochs, fitted.seconds)
    if fitted.interrupted:
        reporter.note(
            f"Stopped after {duration}; nothing is lost. Resume with: {run.task.command} "
            f"{quote(run.config.data)} --resume --out {quote(run.path)}"
        )
        return
    found = diagnose_result(run, (prepared.train, prepared.val), fitted.figures, fitted.best)
    for finding in found:
        reporter.note(str(finding), style="yellow")
    if not write_card(run, (prepared.train, prepared.val), fitted.figures, trained, found):
        reporter.note(f"{run.path / CARD} was changed by somebody, and stays as it is")
    if goal:
        if missing := _unscored(run, fitted.figures):
            reporter.note(f"mean IoU excludes classes without validation pixels: {missing}")
        reporter.note(f"best {goal} {value:.4f} in {duration}; run: {run.path}")


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
