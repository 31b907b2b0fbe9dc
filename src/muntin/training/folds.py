# SPDX-License-Identifier: Apache-2.0
"""k-fold cross-validation: a run for each part of the images, validated on it.

OUT/fold_1 and so on are whole runs with the settings of the first. OUT/results.json and
OUT/results.md have the mean of each figure over the folds and its sample standard deviation. A
time limit is divided by the folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from muntin.errors import ConfigError, quote
from muntin.run_files import write_json, write_text
from muntin.tasks.task import Task
from muntin.training.arguments import TrainArguments
from muntin.training.model_card import format_rows

FoldRun = Any
"""A `muntin.training.session.TrainedRun`, which knows of folds."""


def train_folds(
    given: TrainArguments, out: Path, train: Callable[[TrainArguments], FoldRun]
) -> list[FoldRun]:
    """Train one fold after the other, up to one that is interrupted; finished ones are kept."""
    if given.folds < 2:
        message = f"--folds must be at least 2, got {given.folds}."
        raise ConfigError(message)
    if given.resume and not given.out:
        message = "--resume needs the folder of the folds, got no --out. Pass it as --out."
        raise ConfigError(message)
    runs: list[FoldRun] = []
    for number in range(1, given.folds + 1):
        if not given.quiet:
            Console().rule(f"fold {number} of {given.folds}")
        runs.append(train(_fold(given, out, number)))
        if runs[-1].interrupted:
            break
    return runs


def _fold(given: TrainArguments, out: Path, number: int) -> TrainArguments:
    """Arguments of one fold: those given, or the config of the first fold, which all have."""
    place, first = out / f"fold_{number}", out / "fold_1"
    one = replace(given, out=place, folds=0, max_time_s=given.max_time_s / given.folds)
    settings: dict[str, object] = {"data.folds": given.folds, "data.fold": number}
    # One that was cut before its first checkpoint begins anew: it has nothing to lose.
    if given.resume and (place / "last.ckpt").exists():
        return replace(one, settings={**(given.settings or {}), **settings})
    # What is chosen by the data is chosen once, so that folds differ in their images alone.
    if number == 1:
        return replace(one, settings={**(given.settings or {}), **settings}, resume=False)
    return replace(
        one, config=first / "config.json", settings=settings, model="", head="", teacher="",
        extend="", weights="auto", recipe="auto", epochs=0, max_time_s=0.0, batch_size=0,
        img_size=0, seed=-1, resume=False, started=0.0,
    )  # fmt: skip


def report_folds(
    runs: Sequence[FoldRun], task: Task, out: Path, given: TrainArguments
) -> dict[str, Any]:
    """Write and print mean and spread of all figures; give the means. Nothing if interrupted.

    Of several processes the first one writes.
    """
    console = Console(quiet=given.quiet)
    if runs[-1].interrupted:
        console.print(
            f"Stopped in fold {len(runs)} of {given.folds}. Resume with: {task.command} "
            f"{quote(given.data)} --folds {given.folds} --resume --out {quote(out)}",
            markup=False,
        )
        return {}
    # Figures of a class that a fold lacks, for one, have no mean.
    rows = {name: [run.metrics[name] for run in runs] for name in _common(runs)}
    mean = {name: fmean(values) for name, values in rows.items()}
    if runs[0].rank:
        return mean
    spread = {name: stdev(values) for name, values in rows.items()}
    goal = task.goal(mean)[0]
    order = sorted(rows, key=lambda name: name != goal)  # the figure that decides comes first
    titles = ["", "mean", "std", *(f"fold {number + 1}" for number in range(len(runs)))]
    lines = [
        [name, *(f"{value:.4f}" for value in (mean[name], spread[name], *rows[name]))]
        for name in order
    ]
    table = Table(*titles)
    for line in lines:
        table.add_row(*line)
    text = f"# {given.folds} folds of {given.data}\n\nTask: {task.name}.\n\n"
    folds = [{"run": run.path.name, "figures": run.metrics, "epochs": run.epochs} for run in runs]
    values = {"task": task.name, "data": str(given.data), "mean": mean, "std": spread}
    write_json(out / "results.json", {**values, "folds": folds})
    write_text(out / "results.md", f"{text}{format_rows(titles, lines)}\n")
    console.print(table)
    if goal:
        console.print(f"{goal} {mean[goal]:.4f} +- {spread[goal]:.4f}; see {out / 'results.md'}")
    return mean


def _common(runs: Sequence[FoldRun]) -> list[str]:
    """Figures that are finite numbers in every fold."""

    def usable(figures: Mapping[str, Any], name: str) -> bool:
        value = figures.get(name)
        return isinstance(value, int | float) and math.isfinite(value)

    return [name for name in runs[0].metrics if all(usable(run.metrics, name) for run in runs)]
