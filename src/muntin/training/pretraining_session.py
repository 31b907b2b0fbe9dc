# SPDX-License-Identifier: Apache-2.0
"""Pretraining from images to a run folder: `pretrain`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Unpack

from rich.console import Console

from muntin.errors import quote
from muntin.runs import Run
from muntin.training.arguments import check_arguments, refuse_unknown
from muntin.training.few_labels import judge, list_probe
from muntin.training.progress import Reporter
from muntin.training.session import TrainedRun, TrainOptions, arrange


def pretrain(
    images: str | Path,
    *,
    objective: str = "auto",
    probe: str | Path = "",
    **options: Unpack[TrainOptions],
) -> TrainedRun:
    """Learn from images without labels; `train(..., weights=RUN)` goes on for any task.

    `images` are a folder, an archive, a list of paths (.txt, .csv) or a data set of any task, whose
    labels are not used; some are held out for validation. `objective` is what is learnt: "mae",
    "simmim" or "views", or "auto" by the model. With `probe`, images with classes as for
    `train("classify", ...)`, the run ends in a verdict: what the backbone has gained over a fresh
    one.

    Other arguments are those of `muntin.train`; `weights` are those to go on from, random if
    "auto", and `recipe` is "pretrain", "pretrain-small" or "pretrain-views".

    Returns:
        The run; its metrics are those of the best epoch, and "probe" those of the verdict.

    Raises:
        ConfigError: A name or a setting is invalid, or the model cannot learn by the objective.
        DataError: There are fewer than two images, or `probe` cannot judge.
        WeightError: The requested weights are not available.
        TrainingError: The loss, a gradient or a weight is NaN or infinite.
        RunError: The run folder cannot be written or resumed.
    """
    # The annotation of the options is for type checkers: Python would take any name.
    refuse_unknown("pretrain", options, TrainOptions.__annotations__)
    check_arguments({"images": images, "objective": objective, "probe": probe})
    # Listed before the training, which may take hours: a wrong probe must not be found after it.
    if probe:
        list_probe(str(probe))
    done = arrange("pretrain", images, head=objective.removeprefix("auto"), **options)
    if done.interrupted:
        return done
    reporter = Reporter(None if options.get("quiet") else Console())
    if not probe:
        reporter.note(
            f"what it gained is measured with labelled images: "
            f"muntin pretrain {quote(images)} --resume --out {quote(done.path)} --probe LABELLED"
        )
        return done
    run = Run.open(done.path, pretraining=True)
    try:
        figures = judge(run, str(probe), done.seconds, reporter)
    except KeyboardInterrupt:
        paths = (str(images), str(done.path), str(probe))
        again = "muntin pretrain {} --resume --out {} --probe {}".format(*map(quote, paths))
        reporter.note(f"the run is complete, but for its verdict: {again}")
        raise
    return replace(done, metrics={**done.metrics, "probe": figures})
